//! Answering what shards ask: the way from their queue to [`Hooks`], and back to their inboxes.

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::hooks::{Hooks, HooksError};
use super::rpc::{Rpc, reply};
use super::{FULL_PAUSE, State};
use crate::access::token::{KeySource, RemoteKeys};
use crate::ids::{ShardId, Ticket};
use crate::message::{Answer, Asked, NotTaken, Question};

impl State {
    /// What asks outside, by the settings that hold.
    pub(super) fn hooks(self: &Arc<Self>) -> Result<Rc<Hooks>, HooksError> {
        let own = self.clone();
        let take_keys = move |url: &str, body: &[u8]| own.take_keys(url, body);
        let (config, figures) = (self.shared.config(), self.hooks.clone());
        Hooks::new(&config, &self.key_urls(), take_keys, figures).map(Rc::new)
    }

    /// Answers what shards ask until no shard is there any more.
    pub(super) async fn answer_questions(
        self: Arc<Self>,
        hooks: Rc<Hooks>,
        rpc: Rc<Rpc>,
        mut asked: mpsc::Receiver<Asked>,
    ) {
        let own = self.clone();
        let answer = move |to, ticket, answer| own.answer(to, ticket, answer);
        let call_answer: reply::Send = Rc::new(answer.clone());
        // As long as the one it comes from: shards have no more under way.
        let (to_hooks, of_hooks) = mpsc::channel(asked.max_capacity());
        let calls = rpc.clone();
        // Ends, and with it the way to the hooks, when no shard is there any more.
        let sort = async move {
            while let Some(asked) = asked.recv().await {
                match asked.question {
                    Question::Rpc { .. } => calls.take(asked, &call_answer),
                    _ if to_hooks.send(asked).await.is_err() => return,
                    _ => {}
                }
            }
        };
        tokio::task::spawn_local(sort);
        let mut reloaded = self.reloaded.subscribe();
        let reconfigure = async {
            while reloaded.changed().await.is_ok() {
                if let Err(e) = hooks.reconfigure(&self.shared.config(), &self.key_urls()) {
                    tracing::error!("reload: what is asked outside stays as it was: {e}");
                }
                if let Err(e) = rpc.reconfigure() {
                    tracing::error!("reload: methods stay as they were: {e}");
                }
            }
        };
        tokio::select! {
            () = hooks.clone().serve(of_hooks, answer) => {}
            () = reconfigure => {}
        }
    }

    fn answer(self: &Arc<Self>, to: ShardId, ticket: Ticket, answer: Answer) {
        if let Err(NotTaken::Full(answer)) = self.shared.shards.answer(to, ticket, answer) {
            let own = self.clone();
            tokio::task::spawn_local(async move {
                let mut answer = answer;
                while let Err(NotTaken::Full(back)) = own.shared.shards.answer(to, ticket, answer) {
                    answer = back;
                    tokio::time::sleep(FULL_PAUSE).await;
                }
            });
        }
    }

    /// Where the issuers' keys are.
    fn key_urls(&self) -> Vec<String> {
        let sources = self.shared.settings.load().access.issuers.key_sources();
        sources.into_iter().map(|source| source.url.into()).collect()
    }

    /// Puts the keys that came from somewhere in the place of those that had. What is no set of keys changes nothing.
    fn take_keys(&self, url: &str, body: &[u8]) {
        let sources = self.shared.settings.load().access.issuers.key_sources();
        let Some(KeySource { algorithms, .. }) = sources.iter().find(|source| *source.url == *url)
        else {
            return;
        };
        match RemoteKeys::parse_jwks(body, algorithms) {
            Ok(jwks) => {
                let mut keys = RemoteKeys::clone(&self.shared.remote_keys.load());
                keys.replace(url, jwks);
                self.shared.remote_keys.store(Arc::new(keys));
            }
            Err(e) => tracing::warn!("the keys of an issuer stay as they were: {url}: {e}"),
        }
    }
}
