//! Tells the application which users come to channels that are homed here, and leave them.

use rand::Rng as _;
use ringfeed_wire::Wire;

use super::Shard;
use super::asks::Awaiting;
use crate::message::{Heard, Question};

impl<W: Wire> Shard<W> {
    /// Tells what is to be told, if nothing is being told: what has come meanwhile is told with what comes next.
    pub(super) fn tell_news(&mut self) {
        if !self.homes.news.has_news(self.work_ms) {
            return;
        }
        let hooks = &self.config.hooks;
        if hooks.presence_url.0.is_empty() {
            return self.homes.news.clear();
        }
        let most = hooks.presence_batch_max as usize;
        let news = self.homes.news.tell(most, self.rng.random(), self.clock.unix_s());
        if self.ask(Question::Presence(news), Awaiting::News).is_err() {
            self.heard_news(Heard::NotYet);
        }
    }

    /// What has become of what was told last.
    pub(super) fn heard_news(&mut self, heard: Heard) {
        let chance = self.rng.random::<f64>();
        self.homes.news.heard(heard, self.work_ms, chance);
    }
}
