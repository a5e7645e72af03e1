//! Which connections there are to be: what each speaks, and which channels it subscribes to.

use ringfeed_protocol::{Dialect, Lane};

use crate::args::{Common, DialectArg, InterestArg, Traffic};
use crate::interest::{Draws, Interest};
use crate::tokens::Shown;

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speech {
    Ringfeed,
    Raw,
    /// What the command line says; see [`crate::templates`].
    Templates,
}

impl Speech {
    /// What its frames look like. Of templates it is a guess: messages in text frames of their own.
    /// What looks different is recognised by its stamps, at a higher cost.
    pub(crate) fn lane(self) -> Lane {
        match self {
            Speech::Ringfeed => Lane::RINGFEED,
            Speech::Raw | Speech::Templates => Lane::RAW,
        }
    }

    pub(crate) fn dialect(self) -> Option<Dialect> {
        match self {
            Speech::Ringfeed => Some(Dialect::Ringfeed),
            Speech::Raw => Some(Dialect::Raw),
            Speech::Templates => None,
        }
    }
}

/// One connection that a fleet is to open.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) speech: Speech,
    /// Places in the list of channels, ascending.
    pub(crate) channels: Vec<u32>,
    /// Number over all threads.
    pub(crate) number: u32,
    /// Reads nothing more once its subscriptions stand.
    pub(crate) stalled: bool,
    pub(crate) shown: Shown,
}

/// What this run draws channels with.
pub(crate) fn drawing(traffic: &Traffic, channels: u32, draws: Draws) -> Interest {
    Interest::new(traffic.interest, traffic.seed, channels, draws)
}

/// Which connection speaks what and subscribes to which channels. Where both dialects are wanted,
/// half of the connections speak each, and blocks are dealt out in both alike.
pub(crate) fn plans(
    common: &Common,
    traffic: &Traffic,
    dialect: DialectArg,
    channels: u32,
) -> Vec<Plan> {
    let each = match common.subscriptions {
        0 => channels,
        some => some.min(channels),
    };
    let mut interest = drawing(traffic, channels, Draws::Subscriptions);
    let mut before = Vec::new();
    (0..common.conns)
        .map(|number| {
            let speech = match dialect {
                _ if common.templates.are_used(&common.url) => Speech::Templates,
                DialectArg::Ringfeed => Speech::Ringfeed,
                DialectArg::Raw => Speech::Raw,
                DialectArg::Both if number % 2 == 0 => Speech::Ringfeed,
                DialectArg::Both => Speech::Raw,
            };
            let pairs = dialect == DialectArg::Both && traffic.interest == InterestArg::Blocks;
            if !pairs || number % 2 == 0 {
                before = interest.channels(each);
            }
            let stalled = number < traffic.stalled;
            Plan { speech, channels: before.clone(), number, stalled, shown: Shown::default() }
        })
        .collect()
}
