//! What the mesh counts. Written by its own thread alone, read by the control thread; what is counted of the registry's rules is
//! written by that.

use crate::counters::{Count, Kind};

/// See the module's description.
#[derive(Debug, Default)]
pub struct Figures {
    /// Whether this node is one of those that go by the same view: 1 or 0.
    pub up: Count,
    /// Whether it was ever one, with all that other nodes had to hand over to it: 1 or 0.
    pub joined: Count,
    /// The number of the view by which it goes.
    pub view: Count,
    /// Members of that view.
    pub members: Count,
    /// Nodes that it is linked with.
    pub links: Count,
    /// Links that were made.
    pub connects: Count,
    /// Calls that were refused: they have not shown the key, or were no node's.
    pub refused: Count,
    /// Channels that it keeps for all.
    pub channels: Count,
    /// Bytes of publications in their histories.
    pub bytes: Count,
    /// Channels that were given to other keepers, …
    pub given: Count,
    /// … that were given to this one, …
    pub taken: Count,
    /// … and that had to be and begin another life nevertheless.
    pub lost: Count,
    /// Frames that came from other nodes.
    pub frames_in: Count,
    /// Bytes of them.
    pub bytes_in: Count,
    /// Frames that were sent to them.
    pub frames_out: Count,
    /// Bytes of them.
    pub bytes_out: Count,
    /// What was asked of keepers and is not answered yet.
    pub pending: Count,
    /// Publications on bridged channels that were given up because the node was alone for too long.
    pub shared_lost: Count,
    /// Rules of channels that hold and are the registry's.
    pub rules: Count,
    /// The version of its list of which these are.
    pub rules_version: Count,
    /// Lists of it that were set aside, since something in them is wrong.
    pub rules_refused: Count,
    /// Whether the last one was: 1 or 0.
    pub rules_set_aside: Count,
}

impl Figures {
    /// Whether this node is one of those that go by the same view.
    pub fn is_up(&self) -> bool {
        self.up.read() == 1
    }

    /// Whether this node has come in among the others.
    pub fn has_joined(&self) -> bool {
        self.joined.read() == 1
    }

    /// Each with its name and what it is.
    pub fn each(&self) -> [(&'static str, &'static str, Kind, u64); 21] {
        [
            ("up", "Whether this node goes by the view that counts.", Kind::Gauge, self.up.read()),
            ("view", "Number of the view by which it goes.", Kind::Gauge, self.view.read()),
            ("members", "Members of that view.", Kind::Gauge, self.members.read()),
            ("links", "Nodes that it is linked with.", Kind::Gauge, self.links.read()),
            ("connects", "Links that were made.", Kind::Counter, self.connects.read()),
            ("refused", "Calls that have not shown the key.", Kind::Counter, self.refused.read()),
            ("channels", "Channels kept for all nodes.", Kind::Gauge, self.channels.read()),
            ("bytes", "Bytes of their histories.", Kind::Gauge, self.bytes.read()),
            (
                "given",
                "Channels that other nodes were given to keep, with history and keys.",
                Kind::Counter,
                self.given.read(),
            ),
            (
                "taken",
                "Channels that this node was given to keep.",
                Kind::Counter,
                self.taken.read(),
            ),
            (
                "lost",
                "Channels that changed their keeper and begin another life nevertheless.",
                Kind::Counter,
                self.lost.read(),
            ),
            ("frames_in", "Frames from other nodes.", Kind::Counter, self.frames_in.read()),
            ("bytes_in", "Bytes of them.", Kind::Counter, self.bytes_in.read()),
            ("frames_out", "Frames to other nodes.", Kind::Counter, self.frames_out.read()),
            ("bytes_out", "Bytes of them.", Kind::Counter, self.bytes_out.read()),
            ("pending", "Questions to keepers without answer.", Kind::Gauge, self.pending.read()),
            (
                "shared_lost",
                "Publications on bridged channels that were given up.",
                Kind::Counter,
                self.shared_lost.read(),
            ),
            ("rules", "Rules of channels that are the registry's.", Kind::Gauge, self.rules.read()),
            (
                "rules_version",
                "Version of the registry's list of channels that holds.",
                Kind::Gauge,
                self.rules_version.read(),
            ),
            (
                "rules_refused",
                "Lists of channels of the registry that were set aside, since something in them is wrong.",
                Kind::Counter,
                self.rules_refused.read(),
            ),
            (
                "rules_set_aside",
                "Whether the registry's list of channels is set aside, and an earlier one holds; the log says why.",
                Kind::Gauge,
                self.rules_set_aside.read(),
            ),
        ]
    }
}
