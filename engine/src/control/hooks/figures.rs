//! What is counted of the hooks. Written by the control thread alone, read by whoever scrapes.

use std::time::Duration;

use crate::counters::{ByReason, Count, Distribution, Histogram, Reason};

/// A reason to ask outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Whether a request may become a connection.
    Connect,
    /// Whether a session may subscribe.
    Subscribe,
    /// Whether a session may publish.
    Publish,
    /// What to reply to a message.
    Message,
    /// That a connection has ended.
    Disconnect,
    /// Which users come to channels and leave them.
    Presence,
    /// An issuer's keys.
    Keys,
    /// Methods that are answered over HTTP.
    Rpc,
}

impl Hook {
    /// All there are.
    pub const ALL: [Hook; 8] = [
        Hook::Connect,
        Hook::Subscribe,
        Hook::Publish,
        Hook::Message,
        Hook::Disconnect,
        Hook::Presence,
        Hook::Keys,
        Hook::Rpc,
    ];

    /// Value of the label `hook`, and of `event` in a request.
    pub fn label(self) -> &'static str {
        match self {
            Hook::Connect => "connect",
            Hook::Subscribe => "subscribe",
            Hook::Publish => "publish",
            Hook::Message => "message",
            Hook::Disconnect => "disconnect",
            Hook::Presence => "presence",
            Hook::Keys => "keys",
            Hook::Rpc => "rpc",
        }
    }
}

/// What came of a request, or of a question for which none was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is yes, or whatever else was asked for.
    Answered,
    /// The answer is no.
    Refused,
    /// No connection, or one that broke.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// A status that says that the application has failed, 429 or 5xx.
    Failed,
    /// An answer that means nothing: another status, no JSON, a value that is not allowed.
    BadAnswer,
    /// An answer beyond the limit.
    TooLarge,
    /// Answered from memory, without a request.
    Cached,
    /// Too many wait: answered without a request.
    Busy,
    /// The time was over before it was its turn, or hardly any was left: answered without a request that was waited for.
    Late,
    /// The breaker is open: answered without a request.
    Broken,
    /// A disconnect of which nobody was told.
    Dropped,
}

impl Reason for Outcome {
    const ALL: &'static [Outcome] = &[
        Outcome::Answered,
        Outcome::Refused,
        Outcome::Unreachable,
        Outcome::Timeout,
        Outcome::Failed,
        Outcome::BadAnswer,
        Outcome::TooLarge,
        Outcome::Cached,
        Outcome::Busy,
        Outcome::Late,
        Outcome::Broken,
        Outcome::Dropped,
    ];

    fn index(self) -> usize {
        self as usize
    }

    fn label(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Refused => "refused",
            Outcome::Unreachable => "unreachable",
            Outcome::Timeout => "timeout",
            Outcome::Failed => "failed",
            Outcome::BadAnswer => "bad_answer",
            Outcome::TooLarge => "too_large",
            Outcome::Cached => "cached",
            Outcome::Busy => "busy",
            Outcome::Late => "late",
            Outcome::Broken => "broken",
            Outcome::Dropped => "dropped",
        }
    }
}

/// Figures of one hook.
#[derive(Debug, Default)]
pub(super) struct HookFigures {
    outcomes: ByReason<Outcome>,
    /// 0 closed, 1 half open, 2 open.
    pub(super) breaker: Count,
    /// Questions that wait for others, and disconnects that were not told yet.
    pub(super) waiting: Count,
    /// Bytes of them.
    pub(super) waiting_bytes: Count,
    request_us: Histogram,
}

impl HookFigures {
    pub(super) fn count(&self, outcome: Outcome) {
        self.outcomes.add(outcome, 1);
    }

    /// A request has ended so.
    pub(super) fn requested(&self, outcome: Outcome, took: Duration) {
        self.count(outcome);
        self.request_us.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
}

/// Figures of all hooks, for other threads to read.
#[derive(Debug, Default)]
pub struct Figures {
    hooks: [HookFigures; Hook::ALL.len()],
}

/// Figures of one hook at some moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Which.
    pub hook: Hook,
    /// How often each outcome came.
    pub outcomes: Vec<(Outcome, u64)>,
    /// 0 closed, 1 half open, 2 open.
    pub breaker: u64,
    /// Questions that wait for others, and disconnects that were not told yet.
    pub waiting: u64,
    /// Bytes of them.
    pub waiting_bytes: u64,
    /// From sending a request to the last byte of its answer.
    pub request_us: Distribution,
}

impl Snapshot {
    /// How often an outcome came.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes.iter().find(|(of, _)| *of == outcome).map_or(0, |&(_, count)| count)
    }
}

impl Figures {
    pub(super) fn of(&self, hook: Hook) -> &HookFigures {
        // As many as there are hooks.
        &self.hooks[hook as usize]
    }

    /// What they are now.
    pub fn snapshot(&self) -> Vec<Snapshot> {
        let each = Hook::ALL.iter().zip(&self.hooks);
        let snapshot = each.map(|(&hook, figures)| Snapshot {
            hook,
            outcomes: figures.outcomes.each().collect(),
            breaker: figures.breaker.read(),
            waiting: figures.waiting.read(),
            waiting_bytes: figures.waiting_bytes.read(),
            request_us: figures.request_us.read(),
        });
        snapshot.collect()
    }
}
