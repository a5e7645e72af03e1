//! Framing, unmasking and command parsing.
#![allow(missing_docs)] // criterion's macros make a public function without any

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::event::Publication;
use ringfeed_protocol::frame::{Opcode, write_client};
use ringfeed_protocol::{Connection, Dialect, Incoming, Lane, Offset, Role, mask};

fn framing(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame one publication");
    for size in [128usize, 1024, 16 * 1024] {
        let payload = format!("\"{}\"", "x".repeat(size - 2));
        group.throughput(Throughput::Bytes(size as u64));
        for lane in Lane::ALL {
            let mut out = Vec::with_capacity(size + 256);
            group.bench_function(format!("{lane:?}, {size} B"), |b| {
                b.iter(|| {
                    out.clear();
                    let publication = Publication {
                        offset: Offset(black_box(123_456)),
                        kind: PayloadKind::Json,
                        bytes: payload.as_bytes(),
                        meta: None,
                    };
                    lane.write_publication(&mut out, "btcusdt@trade", &publication);
                    black_box(out.len())
                });
            });
        }
    }
}

fn unmasking(c: &mut Criterion) {
    let mut group = c.benchmark_group("unmask");
    for size in [128usize, 16 * 1024] {
        let mut bytes = vec![7u8; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("{size} B"), |b| {
            b.iter(|| mask::apply(black_box(&mut bytes), [1, 2, 3, 4], 0));
        });
    }
}

fn commands(c: &mut Criterion) {
    let tick =
        "{\"u\":50093239212,\"s\":\"ABC\",\"b\":\"61837.63\",\"B\":\"3.78\",\"a\":\"61837.64\"}";
    let publish = format!("{{\"type\":\"publish\",\"channel\":\"abc@trade\",\"data\":{tick}}}");
    let subscribe = r#"{"type":"subscribe","id":1,"channel":"abc@trade"}"#;
    let mut group = c.benchmark_group("receive and parse a command");
    for (name, text) in [("subscribe", subscribe), ("publish", publish.as_str())] {
        let mut frame = Vec::new();
        write_client(&mut frame, Opcode::Text, text.as_bytes(), [9, 8, 7, 6]);
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(name, |b| {
            let mut input = frame.clone();
            let mut connection = Connection::new(Role::Server, 65_536);
            b.iter(|| {
                // Receiving unmasks in place.
                input.copy_from_slice(&frame);
                let received = connection.receive(&mut input);
                let Ok((_, Some(incoming @ Incoming::Text(_)))) = received else {
                    panic!("a whole frame is a message");
                };
                black_box(Dialect::Ringfeed.parse(&incoming).is_ok())
            });
        });
    }
}

criterion_group!(benches, framing, unmasking, commands);
criterion_main!(benches);
