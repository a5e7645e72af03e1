//! The hot path does not allocate: nothing for a delivery, and for a publish what its chunk takes.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use ringfeed_benches::Stage;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PUBLISHES: usize = 500;

/// Allocations for each of many single publishes, once everything has its size.
fn per_publish(subscribers: u32, channels: u32, each: u32) -> f64 {
    let mut stage = Stage::new(subscribers, channels, each).unwrap();
    let payload = Bytes::from(format!("\"{}\"", "x".repeat(126)));
    let mut first = 0;
    let mut publish = |count: usize| {
        for _ in 0..count {
            stage.publish(first, 1, &payload);
            first += 1;
            stage.settle().unwrap();
        }
    };
    publish(3 * PUBLISHES);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    publish(PUBLISHES);
    (ALLOCATIONS.load(Ordering::Relaxed) - before) as f64 / PUBLISHES as f64
}

#[test]
fn a_delivery_allocates_nothing_and_a_publish_no_more_than_its_chunk() {
    let (few, many) = (per_publish(10, 1, 1), per_publish(1000, 1, 1));
    println!("allocations a publish: {few} with 10 subscribers, {many} with 1,000");
    assert!((many - few) / 990.0 < 0.001, "{few} with 10 subscribers, {many} with 1,000");
    // The request's batch, the chunk's bytes and their count, the delivery, the log's place for it.
    assert!(few <= 7.0, "{few} a publish");
    let (few, many) = (per_publish(20, 20, 10), per_publish(400, 20, 10));
    println!("the same with ten channels each: {few} with 10 subscribers, {many} with 200");
    assert!((many - few) / 190.0 < 0.02, "{few} with 10 subscribers, {many} with 200");
}
