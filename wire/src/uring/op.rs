//! What a completion belongs to, packed into the 64 bits of `user_data`.

/// The operation a completion ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    Receive = 1,
    Poll = 2,
    Send = 3,
    Close = 4,
    /// Any step of making and connecting a socket; only the last one completes on success.
    Connect = 5,
    /// Cancel and shutdown: their own result does not matter.
    Other = 6,
}

/// Bits of a slot number: the kernel's table has at most 2^20 entries.
pub(crate) const SLOT_BITS: u32 = 20;
/// The slot in a number that holds other things above it.
pub(crate) const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;

/// `tag` (32) | low bits of the generation (8) | slot (20) | operation (4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UserData {
    pub(super) op: Op,
    pub(super) slot: u32,
    pub(super) generation: u8,
    pub(super) tag: u32,
}

impl UserData {
    pub(super) fn pack(self) -> u64 {
        u64::from(self.tag) << 32
            | u64::from(self.generation) << 24
            | u64::from(self.slot) << 4
            | self.op as u64
    }

    /// `None` for a value this wire never made.
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out by shifts and masks")]
    pub(super) fn unpack(bits: u64) -> Option<UserData> {
        let op = match bits & 0xf {
            1 => Op::Receive,
            2 => Op::Poll,
            3 => Op::Send,
            4 => Op::Close,
            5 => Op::Connect,
            6 => Op::Other,
            _ => return None,
        };
        Some(UserData {
            op,
            slot: (bits >> 4) as u32 & SLOT_MASK,
            generation: (bits >> 24) as u8,
            tag: (bits >> 32) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        for op in [Op::Receive, Op::Poll, Op::Send, Op::Close, Op::Connect, Op::Other] {
            for (slot, generation, tag) in [(0, 0, 0), ((1 << 20) - 1, 255, u32::MAX), (77, 3, 9)] {
                let data = UserData { op, slot, generation, tag };
                assert_eq!(UserData::unpack(data.pack()), Some(data));
            }
        }
        assert_eq!(UserData::unpack(0), None);
    }
}
