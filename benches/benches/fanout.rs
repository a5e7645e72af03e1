//! Append and flush on a shard whose socket layer does nothing: ringfeed's own share of a delivery.
#![allow(missing_docs)] // criterion's macros make a public function without any

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringfeed_benches::Stage;

fn fanout(c: &mut Criterion) {
    let payload = Bytes::from(format!("\"{}\"", "x".repeat(126)));
    let mut group = c.benchmark_group("append and flush");
    group.sample_size(20);
    for (name, subscribers, channels, each, publications) in [
        ("1 publication to 1,000 subscribers", 1_000, 1, 1, 1),
        ("1 publication to 10,000 subscribers", 10_000, 1, 1, 1),
        ("100 publications to 10,000 subscribers", 10_000, 1, 1, 100),
        ("100 publications to 2,000 subscribers on 50 of 2,000 channels", 2_000, 2_000, 50, 100),
    ] {
        let mut stage = Stage::new(subscribers, channels, each).expect("descriptors suffice");
        let deliveries =
            u64::from(subscribers) * u64::from(each) / u64::from(channels) * publications as u64;
        group.throughput(Throughput::Elements(deliveries));
        let mut first = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                stage.publish(first, publications, &payload);
                first += publications;
                stage.settle().expect("the null wire has no errors");
            });
        });
    }
}

criterion_group!(benches, fanout);
criterion_main!(benches);
