//! What may be published on a channel, whoever publishes it: how long it may be, and what JSON it has to be. Owns no
//! state and knows no threads: shards ask for clients, the control thread for the API.

mod document;
mod schema;

use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::{ChannelName, Refused};

pub use schema::Schema;

/// Longest publication that a schema is held against: how long that takes grows with it, and shards do it.
pub const CHECKED_BYTES_MAX: u32 = 65_536;

/// What holds for publications of a channel whose rule says anything of them.
#[derive(Debug)]
pub struct Content {
    /// Bytes of a payload; 0 is no limit.
    pub bytes_max: u32,
    /// What JSON it has to be.
    pub schema: Option<Schema>,
}

impl Content {
    /// Whether a payload may be published on `channel`, which this holds for.
    pub fn check(
        &self,
        channel: &ChannelName,
        kind: PayloadKind,
        bytes: &[u8],
    ) -> Result<(), Refused> {
        let most = self.bytes_max;
        if most > 0 && bytes.len() > most as usize {
            let channel = channel.clone();
            return Err(Refused::MessageTooLong { channel, bytes: bytes.len(), most });
        }
        match &self.schema {
            None => Ok(()),
            Some(_) if kind != PayloadKind::Json => {
                Err(Refused::invalid_message(channel, "it is not JSON ('data')"))
            }
            Some(schema) => {
                schema.check(bytes).map_err(|why| Refused::invalid_message(channel, why))
            }
        }
    }
}

#[cfg(test)]
mod tests;
