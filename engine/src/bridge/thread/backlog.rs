//! What the servers of a link are to be asked, each in order.

use std::collections::VecDeque;

use crate::bridge::Command;

/// Pipelines of commands that are under way at a server. An answer is at most as long as what Redis is asked for at once, 256 KiB or one publication.
const PIPELINES_MAX: usize = 16;

/// Of one server.
#[derive(Default)]
struct Own {
    /// Commands that were not sent yet.
    waiting: VecDeque<(u64, Command)>,
    /// Pipelines of commands that are under way.
    pipelines: usize,
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Backlog {
    servers: Vec<Own>,
    waiting: usize,
    bytes: usize,
}

impl Backlog {
    /// For so many servers.
    pub(super) fn new(servers: usize) -> Backlog {
        let servers = std::iter::repeat_with(Own::default).take(servers).collect();
        Backlog { servers, ..Backlog::default() }
    }

    /// How many servers there are.
    pub(super) fn servers(&self) -> usize {
        self.servers.len()
    }

    /// Commands that were not sent yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Bytes of publications in these.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.bytes
    }

    /// A server is to be asked this, behind all else.
    pub(super) fn push(&mut self, at: usize, number: u64, command: Command) {
        let Some(own) = self.servers.get_mut(at) else { return };
        self.waiting += 1;
        self.bytes += bytes_of(&command);
        own.waiting.push_back((number, command));
    }

    /// Whether something waits for a server that takes another pipeline.
    pub(super) fn is_due(&self, at: usize) -> bool {
        self.servers
            .get(at)
            .is_some_and(|own| own.pipelines < PIPELINES_MAX && !own.waiting.is_empty())
    }

    /// What a server is to be asked next, and its bytes of publications, if it fits with these.
    pub(super) fn take(
        &mut self,
        at: usize,
        fits: impl FnOnce(&Command, usize) -> bool,
    ) -> Option<(u64, Command, usize)> {
        let own = self.servers.get_mut(at)?;
        let (_, first) = own.waiting.front()?;
        let bytes = bytes_of(first);
        if !fits(first, bytes) {
            return None;
        }
        let (number, command) = own.waiting.pop_front()?;
        self.waiting -= 1;
        self.bytes -= bytes;
        Some((number, command, bytes))
    }

    /// A pipeline is under way.
    pub(super) fn sent(&mut self, at: usize) {
        if let Some(own) = self.servers.get_mut(at) {
            own.pipelines += 1;
        }
    }

    /// One is answered.
    pub(super) fn answered(&mut self, at: usize) {
        if let Some(own) = self.servers.get_mut(at) {
            own.pipelines -= 1;
        }
    }

    /// All that was not sent.
    pub(super) fn into_waiting(self) -> impl Iterator<Item = Command> {
        self.servers.into_iter().flat_map(|own| own.waiting).map(|(_, command)| command)
    }
}

/// Bytes of publications in a command.
pub(super) fn bytes_of(command: &Command) -> usize {
    match command {
        Command::Append(append) => append.items.iter().map(|item| item.bytes.len()).sum(),
        Command::Share { bytes, .. }
        | Command::Message(_, bytes)
        | Command::Keep { errand: bytes, .. } => bytes.len(),
        Command::Subscribe(_)
        | Command::Unsubscribe(_)
        | Command::Read(_)
        | Command::AllKept { .. } => 0,
    }
}
