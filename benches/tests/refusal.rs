//! A kernel that is short of memory for TCP.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use bytes::Bytes;
use ringfeed_benches::Stage;

/// Such a kernel calls sockets writable and takes nothing: asking again at once would go on for ever,
/// and those who do read would wait.
#[test]
fn a_socket_that_is_writable_and_takes_nothing_is_not_asked_again_at_once() {
    const SUBSCRIBERS: u32 = 10;
    let mut stage = Stage::new(SUBSCRIBERS, 1, 1).unwrap();
    stage.switch().refuse.set(true);
    let before = stage.switch().sends.get();
    stage.publish(0, 1, &Bytes::from_static(b"1"));
    for _ in 0..1000 {
        stage.turn().unwrap();
    }
    let sends = stage.switch().sends.get() - before;
    // Once for the publication, once when the socket is said to take bytes again.
    assert_eq!(sends, 2 * u64::from(SUBSCRIBERS));
}
