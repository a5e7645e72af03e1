//! Publications that stand in one frame of a lane, until it ends: with the turn, when it is full, or where another frame comes.

use std::time::Instant;

use ringfeed_protocol::event::Publication;
use ringfeed_protocol::{ChannelName, Lane, Offset};

use super::{HomeLane, Pending};

/// A frame is ended at so many publications …
const PUBLICATIONS_MAX: u32 = 100;
/// … or at so many bytes.
const BYTES_MAX: usize = 16 * 1024;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Joining {
    parts: Vec<u8>,
    count: u32,
    first: Offset,
    /// When the first came.
    at: Instant,
    /// What the last one says of its own time.
    time_ms: u64,
}

impl Joining {
    fn is_full(&self) -> bool {
        self.count >= PUBLICATIONS_MAX || self.parts.len() >= BYTES_MAX
    }
}

impl HomeLane {
    /// Takes a publication up; `apart`, it has a frame of its own, since somebody is not sent it. Returns the bytes so far.
    pub(super) fn append(
        &mut self,
        channel: &ChannelName,
        publication: &Publication,
        apart: bool,
        now: Instant,
    ) -> usize {
        let HomeLane { lane, pending, .. } = self;
        if apart || !lane.joins(channel) {
            pending.end_joining(*lane);
            lane.write_publication(&mut pending.bytes, channel, publication);
            return pending.end_frame(publication.offset, 1, now);
        }
        let joining = pending.joining.get_or_insert_with(|| {
            let (parts, first, at) = (Vec::new(), publication.offset, now);
            Box::new(Joining { parts, count: 0, first, at, time_ms: 0 })
        });
        lane.write_part(&mut joining.parts, channel, publication);
        joining.count += 1;
        joining.time_ms = publication.meta.map_or(0, |meta| meta.time_ms);
        if joining.is_full() {
            pending.end_joining(*lane);
        }
        pending.bytes.len() + pending.joining.as_ref().map_or(0, |joining| joining.parts.len())
    }
}

impl Pending {
    /// What was joined so far is a frame.
    pub(super) fn end_joining(&mut self, lane: Lane) {
        let Some(joining) = self.joining.take() else { return };
        let Joining { parts, count, first, at, time_ms } = *joining;
        lane.write_joined(&mut self.bytes, &parts, count, time_ms);
        self.end_frame(first, count, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfeed_protocol::command::PayloadKind;
    use ringfeed_protocol::frame::Header;
    use ringfeed_protocol::lane::{Form, RoomsForm};
    use serde_json::Value;
    use smallvec::SmallVec;

    fn lane() -> HomeLane {
        let form = Form::Rooms(RoomsForm { batch: true, ids: false });
        let lane = Lane { form, hidden: 0 };
        HomeLane { lane, interests: SmallVec::new(), pending: Pending::default() }
    }

    /// Publishes with these offsets, and what is pending then.
    fn publish(own: &mut HomeLane, name: &str, offsets: &[(u64, bool)]) {
        let channel = ChannelName::new(name).unwrap();
        for &(offset, apart) in offsets {
            let bytes = offset.to_string().into_bytes();
            let publication = Publication {
                offset: Offset(offset),
                kind: PayloadKind::Json,
                bytes: &bytes,
                meta: None,
            };
            own.append(&channel, &publication, apart, Instant::now());
        }
        own.pending.end_joining(own.lane);
    }

    /// Of each frame how many publications end with it, and what it says.
    fn frames(pending: &Pending) -> Vec<(u32, Value)> {
        let (mut from, mut before) = (0, 0);
        let each = pending.ends.iter().map(|end| {
            let frame = &pending.bytes[from as usize..end.end as usize];
            let (header, len) = Header::parse(frame).unwrap().unwrap();
            assert_eq!(header.len as usize, frame.len() - len);
            let count = end.publications - before;
            (from, before) = (end.end, end.publications);
            (count, serde_json::from_slice(&frame[len..]).unwrap())
        });
        each.collect()
    }

    #[test]
    fn what_comes_together_is_one_frame_and_one_alone_is_as_ever() {
        let mut own = lane();
        publish(&mut own, "a", &[(1, false), (2, false), (3, true), (4, false)]);
        let all = frames(&own.pending);
        let counts: Vec<u32> = all.iter().map(|(count, _)| *count).collect();
        assert_eq!(counts, [2, 1, 1]);
        let types: Vec<&Value> = all.iter().map(|(_, said)| &said["type"]).collect();
        assert_eq!(types, ["batch", "room_message", "room_message"]);
        let messages = all[0].1["messages"].as_array().unwrap();
        assert_eq!(messages.iter().map(|m| &m["message"]).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((own.pending.first_offset, all[1].1["message"].as_u64()), (Offset(1), Some(3)));
    }

    #[test]
    fn a_batch_is_limited_and_everybodys_channel_has_none() {
        let mut own = lane();
        let many: Vec<_> = (1..=u64::from(PUBLICATIONS_MAX) + 2).map(|n| (n, false)).collect();
        publish(&mut own, "a", &many);
        let counts: Vec<u32> = frames(&own.pending).iter().map(|(count, _)| *count).collect();
        assert_eq!(counts, [PUBLICATIONS_MAX, 2]);
        let mut lobby = lane();
        publish(&mut lobby, "@all", &[(1, false), (2, false)]);
        assert_eq!(frames(&lobby.pending), [(1, 1.into()), (1, 2.into())]);
    }
}
