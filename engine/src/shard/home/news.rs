//! What the application is to be told of users who come to channels and leave them: in order, in one request at a time.
//! What has not been told and comes to nothing is never told; what is too much to wait is given up, and that is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringfeed_protocol::{ChannelName, UserId};

use crate::message::{Change, Heard, News};

/// Before something is told again for the first time, and at most, without what chance adds.
const BACKOFF_MS: u64 = 200;
const BACKOFF_MAX_MS: u64 = 10_000;

/// See the module's description.
#[derive(Debug)]
pub(in crate::shard) struct NewsQueue {
    /// By number, in the order in which they came.
    waiting: BTreeMap<u64, Change>,
    /// The number of each.
    numbers: BTreeMap<(ChannelName, UserId), u64>,
    next: u64,
    /// So many may wait.
    most: usize,
    /// Given up, and not told yet.
    lost: u64,
    /// Told, and perhaps not heard.
    told: Option<Arc<News>>,
    /// It is being told.
    under_way: bool,
    /// Not before this.
    again_ms: u64,
    backoff_ms: u64,
}

impl NewsQueue {
    pub(in crate::shard) fn new(most: usize) -> NewsQueue {
        NewsQueue {
            waiting: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next: 0,
            most,
            lost: 0,
            told: None,
            under_way: false,
            again_ms: 0,
            backoff_ms: BACKOFF_MS,
        }
    }

    /// So many may wait from now on.
    pub(in crate::shard) fn reconfigure(&mut self, most: usize) {
        self.most = most;
        self.bound();
    }

    /// Changes that wait, also those that are being told.
    pub(in crate::shard) fn len(&self) -> usize {
        self.waiting.len() + self.told.as_ref().map_or(0, |news| news.changes.len())
    }

    /// Something has changed.
    pub(super) fn add(&mut self, change: Change) {
        let key = (change.channel.clone(), change.user.clone());
        // Who has come and was not told of has not come. With several nodes the same may be said twice.
        let known = self.numbers.get(&key).copied();
        if let Some(before) = known.and_then(|number| self.waiting.get_mut(&number)) {
            if before.joined == change.joined {
                *before = change;
                return;
            }
            self.waiting.remove(&known.unwrap_or_default());
            self.numbers.remove(&key);
            return;
        }
        self.numbers.insert(key, self.next);
        self.waiting.insert(self.next, change);
        self.next += 1;
        self.bound();
    }

    fn bound(&mut self) {
        while self.waiting.len() > self.most {
            self.lost += u64::from(self.take_first().is_some());
        }
    }

    fn take_first(&mut self) -> Option<Change> {
        let (_, change) = self.waiting.pop_first()?;
        self.numbers.remove(&(change.channel.clone(), change.user.clone()));
        Some(change)
    }

    /// Nobody is to be told any more.
    pub(in crate::shard) fn clear(&mut self) {
        if self.len() > 0 || self.lost > 0 {
            let (next, under_way) = (self.next, self.under_way);
            *self = NewsQueue { next, under_way, ..NewsQueue::new(self.most) };
        }
    }

    /// Whether there is something to be told now.
    pub(in crate::shard) fn has_news(&self, now_ms: u64) -> bool {
        let any = self.told.is_some() || !self.waiting.is_empty() || self.lost > 0;
        any && !self.under_way && now_ms >= self.again_ms
    }

    /// What is to be told next, up to so many changes: under this id, unless it was told before.
    pub(in crate::shard) fn tell(&mut self, most: usize, id: u128, unix_s: u64) -> Arc<News> {
        self.under_way = true;
        if let Some(told) = &self.told {
            return told.clone();
        }
        let changes = std::iter::from_fn(|| self.take_first()).take(most).collect();
        let lost = std::mem::take(&mut self.lost);
        self.told.insert(Arc::new(News { id, unix_s, lost, changes })).clone()
    }

    /// What has become of it. `chance` is up to 1.
    pub(in crate::shard) fn heard(&mut self, heard: Heard, now_ms: u64, chance: f64) {
        self.under_way = false;
        if heard == Heard::Yes {
            (self.told, self.again_ms, self.backoff_ms) = (None, 0, BACKOFF_MS);
            return;
        }
        if let Some(never) = self.told.take_if(|_| heard == Heard::Never) {
            self.lost += never.lost + never.changes.len() as u64;
        }
        // Less than a minute.
        self.again_ms = now_ms + (self.backoff_ms as f64 * (1.0 + chance)) as u64;
        self.backoff_ms = (self.backoff_ms * 2).min(BACKOFF_MAX_MS);
    }

    /// Panics if what is counted is not what is there.
    pub(super) fn check(&self) {
        let key = |own: &Change| (own.channel.clone(), own.user.clone());
        let listed = self.waiting.iter().map(|(number, own)| (key(own), *number));
        assert_eq!(listed.collect::<BTreeMap<_, _>>(), self.numbers, "each change is listed once");
        assert!(self.waiting.len() <= self.most, "no more wait than may");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfeed_protocol::event::Epoch;

    fn change(user: &str, joined: bool) -> Change {
        Change {
            channel: ChannelName::new("c").unwrap(),
            epoch: Epoch(1),
            user: UserId::new(user).unwrap(),
            joined,
            identity: Arc::default(),
        }
    }

    fn add(queue: &mut NewsQueue, user: &str, joined: bool) {
        queue.add(change(user, joined));
        queue.check();
    }

    fn shown(news: &News) -> Vec<String> {
        let sign = |own: &Change| if own.joined { '+' } else { '-' };
        news.changes.iter().map(|own| format!("{}{}", sign(own), own.user)).collect()
    }

    #[test]
    fn what_comes_to_nothing_is_not_told_and_the_rest_in_order() {
        let mut queue = NewsQueue::new(10);
        assert!(!queue.has_news(0));
        for (user, joined) in [
            ("ann", true),
            ("bob", true),
            ("cleo", true),
            ("bob", false),
            ("ann", false),
            ("ann", true),
        ] {
            add(&mut queue, user, joined);
        }
        assert!(queue.has_news(0) && queue.len() == 2);
        let news = queue.tell(10, 7, 1);
        assert_eq!((shown(&news), news.lost), (vec!["+cleo".into(), "+ann".into()], 0));
        assert!(!queue.has_news(0), "one at a time");
        // What is being told is not taken back.
        add(&mut queue, "ann", false);
        queue.heard(Heard::Yes, 0, 0.0);
        assert_eq!(shown(&queue.tell(10, 8, 1)), ["-ann"]);
        queue.heard(Heard::Yes, 0, 0.0);
        assert!(!queue.has_news(0) && queue.len() == 0);
    }

    #[test]
    fn what_was_not_heard_is_told_again_as_it_was_and_later_each_time() {
        let mut queue = NewsQueue::new(10);
        ["a", "b", "c"].iter().for_each(|user| add(&mut queue, user, true));
        let first = queue.tell(2, 7, 1);
        let mut now_ms = 0;
        for pause_ms in [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            queue.heard(Heard::NotYet, now_ms, 0.0);
            assert!(!queue.has_news(now_ms + pause_ms - 1));
            now_ms += pause_ms;
            assert!(queue.has_news(now_ms));
            assert_eq!(queue.tell(10, 9, 2), first, "also its id");
        }
        queue.heard(Heard::Yes, now_ms, 0.0);
        assert!(queue.has_news(now_ms));
        assert_eq!(shown(&queue.tell(10, 9, 2)), ["+c"]);
    }

    #[test]
    fn what_is_given_up_is_told_of() {
        let mut queue = NewsQueue::new(2);
        ["a", "b", "c", "d"].iter().for_each(|user| add(&mut queue, user, true));
        let news = queue.tell(10, 7, 1);
        assert_eq!((shown(&news), news.lost), (vec!["+c".into(), "+d".into()], 2));
        queue.heard(Heard::Never, 0, 1.0);
        assert!(!queue.has_news(399) && queue.has_news(400), "that alone is news, too");
        let news = queue.tell(10, 8, 1);
        assert_eq!((news.changes.len(), news.lost), (0, 4));
        queue.heard(Heard::Yes, 400, 0.0);
        assert!(!queue.has_news(400));
        // Nobody is to be told any more.
        add(&mut queue, "a", true);
        queue.tell(10, 9, 1);
        queue.clear();
        queue.check();
        queue.heard(Heard::NotYet, 0, 0.0);
        assert!(!queue.has_news(10_000));
    }
}
