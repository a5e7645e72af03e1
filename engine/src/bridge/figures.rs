//! What the bridge counts. Written by its own thread alone, read by the control thread.

use arc_swap::ArcSwap;

use super::slots::Place;
use crate::counters::{Count, Kind};

/// See the module's description.
#[derive(Debug, Default)]
pub struct Figures {
    /// Whether Redis can be reached: 1 or 0.
    pub up: Count,
    /// How often it was connected to.
    pub connects: Count,
    /// What it was asked to do, or is.
    pub commands: Count,
    /// Of these, those that it refused.
    pub refused: Count,
    /// Publications that it was given.
    pub publications_out: Count,
    /// Bytes of them.
    pub bytes_out: Count,
    /// Messages that came from it, with one or several publications each, also this node's own.
    pub messages_in: Count,
    /// Bytes of them.
    pub bytes_in: Count,
    /// Messages that were none of ringfeed's.
    pub dropped: Count,
    /// Publications of other programs that were taken, …
    pub foreign_in: Count,
    /// … and those that were not.
    pub foreign_refused: Count,
    /// Publications that other programs were told of.
    pub foreign_out: Count,
    /// Publications on bridged channels that were given up because Redis was away, or were on their way when it went.
    pub shared_lost: Count,
    /// Publications that wait on disk for Redis.
    pub spool: Count,
    /// Bytes of them, when the disk was used last.
    pub spool_bytes: Count,
    /// Publications that were kept on disk because Redis was away.
    pub spooled: Count,
    /// Where servers of a cluster are, some of those that were there when it was connected to last.
    pub(crate) servers: ArcSwap<Vec<Place>>,
}

impl Figures {
    /// Whether Redis can be reached.
    pub fn is_up(&self) -> bool {
        self.up.read() == 1
    }

    /// Each with its name and what it is.
    pub fn each(&self) -> [(&'static str, &'static str, Kind, u64); 16] {
        let Figures {
            up,
            connects,
            commands,
            refused,
            publications_out,
            bytes_out,
            messages_in,
            bytes_in,
            dropped,
            foreign_in,
            foreign_refused,
            foreign_out,
            shared_lost,
            spool,
            spool_bytes,
            spooled,
            servers: _,
        } = self;
        let gauge = |name, help, count: &Count| (name, help, Kind::Gauge, count.read());
        let counter = |name, help, count: &Count| (name, help, Kind::Counter, count.read());
        [
            gauge("up", "Whether Redis can be reached: 1 or 0.", up),
            counter("connects", "How often Redis was connected to.", connects),
            counter("commands", "Commands that Redis was given.", commands),
            counter("commands_refused", "Commands that Redis has refused.", refused),
            counter("publications_out", "Publications that Redis was given.", publications_out),
            counter("bytes_out", "Bytes of publications that Redis was given.", bytes_out),
            counter("messages_in", "Messages from Redis, this node's own with them.", messages_in),
            counter("bytes_in", "Bytes of messages from Redis.", bytes_in),
            counter("messages_dropped", "Messages from Redis that no ringfeed has sent.", dropped),
            counter(
                "foreign_in",
                "Publications of other programs that were published here.",
                foreign_in,
            ),
            counter(
                "foreign_refused",
                "Publications of other programs that could not be published here; the log says why.",
                foreign_refused,
            ),
            counter("foreign_out", "Publications that other programs were told of.", foreign_out),
            counter(
                "shared_lost",
                "Publications on bridged channels that other nodes may not have been told of, because Redis was away.",
                shared_lost,
            ),
            gauge("spool_publications", "Publications that wait on disk for Redis.", spool),
            gauge("spool_bytes", "Bytes on disk that wait for Redis.", spool_bytes),
            counter("spooled", "Publications that were kept on disk for Redis.", spooled),
        ]
    }
}
