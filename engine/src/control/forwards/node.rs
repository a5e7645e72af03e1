//! One node that is told, and what waits for it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use bytes::Bytes;
use reqwest::Url;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{AGE_MAX, Figures, WAITING_BYTES_MAX};
use crate::control::hooks::failure::Failure;
use crate::registry::names::NodeUrl;
use crate::seldom::Seldom;

/// Bytes that may wait for one node, with what they take beside.
const QUEUE_BYTES_MAX: usize = 8 << 20;
const ITEM_BYTES: usize = 64;
/// Bytes of an id.
const ID_BYTES_MAX: usize = 255;

/// Where a node takes broadcasts.
pub(super) fn broadcasts(url: &NodeUrl) -> Option<Url> {
    let mut to = Url::parse(url.as_str()).ok()?;
    let scheme = if url.has_tls() { "https" } else { "http" };
    to.set_scheme(scheme).ok()?;
    let path = format!("{}/broadcast", to.path().trim_end_matches('/'));
    to.set_path(&path);
    Some(to)
}

/// See the module's description.
pub(super) struct Node {
    url: NodeUrl,
    to: Url,
    id: RefCell<Option<String>>,
    /// Each until when it is worth telling. The first stays until it was told.
    queue: RefCell<VecDeque<(Bytes, Instant)>>,
    bytes: Cell<usize>,
    some: Notify,
    /// It shares channels with this one, and hears what is published here by their own links.
    linked: Cell<bool>,
    /// It did not take the last one.
    failing: Cell<bool>,
    log: RefCell<Seldom>,
}

impl Node {
    pub(super) fn new(url: NodeUrl, to: Url) -> Node {
        Node {
            url,
            to,
            id: RefCell::default(),
            queue: RefCell::default(),
            bytes: Cell::new(0),
            some: Notify::new(),
            linked: Cell::new(false),
            failing: Cell::new(false),
            log: RefCell::default(),
        }
    }

    pub(super) fn to(&self) -> &Url {
        &self.to
    }

    pub(super) fn is_at(&self, to: &Url) -> bool {
        self.to == *to
    }

    /// Its id, if it is known, and where it is.
    pub(super) fn known(&self) -> (Option<String>, NodeUrl) {
        (self.id.borrow().clone(), self.url.clone())
    }

    /// Somebody has said its id.
    pub(super) fn called(&self, id: Option<String>) {
        if let Some(id) = id.filter(|id| id.len() <= ID_BYTES_MAX) {
            self.id.replace(Some(id));
        }
    }

    /// Whether something may still come to its end soon.
    pub(super) fn is_under_way(&self) -> bool {
        !self.queue.borrow().is_empty() && !self.failing.get()
    }

    pub(super) fn set_linked(&self, linked: bool, figures: &Figures) {
        self.linked.set(linked);
        if linked {
            // It has all of it.
            while self.pop(figures) {}
        }
    }

    /// It is told nothing more.
    pub(super) fn clear(&self, figures: &Figures) {
        while self.pop(figures) {
            figures.lost.add(1);
        }
    }

    /// Is to be posted to it.
    pub(super) fn give(&self, body: &Bytes, figures: &Figures) {
        if self.linked.get() {
            return;
        }
        let item = body.len() + ITEM_BYTES;
        let (bytes, of_all) = (self.bytes.get() + item, figures.waiting_bytes.read() + item as u64);
        if bytes > QUEUE_BYTES_MAX || of_all > WAITING_BYTES_MAX as u64 {
            figures.lost.add(1);
            return self.complain("too much waits for it");
        }
        self.bytes.set(bytes);
        figures.waiting_bytes.set(of_all);
        self.queue.borrow_mut().push_back((body.clone(), Instant::now() + AGE_MAX));
        self.some.notify_one();
    }

    /// The first that is to be posted, which stays the first, and until when that is worth it.
    pub(super) async fn next(&self, figures: &Figures) -> (Bytes, Instant) {
        loop {
            let first = self.queue.borrow().front().cloned();
            match first {
                // One that takes what it is told, however slowly, is told all of it.
                Some((_, until)) if until <= Instant::now() && self.failing.get() => {
                    self.pop(figures);
                    figures.lost.add(1);
                    self.complain("it waited too long");
                }
                Some(first) => return first,
                None => self.some.notified().await,
            }
        }
    }

    /// The first has come to its end.
    pub(super) fn done(&self, figures: &Figures) {
        self.pop(figures);
    }

    fn pop(&self, figures: &Figures) -> bool {
        let Some((body, _)) = self.queue.borrow_mut().pop_front() else { return false };
        let bytes = body.len() + ITEM_BYTES;
        self.bytes.set(self.bytes.get() - bytes);
        let waiting = &figures.waiting_bytes;
        waiting.set(waiting.read().saturating_sub(bytes as u64));
        true
    }

    /// It was posted to, and this came back.
    pub(super) fn note(&self, answer: &Result<(u16, Vec<u8>), Failure>) {
        let was_failing = self.failing.replace(!matches!(answer, Ok((200..=299, _))));
        match answer {
            Ok((200..=299, _)) if was_failing => {
                tracing::info!(node = self.url.as_str(), "a node of wsnode takes broadcasts again");
            }
            Ok((200..=299, _)) => {}
            Ok((401, _)) => self.complain("401, it has another key than wsnode.key"),
            Ok((status, _)) => self.complain(&format!("status {status}")),
            Err(failure) => self.complain(&failure.to_string()),
        }
    }

    fn complain(&self, why: &str) {
        if let Some(times) = self.log.borrow_mut().count(Instant::now().into_std()) {
            let node = self.url.as_str();
            tracing::warn!(node, times, "a node of wsnode was not told of a broadcast: {why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn node() -> Node {
        let url: NodeUrl = "http://localhost:1".parse().unwrap();
        let to = broadcasts(&url).unwrap();
        Node::new(url, to)
    }

    #[test]
    fn broadcasts_are_taken_behind_the_url() {
        for (url, to) in [
            ("http://a:8080", "http://a:8080/broadcast"),
            ("http://a:8080/", "http://a:8080/broadcast"),
            ("https://a/old/", "https://a/old/broadcast"),
            ("ws://a:1", "http://a:1/broadcast"),
            ("wss://a", "https://a/broadcast"),
        ] {
            assert_eq!(broadcasts(&url.parse().unwrap()).unwrap().as_str(), to);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded_in_bytes_and_time_and_counted() {
        let (node, figures) = (node(), Figures::default());
        let body = Bytes::from(vec![b'x'; QUEUE_BYTES_MAX / 4]);
        (0..4).for_each(|_| node.give(&body, &figures));
        node.note(&Err(Failure::NoConnection));
        assert_eq!(figures.lost.read(), 1);
        assert_eq!(figures.waiting_bytes.read(), 3 * (body.len() + ITEM_BYTES) as u64);
        tokio::time::advance(AGE_MAX - Duration::from_secs(1)).await;
        let (first, _) = node.next(&figures).await;
        assert_eq!(first.len(), body.len());
        node.done(&figures);
        tokio::time::advance(Duration::from_secs(1)).await;
        node.give(&Bytes::from_static(b"later"), &figures);
        assert_eq!(node.next(&figures).await.0, "later");
        assert_eq!(figures.lost.read(), 3);
        node.clear(&figures);
        assert_eq!((figures.lost.read(), figures.waiting_bytes.read()), (4, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_slowly_what_it_is_told_is_told_all() {
        let (node, figures) = (node(), Figures::default());
        (0..3).for_each(|_| node.give(&Bytes::from_static(b"x"), &figures));
        for _ in 0..3 {
            tokio::time::advance(AGE_MAX).await;
            node.next(&figures).await;
            node.note(&Ok((200, Vec::new())));
            node.done(&figures);
        }
        assert_eq!(figures.lost.read(), 0);
    }

    #[test]
    fn whoever_is_linked_is_told_nothing_until_that_is_looked_at_again() {
        let (node, figures) = (node(), Figures::default());
        let give = || node.give(&Bytes::from_static(b"x"), &figures);
        give();
        node.set_linked(true, &figures);
        give();
        assert!(!node.is_under_way() && figures.waiting_bytes.read() == 0);
        node.set_linked(false, &figures);
        give();
        assert!(node.is_under_way() && figures.lost.read() == 0);
    }
}
