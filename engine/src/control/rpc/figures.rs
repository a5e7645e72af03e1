//! What is counted of calls. Written by the control thread alone, read by whoever scrapes.

use ringfeed_protocol::{CallError, ErrorCode};

use super::methods::Behind;
use crate::counters::{ByReason, Count, Reason};

/// What is behind a method that was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The engine itself.
    Builtin,
    /// A database.
    Sql,
    /// An application.
    Http,
    /// There is no such method, or the caller may not call it.
    None,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Builtin, Kind::Sql, Kind::Http, Kind::None];

    pub(super) fn of(behind: &Behind) -> Kind {
        match behind {
            Behind::Builtin(_) => Kind::Builtin,
            Behind::Sql(_) => Kind::Sql,
            Behind::Http(_) => Kind::Http,
        }
    }

    /// Value of the label `kind`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Kind::Builtin => "builtin",
            Kind::Sql => "sql",
            Kind::Http => "http",
            Kind::None => "none",
        }
    }
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered,
    Unknown,
    Forbidden,
    BadParams,
    TimedOut,
    Unavailable,
    Failed,
}

impl Outcome {
    pub(super) fn of<T>(result: &Result<T, CallError>) -> Outcome {
        match result {
            Ok(_) => Outcome::Answered,
            Err(CallError::Unknown { .. }) => Outcome::Unknown,
            Err(CallError::Forbidden { .. }) => Outcome::Forbidden,
            Err(CallError::BadParams { .. }) => Outcome::BadParams,
            Err(CallError::TimedOut) => Outcome::TimedOut,
            Err(CallError::Unavailable { .. }) => Outcome::Unavailable,
            Err(CallError::Failed { .. }) => Outcome::Failed,
        }
    }
}

impl Reason for Outcome {
    const ALL: &'static [Outcome] = &[
        Outcome::Answered,
        Outcome::Unknown,
        Outcome::Forbidden,
        Outcome::BadParams,
        Outcome::TimedOut,
        Outcome::Unavailable,
        Outcome::Failed,
    ];

    fn index(self) -> usize {
        self as usize
    }

    fn label(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Unknown => ErrorCode::UnknownMethod.as_str(),
            Outcome::Forbidden => ErrorCode::Forbidden.as_str(),
            Outcome::BadParams => ErrorCode::BadParams.as_str(),
            Outcome::TimedOut => ErrorCode::TimedOut.as_str(),
            Outcome::Unavailable => ErrorCode::Unavailable.as_str(),
            Outcome::Failed => ErrorCode::Failed.as_str(),
        }
    }
}

/// Figures of one kind of methods.
#[derive(Debug, Default)]
struct KindFigures {
    outcomes: ByReason<Outcome>,
    under_way: Count,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    kinds: [KindFigures; Kind::ALL.len()],
}

impl Figures {
    fn of(&self, kind: Kind) -> &KindFigures {
        // As many as there are kinds.
        &self.kinds[kind as usize]
    }

    pub(super) fn begin(&self, kind: Kind) {
        self.of(kind).under_way.add(1);
    }

    pub(super) fn end(&self, kind: Kind, outcome: Outcome) {
        let of = self.of(kind);
        of.under_way.set(of.under_way.read().saturating_sub(1));
        of.outcomes.add(outcome, 1);
    }

    /// Each kind, with its calls under way and how often each outcome came.
    pub(crate) fn each(&self) -> impl Iterator<Item = (Kind, u64, Vec<(Outcome, u64)>)> + '_ {
        Kind::ALL.iter().map(|&kind| {
            let of = self.of(kind);
            (kind, of.under_way.read(), of.outcomes.each().collect())
        })
    }
}
