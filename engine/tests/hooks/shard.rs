//! A shard as the hooks see it: it asks, and looks what comes back.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use reqwest::dns::Resolve;
use ringfeed_engine::access::Identity;
use ringfeed_engine::config::{Config, Sources};
use ringfeed_engine::control::hooks::{Figures, Hook, Hooks, Outcome, Snapshot, SystemNames};
use ringfeed_engine::ids::{ConnectionId, ShardId, Ticket};
use ringfeed_engine::message::{
    Answer, Asked, Caller, ConnectRequest, Denied, Question, Questions, StoredPayload,
};
use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::{ChannelName, UserId};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet};

pub(crate) const SECRET: &str = "canary-0123456789abcdef0123456789";

/// Runs a test where the hooks live.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    LocalSet::new().block_on(&builder.enable_all().build().unwrap(), test);
}

pub(crate) fn config(flags: &[String]) -> Config {
    Config::load(&Sources { flags: flags.to_vec(), ..Sources::default() }).unwrap()
}

/// `hooks.KEY=VALUE` of each.
pub(crate) fn flags(keys: &[(&str, &str)]) -> Vec<String> {
    let mut flags: Vec<String> = keys.iter().map(|(k, v)| format!("hooks.{k}={v}")).collect();
    flags.push(format!("hooks.secret={SECRET}"));
    flags
}

#[derive(Default)]
struct Answers {
    all: RefCell<BTreeMap<u32, Vec<Answer>>>,
    /// In the order in which they came.
    order: RefCell<Vec<u32>>,
    changed: Notify,
}

pub(crate) struct Shard {
    pub(crate) hooks: Rc<Hooks>,
    figures: Arc<Figures>,
    questions: Option<Questions>,
    answers: Rc<Answers>,
    next: RefCell<u32>,
    pub(crate) serving: Option<JoinHandle<()>>,
}

impl Shard {
    pub(crate) fn start(keys: &[(&str, &str)]) -> Shard {
        Shard::of(&config(&flags(keys)), &[], |_, _| {}, Arc::new(SystemNames))
    }

    pub(crate) fn of(
        config: &Config,
        key_urls: &[String],
        take_keys: impl Fn(&str, &[u8]) + 'static,
        names: Arc<dyn Resolve>,
    ) -> Shard {
        let figures = Arc::new(Figures::default());
        let hooks = Hooks::with_names(config, key_urls, take_keys, figures.clone(), names);
        let hooks = Rc::new(hooks.unwrap());
        let (questions, receiver) = Questions::new(4);
        let answers = Rc::new(Answers::default());
        let own = answers.clone();
        let answer = move |shard: ShardId, ticket: Ticket, answer| {
            assert_eq!((shard, ticket.generation), (ShardId(3), !ticket.slot));
            own.all.borrow_mut().entry(ticket.slot).or_default().push(answer);
            own.order.borrow_mut().push(ticket.slot);
            own.changed.notify_waiters();
        };
        let serving = tokio::task::spawn_local(hooks.clone().serve(receiver, answer));
        let next = RefCell::new(0);
        Shard { hooks, figures, questions: Some(questions), answers, next, serving: Some(serving) }
    }

    /// Asks; the number of the question.
    pub(crate) fn ask(&self, question: Question) -> u32 {
        let slot = *self.next.borrow();
        *self.next.borrow_mut() += 1;
        let ticket = Ticket { slot, generation: !slot };
        let asked = Asked { shard: ShardId(3), ticket, question };
        assert!(self.questions.as_ref().unwrap().ask(asked));
        slot
    }

    /// Waits for the answer to a question. There is one only.
    pub(crate) async fn answer(&self, number: u32) -> Answer {
        loop {
            let changed = self.answers.changed.notified();
            if let Some(answers) = self.answers.all.borrow().get(&number) {
                assert_eq!(answers.len(), 1, "{answers:?}");
                return answers[0].clone();
            }
            changed.await;
        }
    }

    pub(crate) async fn asks(&self, question: Question) -> Answer {
        self.answer(self.ask(question)).await
    }

    /// Why there is no answer to a question.
    pub(crate) async fn unavailable(&self, question: Question) -> &'static str {
        let answer = self.asks(question).await;
        unavailable(&answer).unwrap_or_else(|| panic!("{answer:?}"))
    }

    /// Numbers of all questions that were answered, in that order.
    pub(crate) fn answered(&self) -> Vec<u32> {
        self.answers.order.borrow().clone()
    }

    pub(crate) fn figures(&self, hook: Hook) -> Snapshot {
        let all = self.figures.snapshot();
        all.into_iter().find(|figures| figures.hook == hook).unwrap()
    }

    pub(crate) fn count(&self, hook: Hook, outcome: Outcome) -> u64 {
        self.figures(hook).count(outcome)
    }

    /// Asks no more, and waits for the end.
    pub(crate) async fn close(&mut self) {
        self.questions = None;
        self.serving.take().unwrap().await.unwrap();
    }
}

pub(crate) fn unavailable(answer: &Answer) -> Option<&'static str> {
    match answer {
        Answer::Connect(Err(Denied::Unavailable(why)))
        | Answer::Subscribe(Err(Denied::Unavailable(why)))
        | Answer::Publish(Err(Denied::Unavailable(why)))
        | Answer::Message(Err(Denied::Unavailable(why))) => Some(why),
        _ => None,
    }
}

/// A connection of a user; of nobody where the name is empty.
pub(crate) fn caller(user: &str, number: u64) -> Caller {
    let user = (!user.is_empty()).then(|| UserId::new(user).unwrap());
    let identity = Identity { user, ..Identity::default() };
    Caller { connection: ConnectionId { shard: ShardId(3), number }, identity: Arc::new(identity) }
}

pub(crate) fn connect(user: &str, number: u64) -> Question {
    let header = |name: &str, value: &str| (name.into(), value.as_bytes().into());
    let request = ConnectRequest {
        address: "203.0.113.7".parse().unwrap(),
        path: "/ws".into(),
        query: "token=canary-query".into(),
        headers: vec![
            header("cookie", "a=1"),
            header("user-agent", "test"),
            header("cookie", "sid=canary-cookie"),
            header("x-secret", "not forwarded"),
        ],
    };
    Question::Connect { caller: caller(user, number), request: Box::new(request) }
}

pub(crate) fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

pub(crate) fn subscribe(user: &str, name: &str) -> Question {
    Question::Subscribe { caller: caller(user, 1), channel: channel(name) }
}

pub(crate) fn publish(user: &str, json: &str) -> Question {
    let payload = StoredPayload { kind: PayloadKind::Json, bytes: json.to_owned().into() };
    Question::Publish { caller: caller(user, 1), channel: channel("a"), payload }
}

pub(crate) fn message(user: &str) -> Question {
    let message = "{\"type\":\"vote\",\"for\":1}".into();
    Question::Message { caller: caller(user, 1), kind: "vote".into(), message }
}

pub(crate) fn disconnect(number: u64) -> Question {
    Question::Disconnect { caller: caller("", number), code: 1000, reason: "bye".into() }
}

pub(crate) fn keys(url: &str, kid: &str) -> Question {
    Question::Keys { url: url.into(), kid: kid.into() }
}
