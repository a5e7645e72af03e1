//! What a shard tells of itself.

use std::time::Duration;

use ringfeed_wire::Wire;

use super::Shard;

impl<W: Wire> Shard<W> {
    /// Counts a turn and its time.
    pub(super) fn count_turn(&mut self, cpu_began: Duration) {
        let counters = &self.counters;
        counters.turns.add(1);
        // No turn takes half a million years.
        let micros = (self.clock.now() - self.now).as_micros() as u64;
        counters.turn_us.record(micros);
        counters.turn_max_us.record(micros, self.now_ms);
        // A turn takes no more CPU time than time: mostly there is nothing to ask.
        if micros > counters.turn_cpu_max_us.read() {
            let cpu_micros = (self.clock.thread_cpu() - cpu_began).as_micros() as u64;
            counters.turn_cpu_max_us.record(cpu_micros, self.now_ms);
        }
    }

    /// Writes the gauges.
    pub(super) fn report(&mut self) {
        self.feeds.sweep_retained();
        let retained = self.feeds.retained_bytes();
        let (counters, usage) = (&self.counters, self.wire.usage());
        counters.connections.set(self.sessions.len() as u64);
        counters.subscriptions.set(self.subscription_count);
        counters.channels.set(self.homes.count() as u64);
        counters.users.set(self.users.count() as u64);
        counters.presence_changes_waiting.set(self.homes.news.len() as u64);
        counters.questions.set(self.local.asks.count() as u64);
        counters.handshakes.set(self.local.handshakes.get().into());
        counters.sockets.set(usage.sockets);
        counters.rings.set(usage.rings);
        counters.log_bytes.set(self.feeds.log_bytes() as u64);
        counters.retained_bytes.set(retained as u64);
        counters.history_bytes.set(self.homes.history_bytes() as u64);
        let (keys, forgotten, duplicates) = self.homes.key_counts();
        counters.idempotency_keys.set(keys);
        counters.idempotency_keys_forgotten.set(forgotten);
        counters.duplicates.set(duplicates);
        counters.outbox_bytes.set(self.sessions.outbox_bytes() as u64);
        counters.partial_message_bytes.set(self.partial_bytes as u64);
        counters.sessions_waiting.set(self.fanout.queued() as u64);
        counters.sends.set(usage.sends);
        counters.short_sends.set(usage.short_sends);
        counters.bytes_in.set(usage.bytes_in);
        counters.bytes_out.set(usage.bytes_out);
        counters.kernel_enters.set(usage.enters);
        counters.ticks.add(1);
    }
}
