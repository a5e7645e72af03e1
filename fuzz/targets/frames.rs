//! Frames and connections: the same for every way to cut the input, the same as another
//! implementation, and within memory.
#![no_main]

#[path = "../../protocol/tests/oracle/mod.rs"]
mod oracle;

use libfuzzer_sys::fuzz_target;
use ringfeed_protocol::{Connection, Role, frame};

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (step, masked, bytes) = input;
    let step = usize::from(step) + 1;
    if let Some(disagreement) = oracle::disagreement(bytes, step) {
        panic!("in pieces of {step}: {disagreement}");
    }
    let whole = oracle::ours(bytes, bytes.len().max(1));
    assert_eq!(whole, oracle::ours(bytes, step), "in pieces of {step}");
    let role = if masked { Role::Server } else { Role::Client };
    let mut connection = Connection::new(role, 1 << 20);
    let mut came = 0;
    'pieces: for piece in bytes.chunks(step) {
        let mut piece = piece.to_vec();
        let mut at = 0;
        while at < piece.len() {
            match connection.receive(&mut piece[at..]) {
                Ok((used, _)) => {
                    assert!(used > 0);
                    at += used;
                }
                Err(_) => break 'pieces,
            }
        }
        came += at;
        connection.settle();
        let pending = connection.pending_bytes();
        assert!(pending <= 2 * came + 512, "{pending} bytes are held when {came} came");
        assert_eq!(pending > 0, connection.is_unfinished());
    }
    let ends: Vec<usize> = frame::server_frame_ends(bytes).collect();
    assert!(ends.is_sorted() && ends.last().is_none_or(|&end| end <= bytes.len()));
});
