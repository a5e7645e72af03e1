//! Tells the application that connections have ended, in their order, again and again for a minute; and who comes to
//! channels and leaves them, once each time a shard says so.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::event::{self, Stamp};
use super::failure::Failure;
use super::figures::{Hook, Outcome};
use super::order::Turn;
use super::waiting::Waiting;
use super::{Hooks, answers};
use crate::message::{Heard, News, Question};

/// How long it is tried.
const TRIED_FOR: Duration = Duration::from_secs(60);
/// Before the first retry, without what chance adds, and the longest.
const BACKOFF: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

impl Hooks {
    /// Tells who comes and goes. Whoever asks for it tells it again where that can be of use.
    pub(super) async fn tell_presence(&self, news: &News) -> Heard {
        let settings = self.settings();
        let Some(endpoint) = settings.endpoint(Hook::Presence) else { return Heard::Never };
        let Some(event) = event::presence(news) else { return Heard::Never };
        let deadline = Instant::now() + settings.timeout;
        match endpoint.attempt(&event, &mut None, deadline, answers::disconnect).await {
            Ok(_) => Heard::Yes,
            Err(Failure::BadAnswer(_) | Failure::TooLarge) => {
                self.figures.of(Hook::Presence).count(Outcome::Dropped);
                Heard::Never
            }
            Err(_) => Heard::NotYet,
        }
    }

    /// Tells of one. It begins when all that was asked before about the same user is answered, and nobody waits for
    /// it: who comes back at once is not kept waiting by an application that is slow to hear of the end.
    pub(super) async fn tell(
        &self,
        question: Question,
        stamp: Stamp,
        mut turn: Turn,
        waiting: Waiting,
    ) {
        let deadline = Instant::now() + TRIED_FOR;
        turn.comes().await;
        drop(turn);
        let mut closing = self.closing.subscribe();
        let mut backoff = BACKOFF;
        let mut failure = Failure::NotConfigured;
        loop {
            let settings = self.settings();
            // It may have been taken out of the configuration.
            let Some(endpoint) = settings.endpoint(Hook::Disconnect) else { break };
            let Some(event) = event::event(&question, &stamp, &[]) else { break };
            let told = endpoint.attempt(&event, &mut None, deadline, answers::disconnect).await;
            match told {
                Ok(_) => return,
                Err(why) => failure = why,
            }
            let pause = backoff.mul_f64(1.0 + rand::random::<f64>());
            backoff = (backoff * 2).min(BACKOFF_MAX);
            let hopeless = matches!(failure, Failure::BadAnswer(_) | Failure::TooLarge);
            if hopeless || Instant::now() + pause >= deadline {
                break;
            }
            // Nothing is retried once the server shuts down.
            if timeout(pause, closing.wait_for(|&closing| closing)).await.is_ok() {
                break;
            }
        }
        drop(waiting);
        self.figures.of(Hook::Disconnect).count(Outcome::Dropped);
        if let Some(endpoint) = self.settings().endpoint(Hook::Disconnect) {
            endpoint.complain(&failure);
        }
    }
}
