//! What the thread has to do with a slot that is on its way from one master of a cluster to another.
//!
//! Until all of it is over, its old master refuses commands: with ASK those of whose keys it has none, which the new one is to be
//! asked then, and with TRYAGAIN those of whose keys some are here and some there. Such a command is asked again until it is
//! done, or has waited for too long, while all others go on. Order is kept by the bridge: of a channel one command that
//! appends is under way at a time.

use std::time::{Duration, Instant};

use redis::{ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::time::sleep;

use super::backlog::bytes_of;
use super::{Done, Runner};
use crate::bridge::connection::{ask_one, is_moving};
use crate::bridge::{Command, Failed, To, script};

/// Before a server is asked again that has refused.
const PAUSE: Duration = Duration::from_millis(50);
/// Memory of commands that may wait so; further ones are refused at once.
const MOVING_BYTES_MAX: usize = 16 << 20;
/// What a command takes beside its publications.
const COMMAND_BYTES: usize = 1024;

/// A command whose slot is on the move.
pub(super) struct Moving {
    /// Which server has the slot until then.
    at: usize,
    number: u64,
    command: Command,
    /// It is waited for no longer.
    until: Instant,
}

impl Moving {
    fn bytes(&self) -> usize {
        COMMAND_BYTES + bytes_of(&self.command)
    }
}

impl Runner {
    /// A server has refused a command, since its slot is on the move.
    pub(super) fn moves(&mut self, at: usize, number: u64, command: Command, why: &RedisError) {
        let patience_ms = self.shared.config().redis.patience_ms;
        let until = Instant::now() + Duration::from_millis(patience_ms.into());
        self.ask_moving(Moving { at, number, command, until }, why);
    }

    /// One that was asked again is answered, by this server.
    pub(super) fn moved(&mut self, by: usize, moving: Moving, answer: RedisResult<Value>) {
        self.moving_bytes = self.moving_bytes.saturating_sub(moving.bytes());
        match answer {
            // The other one is to be asked no more, and who has sent here knows more by now.
            Err(e) if is_moving(&e) || (by != moving.at && is_moved(&e)) => {
                self.ask_moving(moving, &e);
            }
            Ok(mut answer) => {
                let message = script::take_message(&mut answer);
                match (moving.command, message) {
                    // Whom it was told there says nothing of how many have heard it: that is said where they listen.
                    (Command::Keep { errand, .. }, _) if by != moving.at => {
                        let told = Command::Message(To::Errands, errand);
                        self.backlog.push(moving.at, moving.number, told);
                    }
                    (Command::Append(append), Some(message)) => {
                        self.answered(by, moving.number, Ok(answer));
                        // Who follows the channel has subscribed to it there.
                        let told = Command::Message(To::Followers(append.channel), message);
                        self.backlog.push(moving.at, moving.number, told);
                    }
                    _ => self.answered(by, moving.number, Ok(answer)),
                }
            }
            Err(e) => self.answered(by, moving.number, Err(e)),
        }
    }

    fn ask_moving(&mut self, moving: Moving, why: &RedisError) {
        let Some(link) = &self.link else { return };
        let bytes = moving.bytes();
        // A read takes next to nothing, and would come again at once.
        let is_full = !matches!(moving.command, Command::Read(_))
            && self.moving_bytes + bytes > MOVING_BYTES_MAX;
        if Instant::now() >= moving.until || is_full {
            self.shared.redis.refused.add(1);
            return self.bridge.answered(moving.number, Err(Failed::Moving));
        }
        let there = link.moving_to(moving.at, why).filter(|there| *there != moving.at);
        let by = there.unwrap_or(moving.at);
        let Some(server) = link.servers.get(by) else { return };
        // Nobody has subscribed there.
        let publish = if there.is_some() { "" } else { server.publish() };
        let config = self.shared.config();
        let cmd = link.about_keys(&self.names, &config, publish, &moving.command);
        let Some(cmd) = cmd else { return };
        self.moving_bytes += bytes;
        self.shared.redis.commands.add(1);
        let commands = server.commands.clone();
        self.under_way.push(Box::pin(async move {
            if there.is_none() {
                sleep(PAUSE).await;
            }
            Done::Moved(by, Box::new(moving), ask_one(commands, cmd, there.is_some()).await)
        }));
    }
}

fn is_moved(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::Moved))
}
