//! What is published, and when.

use std::io::Write as _;

use rand::Rng as _;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use crate::interest::Interest;

/// A source of messages in order of time.
pub(crate) trait Feed: Send {
    /// The channels it publishes to.
    fn channels(&self) -> &[String];
    /// Appends the next message's payload, which is JSON, and returns its channel (a place in
    /// [`Feed::channels`]) and when it is due, in nanoseconds since the start. `None` at the end.
    fn next(&mut self, payload: &mut Vec<u8>) -> Option<(u32, u64)>;
    /// How many messages there will be, if it is known.
    fn len(&self) -> Option<u64>;
    /// When the last message is due, in nanoseconds since the start, if it is known.
    fn lasts_ns(&self) -> Option<u64> {
        None
    }
    /// Whether due times count; if not, it is published as fast as the server takes it.
    fn is_paced(&self) -> bool {
        true
    }
}

/// Made-up messages of one size at a constant rate. Each says which one it is: the number it has in
/// its channel, times the number of channels, plus the channel.
pub(crate) struct ConstantFeed {
    channels: Vec<String>,
    interest: Interest,
    /// Messages of each channel so far.
    sent_to: Vec<u64>,
    size: usize,
    rate: u32,
    burst: u64,
    total: Option<u64>,
    until_ns: u64,
    sent: u64,
}

impl ConstantFeed {
    /// `interest` must draw from as many channels as there are.
    pub(crate) fn new(
        channels: Vec<String>,
        interest: Interest,
        size: u32,
        rate: u32,
        burst: u32,
        secs: f64,
    ) -> Self {
        let total = (rate > 0).then_some((f64::from(rate) * secs) as u64);
        let until_ns = (secs * 1e9) as u64;
        let (sent_to, size, burst) = (vec![0; channels.len()], size as usize, burst.into());
        Self { channels, interest, sent_to, size, rate, burst, total, until_ns, sent: 0 }
    }
}

impl Feed for ConstantFeed {
    fn channels(&self) -> &[String] {
        &self.channels
    }

    fn next(&mut self, payload: &mut Vec<u8>) -> Option<(u32, u64)> {
        if self.total.is_some_and(|total| self.sent >= total) {
            return None;
        }
        let number = self.sent;
        self.sent += 1;
        let channel = self.interest.channel();
        let in_channel = &mut self.sent_to[channel as usize];
        let stamp = *in_channel * self.channels.len() as u64 + u64::from(channel);
        *in_channel += 1;
        let begin = payload.len();
        let _ = write!(payload, "{{\"n\":{stamp},\"pad\":\"");
        let pad = self.size.saturating_sub(payload.len() - begin + 2);
        payload.extend(std::iter::repeat_n(b'x', pad));
        payload.extend_from_slice(b"\"}");
        let due_ns = match self.rate {
            0 => 0,
            rate => number / self.burst * self.burst * 1_000_000_000 / u64::from(rate),
        };
        Some((channel, due_ns))
    }

    fn len(&self) -> Option<u64> {
        self.total
    }

    fn lasts_ns(&self) -> Option<u64> {
        Some(self.until_ns)
    }

    fn is_paced(&self) -> bool {
        self.rate > 0
    }
}

impl ConstantFeed {
    /// When an unpaced feed ends, in nanoseconds since the start.
    pub(crate) fn until_ns(&self) -> u64 {
        self.until_ns
    }
}

/// Made-up instruments whose prices walk at random. Every tick says that it is simulated.
pub(crate) struct SimulatedFeed {
    channels: Vec<String>,
    prices: Vec<f64>,
    random: SmallRng,
    rate: u32,
    sent: u64,
    until_ns: u64,
}

impl SimulatedFeed {
    pub(crate) fn new(prefix: &str, instruments: u32, rate: u32, secs: Option<f64>) -> Self {
        let mut random = SmallRng::from_os_rng();
        let channels = (0..instruments).map(|i| format!("{prefix}SIM{i:02}")).collect();
        let prices = (0..instruments).map(|_| random.random_range(10.0..1000.0)).collect();
        let until_ns = secs.map_or(u64::MAX, |secs| (secs * 1e9) as u64);
        Self { channels, prices, random, rate: rate.max(1), sent: 0, until_ns }
    }
}

impl Feed for SimulatedFeed {
    fn channels(&self) -> &[String] {
        &self.channels
    }

    fn next(&mut self, payload: &mut Vec<u8>) -> Option<(u32, u64)> {
        let due_ns = self.sent * 1_000_000_000 / u64::from(self.rate);
        if due_ns >= self.until_ns {
            return None;
        }
        self.sent += 1;
        let at = self.random.random_range(0..self.channels.len());
        self.prices[at] *= 1.0 + self.random.random_range(-0.001..0.001);
        let size: u32 = self.random.random_range(1..500);
        let tick = format!(
            "{{\"simulated\":true,\"symbol\":\"SIM{at:02}\",\"price\":{:.2},\"size\":{size},\
             \"n\":{}}}",
            self.prices[at], self.sent
        );
        payload.extend_from_slice(tick.as_bytes());
        Some((at as u32, due_ns))
    }

    fn len(&self) -> Option<u64> {
        None
    }
}
