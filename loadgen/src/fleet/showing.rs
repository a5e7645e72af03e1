//! Tokens that connections show while they are open.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use ringfeed_protocol::frame::Opcode;

use super::{Fleet, State};

/// When which connection shows which of its later tokens.
pub(super) type ToShow = BinaryHeap<Reverse<(Instant, usize, usize)>>;

impl Fleet {
    /// A connection is open: what it is to show later is due at times counted from now.
    pub(super) fn plan_to_show(&mut self, at: usize) {
        let later = &self.plans[self.conns[at].plan as usize].shown.later;
        let due = (0..).zip(later).map(|(which, (after, _))| (Instant::now() + *after, at, which));
        self.to_show.extend(due.map(Reverse));
    }

    /// Shows what is due.
    pub(super) fn show(&mut self) {
        while let Some(&Reverse((due, at, which))) = self.to_show.peek()
            && due <= Instant::now()
        {
            self.to_show.pop();
            let conn = &self.conns[at];
            if !matches!(conn.state, State::Open) {
                continue;
            }
            let Some((_, token)) = self.plans[conn.plan as usize].shown.later.get(which) else {
                continue;
            };
            let command = format!("{{\"type\":\"auth\",\"id\":3,\"token\":\"{token}\"}}");
            self.tell(at, Opcode::Text, command.as_bytes());
        }
    }
}
