//! Publishing what was dropped: what is on one channel one after the other, and what is on others meanwhile.

use std::collections::HashSet;

use ringfeed_protocol::ChannelName;

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
