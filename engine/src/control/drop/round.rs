//! Publishing what was dropped: what is on one channel one after the other, and what is on others meanwhile.

use std::collections::HashSet;
use std::time::Duration;

use ringfeed_protocol::ChannelName;
use tokio::time::Instant;

use super::longer;
use crate::control::State;
use crate::control::error::ApiError;
use crate::control::publish::publish_all;
use crate::message::Post;

/// A message that is to be published.
#[derive(Debug)]
pub(super) struct Item {
    /// By which it is known where it was dropped.
    pub(super) name: String,
    /// On one or more channels, the same for each.
    pub(super) posts: Vec<Post>,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Became {
    /// It was published, now or, as its key says, before.
    Published { duplicate: bool },
    /// What is in the way may pass: whether it was published is not known, but its key is.
    Kept(ApiError),
    /// It never is.
    Refused(ApiError),
}

/// Channels that take nothing at present: what is behind on them waits, too. Until they are tried again, later each time, what
/// was left on them is not looked at.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) channels: HashSet<ChannelName>,
    until: Option<Instant>,
    pause: Duration,
}

impl Held {
    /// Before a look: whether they are tried again, and so everything that is there is looked at.
    pub(super) fn begins(&mut self) -> bool {
        let begins = self.until.is_none_or(|until| until <= Instant::now());
        if begins {
            (self.until, self.channels) = (None, HashSet::new());
        }
        begins
    }

    /// Behind a look.
    pub(super) fn ends(&mut self, interval: Duration) {
        if self.channels.is_empty() {
            *self = Held::default();
        } else if self.until.is_none() {
            self.pause = longer(self.pause, interval);
            self.until = Some(Instant::now() + self.pause);
        }
    }
}

/// Those of some items that may be published at once: the first of each channel, unless it is one of the `held`, which take
/// nothing at present. What is held is left out; the others are left in `items`.
pub(super) fn next_round(items: &mut Vec<Item>, held: &HashSet<ChannelName>) -> Vec<Item> {
    let (mut round, mut rest, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    for item in items.drain(..) {
        let channels = || item.posts.iter().map(|post| &post.channel);
        if channels().any(|channel| held.contains(channel)) {
            continue;
        }
        let is_first = channels().all(|channel| !seen.contains(channel));
        seen.extend(channels().cloned());
        if is_first { round.push(item) } else { rest.push(item) }
    }
    *items = rest;
    round
}

/// Publishes the items of a round; what came of each, by its name. Channels that take nothing now are `held` then.
pub(super) async fn publish_round(
    state: &State,
    round: Vec<Item>,
    held: &mut HashSet<ChannelName>,
) -> Vec<(String, Became)> {
    let posts = round.iter().flat_map(|item| item.posts.iter().cloned()).collect();
    let mut outcomes = publish_all(state, posts).await.into_iter();
    let mut all = Vec::with_capacity(round.len());
    for Item { name, posts } in round {
        let mut became = Became::Published { duplicate: false };
        for (post, outcome) in posts.iter().zip(&mut outcomes) {
            match (outcome, &mut became) {
                (Ok(receipt), Became::Published { duplicate }) => *duplicate |= receipt.duplicate,
                (Err(e), _) if e.status().is_server_error() => {
                    held.insert(post.channel.clone());
                    became = Became::Kept(e);
                }
                (Err(e), Became::Published { .. }) => became = Became::Refused(e),
                (Ok(_) | Err(_), _) => {}
            }
        }
        all.push((name, became));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_held_is_tried_again_later_each_time() {
        let (interval, channel) = (Duration::from_secs(1), ChannelName::new("a").unwrap());
        let mut held = Held::default();
        for pause in [1, 2, 4, 8, 10, 10] {
            assert!(held.begins() && held.channels.is_empty());
            held.channels.insert(channel.clone());
            for _ in 0..pause {
                held.ends(interval);
                assert!(!held.begins() && held.channels.contains(&channel));
                tokio::time::advance(interval).await;
            }
        }
        assert!(held.begins());
        held.ends(interval);
        assert!(held.begins(), "nothing is held");
    }
}
