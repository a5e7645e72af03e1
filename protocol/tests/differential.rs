//! The receiving half against tungstenite, an independent implementation, on the same bytes.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod oracle;

use oracle::disagreement;
use proptest::prelude::*;
use ringfeed_protocol::frame::{Header, Opcode};
use ringfeed_protocol::mask;

fn opcode() -> impl Strategy<Value = Opcode> {
    prop_oneof![
        4 => Just(Opcode::Continuation),
        3 => Just(Opcode::Text),
        3 => Just(Opcode::Binary),
        1 => Just(Opcode::Ping),
        1 => Just(Opcode::Pong),
        1 => Just(Opcode::Close),
    ]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[a-zä€😀]{0,30}".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..20),
        (0u16..5000).prop_map(|code| code.to_be_bytes().to_vec()),
        Just(vec![b'x'; 126]),
        Just(vec![b'y'; 150]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn the_same_frames_are_understood_the_same(
        frames in proptest::collection::vec((any::<bool>(), opcode(), payload(), 0u8..20), 1..8),
        step in 1usize..64,
    ) {
        let mut input = Vec::new();
        for (fin, opcode, payload, odd) in frames {
            let mask = (odd != 0).then_some([odd, 2, 3, 4]);
            Header { fin, opcode, mask, len: payload.len() as u64 }.write(&mut input);
            let start = input.len();
            input.extend_from_slice(&payload);
            if let Some(key) = mask {
                mask::apply(&mut input[start..], key, 0);
            }
        }
        prop_assert_eq!(disagreement(&input, step), None);
    }
}
