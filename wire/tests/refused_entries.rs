//! A kernel that takes no submission is given up with a reason, not asked for ever.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::net::{TcpListener, TcpStream};

use bytes::Bytes;
use ringfeed_wire::{Io, WireConfig};

/// From here on `io_uring_enter` of this thread answers with `error`, as it does when the kernel is
/// short of memory.
fn refuse_entries(error: i32) {
    let step = |code: u32, jump: u8, value: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: jump,
        jf: u8::from(jump == 0 && code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K),
        k: value,
    };
    let number = u32::try_from(libc::SYS_io_uring_enter).unwrap();
    let refused = libc::SECCOMP_RET_ERRNO | error.unsigned_abs();
    let mut filter = [
        // The number of the system call is the first thing of `seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, number),
        step(libc::BPF_RET | libc::BPF_K, 0, refused),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program =
        libc::sock_fprog { len: u16::try_from(filter.len()).unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: plain numbers; it forbids this thread to gain privileges.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: `program` points to as many instructions as it says; the kernel copies them.
    let set =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_kernel_that_takes_no_submission_is_given_up() {
    for error in [libc::EAGAIN, libc::EBUSY] {
        // Each on a thread of its own, which keeps its filter.
        let given_up = std::thread::spawn(move || {
            let mut wire = Io::IoUring.open(WireConfig::default()).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let _far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (near, _) = listener.accept().unwrap();
            let id = wire.adopt(near.into()).unwrap();
            wire.submit(&mut Vec::new()).unwrap();
            refuse_entries(error);
            wire.send(id, 1, &Bytes::from_static(b"never"));
            let told = wire.submit(&mut Vec::new()).unwrap_err();
            // Taking the ring down may enter it.
            std::mem::forget(wire);
            told
        });
        let told = given_up.join().unwrap();
        assert!(told.to_string().contains("in a row submitted nothing"), "{told}");
    }
}
