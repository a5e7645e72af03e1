//! What the thread has to do with other programs' channels: it counts, and complains seldom.

use std::time::Instant;

use bytes::Bytes;
use redis::Pipeline;
use ringfeed_protocol::ChannelName;

use super::Runner;
use crate::bridge::foreign::Heard;
use crate::clock::Clock;

impl Runner {
    /// Tells other programs what other nodes are told with these bytes. Returns how many commands that takes.
    pub(super) fn add_copies(
        &self,
        pipeline: &mut Pipeline,
        channel: &ChannelName,
        shared: &Bytes,
    ) -> usize {
        let copies = self.foreign.copies(channel, shared, Clock::Machine.unix_ms());
        self.shared.redis.foreign_out.add(copies.len() as u64);
        for copy in &copies {
            pipeline.cmd("PUBLISH").arg(&copy.name).arg(&copy.payload[..]);
        }
        copies.len()
    }

    /// Takes what another program may have published. Whether it is on a channel that is listened to.
    pub(super) fn foreign_message(&mut self, name: &[u8], payload: &Bytes) -> bool {
        let config = self.shared.config();
        let figures = &self.shared.redis;
        match self.foreign.heard(name, payload, &config, Clock::Machine.unix_ms()) {
            Some(Ok(Heard::Post(post))) => {
                figures.foreign_in.add(1);
                self.bridge.foreign(*post);
            }
            Some(Ok(Heard::Copy)) => {}
            Some(Err(why)) => {
                figures.foreign_refused.add(1);
                if let Some(times) = self.foreign_refused.count(Instant::now()) {
                    let name = String::from_utf8_lossy(name);
                    tracing::warn!(
                        times,
                        "what was published in Redis on {name:?} is not published here: {why}"
                    );
                }
            }
            None => return false,
        }
        true
    }
}
