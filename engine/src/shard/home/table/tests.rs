use super::*;
use crate::access::{Identity, MadeRoom, Room, RoomChange};
use crate::config::{ChannelRule, Config, Distribution, Presence, Sources};
use crate::ids::{ConnectionId, SessionId, SessionSlot, Ticket};
use crate::message::room_samples::made_room;
use crate::message::{
    By, Caller, Delivery, Followed, FromUpstream, KeyOf, Keyed, Order, Origin, Roll, RollEntry,
    RoomDenied, RoomRequest, RoomState, RoomVersion, RoomWord, Sender, Someone, Stored,
    StoredPayload, ToUpstream,
};
use ringfeed_protocol::IdempotencyKey;
use ringfeed_protocol::command::{Payload, PayloadKind};
use tokio::sync::oneshot;

struct Bench {
    homes: Homes,
    /// Where the next subscriber's shard wants chunks.
    to: LaneId,
    window_bytes: usize,
    delivered: Vec<(ShardId, Delivery)>,
    now: Instant,
}

fn recovered(subscribed: &Subscribed) -> (Option<bool>, usize) {
    match subscribed {
        Subscribed::Start(Start { recovered, replay, .. }) => {
            (*recovered, replay.shared.len() + usize::from(!replay.own.is_empty()))
        }
        Subscribed::Later | Subscribed::Upstream { .. } => panic!("nothing is to be waited for"),
    }
}

fn start(subscribed: &Subscribed) -> Position {
    match subscribed {
        Subscribed::Start(Start { position, .. }) => *position,
        Subscribed::Later | Subscribed::Upstream { .. } => panic!("nothing is to be waited for"),
    }
}

fn session(slot: u16) -> SessionId {
    SessionId { slot: SessionSlot(slot.into()), generation: 1 }
}

fn by_key(key: &str) -> By {
    let keyed = Keyed { of: KeyOf::Application, key: IdempotencyKey::new(key).unwrap() };
    Some(Box::new(Sender { key: Some(keyed.into()), ..Sender::default() }))
}

fn answered(
    answer: &mut oneshot::Receiver<Vec<(u32, crate::message::Published)>>,
) -> Option<Result<(Position, bool), Refused>> {
    let published = answer.try_recv().ok()?.remove(0).1;
    Some(published.map(|receipt| (receipt.position.unwrap(), receipt.duplicate)))
}

impl Bench {
    fn new(history_size: u32) -> Bench {
        let mut config = Config::load(&Sources::default()).unwrap();
        let rule = &mut config.channels[0];
        (rule.history_size, rule.history_age_ms) = (history_size, 1000);
        let window_bytes = rule.window_bytes as usize;
        let limits = HomeLimits {
            channels_max: 7,
            own_channels_max: 3,
            rooms_max: 2,
            own_rooms_max: 1,
            history_bytes_max: 1 << 20,
            parked_bytes_max: 8000,
            news_max: 10,
            keys_max: 5,
        };
        let rng = rand::SeedableRng::seed_from_u64(1);
        let homes = Homes::new(Arc::new(config), limits, Clock::Machine, rng);
        let to = LaneId { slot: 0, generation: 1 };
        Bench { homes, to, window_bytes, delivered: Vec::new(), now: Instant::now() }
    }

    fn publish_bytes(
        &mut self,
        name: &str,
        bytes: usize,
        now_ms: u64,
    ) -> oneshot::Receiver<Vec<(u32, crate::message::Published)>> {
        self.publish_by(name, bytes, None, now_ms)
    }

    fn publish_by(
        &mut self,
        name: &str,
        bytes: usize,
        by: By,
        now_ms: u64,
    ) -> oneshot::Receiver<Vec<(u32, crate::message::Published)>> {
        let (reply, answer) = oneshot::channel();
        let payload = Payload { kind: PayloadKind::Json, bytes: vec![b'1'; bytes].into() };
        let delivered = &mut self.delivered;
        let asker = Asker::Batch(0, super::super::Batch::new(1, reply));
        self.homes.publish(
            &ChannelName::new(name).unwrap(),
            payload,
            Publisher { asker, by },
            (self.now, now_ms),
            &mut |shard, delivery| delivered.push((shard, delivery)),
        );
        answer
    }

    fn publish(&mut self, name: &str, now_ms: u64) -> Position {
        let mut answer = self.publish_bytes(name, 1, now_ms);
        answer.try_recv().unwrap()[0].1.clone().unwrap().position.unwrap()
    }

    /// Publishes with a key. What is answered: where it stands, and whether it stood there before.
    fn publish_keyed(
        &mut self,
        name: &str,
        key: &str,
        now_ms: u64,
    ) -> Option<Result<(Position, bool), Refused>> {
        let mut answer = self.publish_by(name, 10, by_key(key), now_ms);
        self.homes.seal_all(&mut |_, _| {});
        self.homes.check();
        answered(&mut answer)
    }

    fn subscribe(
        &mut self,
        shard: u16,
        recover: Option<Position>,
        now_ms: u64,
    ) -> Result<Subscribed, Refused> {
        let delivered = &mut self.delivered;
        let subscribe = Subscribe {
            name: &ChannelName::new("c").unwrap(),
            shard: ShardId(shard),
            session: session(shard),
            who: None,
            entry: None,
            lane: Lane::RAW,
            to: self.to,
            recover,
            recovery_bytes_max: 1 << 20,
            looked: false,
        };
        let subscribed = self.homes.subscribe(
            subscribe,
            (Instant::now(), now_ms),
            &mut usize::MAX.clone(),
            &mut |shard, delivery| {
                delivered.push((shard, delivery));
            },
        );
        self.homes.check();
        subscribed
    }

    fn begin_turn(&mut self) -> u64 {
        let delivered = &mut self.delivered;
        let (published, _) = self.homes.begin_turn(
            (self.now, 0),
            &mut usize::MAX.clone(),
            &mut |shard, delivery| {
                delivered.push((shard, delivery));
            },
        );
        self.homes.check();
        published
    }
}

#[test]
fn a_subscriber_starts_behind_what_was_pending_before_it() {
    let mut bench = Bench::new(0);
    bench.subscribe(1, None, 0).unwrap();
    bench.publish("c", 0);
    bench.publish("c", 0);
    assert!(bench.delivered.is_empty(), "pending until the end of the turn");
    assert_eq!(start(&bench.subscribe(2, None, 0).unwrap()).offset, Offset(2));
    // The chunk went to shard 1 before the answer to shard 2 was made, and to nobody else.
    match &bench.delivered[..] {
        [(ShardId(1), Delivery::Chunk { chunk, .. })] => {
            assert_eq!((chunk.first_offset, chunk.count), (Offset(1), 2));
            let half = chunk.bytes.len() / 2;
            assert_eq!(chunk.frames.publications_within(half, chunk.bytes.len(), 2), 1);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn chunks_go_to_the_newest_lane_that_a_shard_has_asked_for() {
    let mut bench = Bench::new(0);
    // The second one's subscribe was held back, and overtaken by one of a lane that came later.
    for generation in [u32::MAX, 1, 0] {
        bench.to.generation = generation;
        bench.subscribe(1, None, 0).unwrap();
    }
    bench.publish("c", 0);
    let delivered = &mut bench.delivered;
    bench.homes.seal_all(&mut |shard, delivery| delivered.push((shard, delivery)));
    match &bench.delivered[..] {
        [(ShardId(1), Delivery::Chunk { to, .. })] => assert_eq!(to.generation, 1),
        other => panic!("{other:?}"),
    }
}

#[test]
fn recovery_replays_exactly_what_was_missed_or_says_it_cannot() {
    let mut bench = Bench::new(3);
    let at: Vec<Position> = (0..5).map(|_| bench.publish("c", 0)).collect();
    let mut back = |from, now_ms| recovered(&bench.subscribe(1, Some(from), now_ms).unwrap());
    assert_eq!(back(at[1], 0), (Some(true), 1));
    assert_eq!(back(at[4], 0), (Some(true), 0), "nothing was missed");
    assert_eq!(back(at[0], 0), (Some(false), 0), "too old");
    let other_epoch = Position { epoch: Epoch(at[1].epoch.0 ^ 1), ..at[1] };
    assert_eq!(back(other_epoch, 0), (Some(false), 0));
    assert_eq!(
        back(Position { offset: Offset(9), ..at[4] }, 0),
        (Some(false), 0),
        "from the future"
    );
    assert_eq!(back(at[3], 2000), (Some(false), 0), "history is older than its age");
}

#[test]
fn a_channel_nobody_needs_lingers_ends_and_comes_back_with_a_new_epoch() {
    let mut bench = Bench::new(0);
    let empty = start(&bench.subscribe(1, None, 0).unwrap());
    bench.homes.unsubscribe("c", (ShardId(1), session(1)), Lane::RAW, 5000);
    assert_eq!(bench.homes.position("c"), None, "nothing was ever said there");
    bench.subscribe(1, None, 0).unwrap();
    let first = bench.publish("c", 5000);
    assert_ne!(first.epoch, empty.epoch);
    bench.homes.seal_all(&mut |_, _| {});
    bench.homes.unsubscribe("c", (ShardId(1), session(1)), Lane::RAW, 5000);
    bench.homes.sweep(5000 + LINGER_MS - 1);
    assert_eq!(bench.homes.position("c"), Some(first));
    bench.homes.sweep(5000 + LINGER_MS);
    assert_eq!(bench.homes.position("c"), None);
    let second = bench.subscribe(1, Some(first), 0).unwrap();
    assert_eq!(recovered(&second), (Some(false), 0));
    assert_ne!(start(&second).epoch, first.epoch);
}

#[test]
fn the_limit_on_channels_is_an_error_not_a_loss() {
    let mut bench = Bench::new(10);
    ["a", "b", "d"].iter().for_each(|name| assert_eq!(bench.publish(name, 0).offset, Offset(1)));
    bench.homes.seal_all(&mut |_, _| {});
    let refused = bench.subscribe(0, None, 0).map(|_| ()).unwrap_err();
    assert_eq!(refused, Refused::LimitReached { limit: Limit::Channels, most: 7 });
    bench.homes.sweep(20_000);
    assert!(bench.subscribe(0, None, 20_000).is_ok(), "aged channels make room");
}

#[test]
fn history_of_all_channels_together_is_bounded() {
    let mut bench = Bench::new(10_000);
    for _ in 0..3000 {
        for name in ["a", "b", "d"] {
            bench.publish_bytes(name, 1000, 0);
            assert!(bench.homes.history_bytes() <= 1 << 20);
        }
    }
    bench.homes.check();
    assert!(bench.homes.history_bytes() > 1 << 19);
}

#[test]
fn readers_who_are_behind_hold_their_channel_back_and_nobody_else() {
    let mut bench = Bench::new(0);
    bench.subscribe(1, None, 0).unwrap();
    bench.homes.press("c", ShardId(1), Lane::RAW, true);
    let mut held = bench.publish_bytes("c", 10, 0);
    assert_eq!(bench.publish("other", 0).offset, Offset(1));
    assert_eq!((bench.begin_turn(), held.try_recv().is_ok()), (0, false));
    bench.homes.press("c", ShardId(1), Lane::RAW, false);
    assert_eq!((bench.begin_turn(), held.try_recv().unwrap().len()), (1, 1));
    assert_eq!(bench.homes.parked_bytes(), 0);
}

#[test]
fn who_reads_slowly_is_not_waited_for_while_the_server_drains() {
    let mut bench = Bench::new(0);
    bench.subscribe(1, None, 0).unwrap();
    bench.homes.press("c", ShardId(1), Lane::RAW, true);
    let mut held = bench.publish_bytes("c", 10, 0);
    assert_eq!((bench.begin_turn(), bench.homes.has_parked()), (0, true));
    bench.homes.drain();
    assert!(bench.homes.has_work());
    assert_eq!((bench.begin_turn(), held.try_recv().unwrap().len()), (1, 1));
    assert!(!bench.homes.has_parked());
}

#[test]
fn one_channel_takes_only_a_part_of_what_may_be_held_back() {
    let mut bench = Bench::new(0);
    bench.subscribe(1, None, 0).unwrap();
    bench.homes.press("c", ShardId(1), Lane::RAW, true);
    let answers: Vec<_> = (0..20).map(|_| bench.publish_bytes("c", 100, 0)).collect();
    bench.begin_turn();
    assert!(bench.homes.parked_bytes() <= 8000 / PARKED_PARTS + 400);
    assert!(!bench.homes.is_full());
    drop(answers);
}

#[test]
fn what_is_too_much_for_one_turn_goes_on_in_the_next_in_order() {
    let mut bench = Bench::new(0);
    bench.subscribe(1, None, 0).unwrap();
    let size = bench.window_bytes / 20;
    let mut answers: Vec<_> = (0..20).map(|_| bench.publish_bytes("c", size, 0)).collect();
    let mut turns = 0;
    while bench.homes.has_work() {
        bench.begin_turn();
        turns += 1;
    }
    assert!(turns >= 5, "{turns}");
    for (offset, answer) in (1..).zip(&mut answers) {
        assert_eq!(
            answer.try_recv().unwrap()[0].1.clone().unwrap().position.unwrap().offset,
            Offset(offset)
        );
    }
}

/// Asks about a publication of one session, `id` and a payload of so many bytes.
fn ask(bench: &mut Bench, channel: &ChannelName, id: u32, bytes: usize) {
    let session = SessionId { slot: SessionSlot(0), generation: 1 };
    let origin = Origin { shard: ShardId(0), session, id: Some(id.to_string().into()) };
    let payload = StoredPayload { kind: PayloadKind::Json, bytes: vec![b'1'; bytes].into() };
    bench.homes.may_ask(channel, &Asker::Nobody, 0).unwrap();
    let ticket = Ticket { slot: id, generation: 0 };
    bench.homes.park_asked(
        channel,
        ticket,
        payload,
        Publisher { asker: Asker::Session(origin), by: None },
    );
}

fn settle(bench: &mut Bench, channel: &ChannelName, id: u32, publish: Result<(), Refused>) {
    let (ticket, delivered) = (Ticket { slot: id, generation: 0 }, &mut bench.delivered);
    bench.homes.settle_asked(channel, ticket, publish.map(|()| None), &mut |to, delivery| {
        delivered.push((to, delivery));
    });
}

#[test]
fn a_publication_that_is_denied_is_answered_behind_the_earlier_ones_of_its_session() {
    let mut bench = Bench::new(0);
    let channel = ChannelName::new("a").unwrap();
    ask(&mut bench, &channel, 1, 1);
    ask(&mut bench, &channel, 2, 1);
    settle(&mut bench, &channel, 2, Err(Refused::Denied { detail: "no".into() }));
    assert_eq!(bench.begin_turn(), 0);
    assert!(bench.delivered.is_empty(), "the first one is not answered");
    settle(&mut bench, &channel, 1, Ok(()));
    assert_eq!(bench.begin_turn(), 1);
    let told = |(_, delivery): &(ShardId, Delivery)| match delivery {
        Delivery::Published { origin, .. } => (true, origin.id.clone()),
        Delivery::Refused { origin, .. } => (false, origin.id.clone()),
        other => panic!("{other:?}"),
    };
    let told: Vec<_> = bench.delivered.iter().map(told).collect();
    assert_eq!(told, [(true, Some("1".into())), (false, Some("2".into()))]);
    bench.homes.check();
    assert!(!bench.homes.has_parked());
}

#[test]
fn what_waits_for_the_application_is_bounded_and_fills_no_shard() {
    let mut bench = Bench::new(0);
    let [a, b] = ["a", "b"].map(|name| ChannelName::new(name).unwrap());
    ask(&mut bench, &a, 1, 20_000);
    assert!(!bench.homes.is_full(), "requests for other channels are served");
    assert_eq!(bench.homes.may_ask(&b, &Asker::Nobody, 0), Err(TOO_MUCH_ASKED));
    bench.homes.check();
    settle(&mut bench, &a, 1, Ok(()));
    assert!(bench.homes.is_full(), "nobody outside is waited for now");
    assert_eq!((bench.begin_turn(), bench.homes.is_full()), (1, false));
    assert_eq!(bench.homes.may_ask(&b, &Asker::Nobody, 0), Ok(()));
    bench.homes.check();
}

/// Publishes for a client that wants an answer. Returns whether it was published.
fn speak(bench: &mut Bench, name: &str, now_ms: u64) -> bool {
    let origin = Origin { shard: ShardId(0), session: session(0), id: Some("1".into()) };
    let payload = Payload { kind: PayloadKind::Json, bytes: b"1".into() };
    let publisher = Publisher { asker: Asker::Session(origin), by: None };
    let (name, now) = (ChannelName::new(name).unwrap(), (bench.now, now_ms));
    let delivered = &mut bench.delivered;
    let deliver = &mut |shard, delivery| delivered.push((shard, delivery));
    let published = bench.homes.publish(&name, payload, publisher, now, deliver);
    match bench.delivered.pop() {
        Some((_, Delivery::Published { .. })) => assert!(published),
        Some((_, Delivery::Refused { refused, .. })) => {
            assert_eq!(refused, Refused::ChannelRateLimited { channel: name, per_second: 1 });
            assert!(!published);
        }
        other => panic!("{other:?}"),
    }
    published
}

#[test]
fn clients_together_publish_no_more_often_than_a_channel_takes_and_the_api_is_not_counted() {
    let mut bench = Bench::new(0);
    let mut config = (*bench.homes.config).clone();
    let rule = &mut config.channels[0];
    (rule.messages_per_second_max, rule.messages_burst) = (1, 20);
    let limits = bench.homes.limits;
    bench.homes.reconfigure(Arc::new(config), limits);
    let spoken =
        |bench: &mut Bench, name, now| (0..100).filter(|_| speak(bench, name, now)).count();
    assert_eq!(spoken(&mut bench, "a", 0), 20);
    bench.publish("a", 0);
    assert_eq!(spoken(&mut bench, "b", 0), 20, "each channel for itself");
    assert_eq!((spoken(&mut bench, "a", 999), spoken(&mut bench, "a", 1000)), (0, 1));
    // A channel that is gone is one that anybody may begin anew: not before its burst is there again.
    let now = 1000 + LINGER_MS;
    bench.homes.seal_all(&mut |_, _| {});
    bench.homes.sweep(now);
    assert_eq!(bench.homes.count(), 2);
    assert_eq!(spoken(&mut bench, "a", now), 10);
    // Also of what the application is asked about.
    let b = ChannelName::new("b").unwrap();
    let mut may_ask = |now| bench.homes.may_ask(&b, &Asker::Nobody, now).is_ok();
    assert_eq!((0..100).filter(|_| may_ask(now)).count(), 11);
    bench.homes.seal_all(&mut |_, _| {});
    bench.homes.sweep(now + LINGER_MS + 20_000);
    assert_eq!(bench.homes.count(), 0);
}

#[test]
fn what_is_sent_again_with_its_key_is_published_once_and_answered_as_the_first_time() {
    let mut bench = Bench::new(0);
    let (first, again) = bench.publish_keyed("c", "k", 0).unwrap().unwrap();
    assert_eq!((first.offset, again), (Offset(1), false));
    assert_eq!(bench.publish("c", 0).offset, Offset(2));
    assert_eq!(bench.publish_keyed("c", "k", 0), Some(Ok((first, true))));
    // Another key, and the same on another channel, are other messages.
    assert!(!bench.publish_keyed("c", "l", 0).unwrap().unwrap().1);
    assert!(!bench.publish_keyed("other", "k", 0).unwrap().unwrap().1);
    let age_ms = u64::from(bench.homes.config.limits.idempotency_ms);
    assert!(bench.publish_keyed("c", "k", age_ms - 1).unwrap().unwrap().1);
    assert!(!bench.publish_keyed("c", "k", age_ms).unwrap().unwrap().1, "its time is over");
    assert_eq!(bench.homes.key_counts().2, 2);
}

#[test]
fn what_is_sent_again_while_the_first_is_held_back_waits_for_its_answer() {
    let mut bench = Bench::new(0);
    bench.subscribe(1, None, 0).unwrap();
    bench.homes.press("c", ShardId(1), Lane::RAW, true);
    let mut answers = [(); 3].map(|()| bench.publish_by("c", 10, by_key("k"), 0));
    assert_eq!((bench.begin_turn(), answered(&mut answers[0])), (0, None));
    bench.homes.press("c", ShardId(1), Lane::RAW, false);
    assert_eq!(bench.begin_turn(), 1);
    let [first, second, third] =
        answers.each_mut().map(|answer| answered(answer).unwrap().unwrap());
    assert_eq!((first.0.offset, first.1), (Offset(1), false));
    assert_eq!([second, third], [(first.0, true); 2]);
}

#[test]
fn a_key_of_what_was_refused_is_not_used_up() {
    let mut bench = Bench::new(0);
    ["a", "b", "d"].iter().for_each(|name| assert_eq!(bench.publish(name, 0).offset, Offset(1)));
    bench.homes.seal_all(&mut |_, _| {});
    let refused = bench.publish_keyed("c", "k", 0).unwrap();
    assert_eq!(refused, Err(Refused::LimitReached { limit: Limit::Channels, most: 7 }));
    bench.homes.sweep(LINGER_MS);
    assert_eq!(bench.homes.count(), 0);
    let (at, again) = bench.publish_keyed("c", "k", LINGER_MS).unwrap().unwrap();
    assert_eq!((at.offset, again), (Offset(1), false));
}

#[test]
fn a_channel_stays_as_long_as_a_key_of_it_is_remembered() {
    let mut bench = Bench::new(0);
    let (first, _) = bench.publish_keyed("c", "k", 0).unwrap().unwrap();
    let age_ms = u64::from(bench.homes.config.limits.idempotency_ms);
    bench.homes.sweep(age_ms - 1);
    assert_eq!(bench.publish_keyed("c", "k", age_ms - 1), Some(Ok((first, true))));
    bench.homes.sweep(age_ms);
    bench.homes.check();
    assert_eq!(bench.homes.position("c"), None);
    // Keys that were driven out hold nothing either: there is room for five.
    for key in ["1", "2", "3", "4", "5", "6"] {
        bench.publish_keyed(if key == "1" { "c" } else { "d" }, key, age_ms).unwrap().unwrap();
    }
    assert_eq!(bench.homes.key_counts(), (5, 1, 1));
    bench.homes.sweep(age_ms + LINGER_MS);
    assert_eq!((bench.homes.position("c"), bench.homes.count()), (None, 1));
}

#[test]
fn a_key_is_refused_where_none_is_remembered() {
    let mut bench = Bench::new(0);
    let mut config = (*bench.homes.config).clone();
    config.limits.idempotency_ms = 0;
    let limits = bench.homes.limits;
    bench.homes.reconfigure(Arc::new(config), limits);
    let refused = bench.publish_keyed("c", "k", 0).unwrap().unwrap_err();
    assert!(refused.to_string().contains("limits.idempotency_ms is 0"), "{refused}");
    assert_eq!(bench.publish("c", 0).offset, Offset(1));
}

#[test]
fn a_home_is_four_cache_lines() {
    assert!(size_of::<Home>() <= 4 * 64, "{}", size_of::<Home>());
}

/// Goes by a rule of so much history among other nodes.
fn configure(bench: &mut Bench, history_size: u32) -> Vec<ToUpstream> {
    configure_by(bench, |rule| rule.history_size = history_size)
}

/// Goes by a rule that is so among other nodes.
fn configure_by(bench: &mut Bench, change: impl FnOnce(&mut ChannelRule)) -> Vec<ToUpstream> {
    let environment = vec![("RINGFEED_CLUSTER__KEY".into(), "0123456789abcdef".into())];
    let flags = vec!["cluster.registry=http://127.0.0.1:9810".into(), "server.node_id=a".into()];
    let mut config = Config::load(&Sources { environment, flags, file: None }).unwrap();
    change(&mut config.channels[0]);
    let limits = bench.homes.limits;
    bench.delivered.clear();
    bench.homes.reconfigure(Arc::new(config), limits);
    let delivered = &mut bench.delivered;
    bench.homes.redistribute_some(0, &mut |shard, delivery| delivered.push((shard, delivery)));
    bench.homes.check();
    bench.homes.take_outgoing().collect()
}

/// Where those who are there were told that the channel goes on, and from where on something is missing.
fn renewed(bench: &Bench) -> (Position, Offset) {
    match &bench.delivered[..] {
        [.., (ShardId(1), Delivery::Renewed { position, lost, ends: true, .. })] => {
            (*position, *lost)
        }
        other => panic!("{other:?}"),
    }
}

fn hear(bench: &mut Bench, what: FromUpstream) {
    let delivered = &mut bench.delivered;
    let name = ChannelName::new("c").unwrap();
    bench.homes.heard_upstream(&name, what, 0, &mut |shard, delivery| {
        delivered.push((shard, delivery));
    });
    bench.homes.check();
}

/// The ticket of what is sent upstream.
fn ticket(bench: &mut Bench) -> u64 {
    match &bench.homes.take_outgoing().collect::<Vec<_>>()[..] {
        [ToUpstream::Publish { ticket, .. }] => *ticket,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_channel_that_lives_is_numbered_by_whom_the_rule_says_and_its_subscribers_are_told() {
    let mut bench = Bench::new(0);
    assert!(configure(&mut bench, 0).is_empty());
    bench.subscribe(1, None, 0).unwrap();
    let bridged = bench.publish("c", 0);
    bench.homes.seal_all(&mut |_, _| {});
    bench.homes.take_outgoing();

    let ask = match &configure(&mut bench, 5)[..] {
        [ToUpstream::Follow { since: None, ask, .. }] => *ask,
        other => panic!("{other:?}"),
    };
    let mut waits = bench.publish_bytes("c", 10, 0);
    let sent = ticket(&mut bench);
    let mut stored = bench.publish_bytes("c", 10, 0);
    let sent_later = ticket(&mut bench);
    let position = Position { epoch: Epoch(9), offset: Offset(3) };
    let followed = Followed { position, lineage: Vec::new(), publications: Vec::new() };
    hear(&mut bench, FromUpstream::Followed { ask, followed });
    assert_eq!(renewed(&bench), (position, Offset(1)));

    // Another node still goes by the other rule: what it has published has no place here.
    let payload = Payload { kind: PayloadKind::Json, bytes: b"1".as_slice().into() };
    let shared = Publisher { asker: Asker::Shared, by: None };
    bench.delivered.clear();
    let (name, delivered) = (ChannelName::new("c").unwrap(), &mut bench.delivered);
    bench.homes.publish(&name, payload, shared, (bench.now, 0), &mut |shard, delivery| {
        delivered.push((shard, delivery));
    });
    assert_eq!(renewed(&bench), (position, Offset(3)));
    assert!(bench.homes.take_outgoing().next().is_none(), "nobody publishes it a second time");

    let outcome = Ok(Stored::At { position, duplicate: false });
    hear(&mut bench, FromUpstream::Stored { ticket: sent_later, stored: outcome });
    assert!(matches!(&configure(&mut bench, 0)[..], [ToUpstream::Unfollow { .. }]));
    let (here, lost) = renewed(&bench);
    assert!(here.epoch != position.epoch && here.epoch != bridged.epoch);
    assert_eq!((here.offset, lost), (Offset::NONE, Offset::NONE));
    bench.begin_turn();
    assert!(matches!(answered(&mut waits), Some(Err(Refused::Unavailable { .. }))));
    assert_eq!(answered(&mut stored), Some(Ok((position, false))), "that is known");
    let after = bench.publish("c", 0);
    assert_eq!(after, Position { epoch: here.epoch, offset: Offset(1) });

    configure(&mut bench, 5);
    let mut waits = bench.publish_bytes("c", 10, 0);
    assert_ne!(ticket(&mut bench), sent);
    let stored = Ok(Stored::At { position, duplicate: false });
    hear(&mut bench, FromUpstream::Stored { ticket: sent, stored });
    bench.begin_turn();
    assert!(answered(&mut waits).is_none(), "that was about the first one");
}

/// For so many members, whoever they are.
fn open_room(members_max: u32) -> Arc<Room> {
    Arc::new(Room { members_max, public: true, ..(*made_room(0).rules).clone() })
}

/// Goes by a rule of rooms that are like this, among other nodes.
fn configure_rooms(bench: &mut Bench, by_rule: Arc<Room>) {
    configure_by(bench, |rule| (rule.room, rule.room_rules) = (true, Some(by_rule)));
}

/// What the API says of room `c`, and what other nodes are to be told.
fn order_room(bench: &mut Bench, what: RoomRequest) -> RoomWord {
    let name = ChannelName::new("c").unwrap();
    let (_, word) = bench.homes.serve_room(&name, what, 0, &mut |_, _| {}).unwrap();
    bench.homes.check();
    *word.unwrap()
}

/// Another node says this of it. Returns what is said then.
fn hear_room(bench: &mut Bench, at_ms: u64, tie: u64, state: RoomState) -> Vec<RoomWord> {
    let (channel, version) = (ChannelName::new("c").unwrap(), RoomVersion { at_ms, tie });
    let delivered = &mut bench.delivered;
    bench.homes.hear_room(RoomWord { channel, version, state }, 0, &mut |shard, delivery| {
        delivered.push((shard, delivery));
    });
    bench.homes.check();
    said_of_rooms(bench)
}

fn said_of_rooms(bench: &mut Bench) -> Vec<RoomWord> {
    let rooms = bench.homes.take_outgoing().filter_map(|said| match said {
        ToUpstream::Room(word) => Some(*word),
        _ => None,
    });
    rooms.collect()
}

/// How many members there may be, where it was made.
fn made(bench: &Bench) -> Option<u32> {
    let home = bench.homes.by_name.get("c").and_then(|&index| bench.homes.homes.get(index));
    home.and_then(|home| Some(home.made.as_ref()?.room.rules.members_max))
}

#[test]
fn what_is_said_of_a_room_later_counts_in_whatever_order_it_comes() {
    let mut bench = Bench::new(0);
    configure_rooms(&mut bench, open_room(0));
    // The clock of the other node is far ahead: what is said here afterwards is later nevertheless.
    let ahead = Clock::Machine.unix_ms() + 1_000_000;
    assert_eq!(hear_room(&mut bench, ahead, 5, RoomState::Made(made_room(0))), []);
    assert_eq!(made(&bench), Some(7));
    hear_room(&mut bench, ahead, 5, RoomState::Ended);
    hear_room(&mut bench, ahead, 4, RoomState::Ended);
    hear_room(&mut bench, ahead - 1, u64::MAX, RoomState::Ended);
    assert_eq!(made(&bench), Some(7), "that was said before");
    let ended = order_room(&mut bench, RoomRequest::End);
    assert!(ended.version.at_ms > ahead && ended.state == RoomState::Ended, "{ended:?}");
    hear_room(&mut bench, ahead, 9, RoomState::Made(made_room(0)));
    assert_eq!(made(&bench), None, "it has ended since");
    let change = || RoomChange { members_max: Some(2), ..RoomChange::default() };
    let again = order_room(&mut bench, RoomRequest::Make(change()));
    assert!(again.version.at_ms > ended.version.at_ms && made(&bench) == Some(2), "{again:?}");
    let change = RoomChange { ends_when_empty: Some(true), ..RoomChange::default() };
    let changed = order_room(&mut bench, RoomRequest::Change(change));
    assert!(changed.version > again.version);

    // Another node has ended it with its last member, and there is one here by now.
    bench.subscribe(1, None, 0).unwrap();
    let at_ms = changed.version.at_ms + 1;
    let said = hear_room(&mut bench, at_ms, 1, RoomState::Empty);
    assert_eq!(made(&bench), Some(2));
    let [goes_on] = &said[..] else { panic!("{said:?}") };
    assert_eq!(goes_on.state, changed.state);
    assert!(goes_on.version.at_ms > at_ms, "{goes_on:?}");
    // The last one leaves: what was said since, and is not known here, counts.
    bench.homes.unsubscribe("c", (ShardId(1), session(1)), Lane::RAW, 0);
    let said = said_of_rooms(&mut bench);
    let [empty] = &said[..] else { panic!("{said:?}") };
    assert_eq!((&empty.state, made(&bench)), (&RoomState::Empty, None));
    assert_eq!(empty.version.at_ms, goes_on.version.at_ms + 1);
    hear_room(&mut bench, empty.version.at_ms + 1, 0, RoomState::Made(made_room(0)));
    assert_eq!(made(&bench), Some(7));

    // Who is there is told when it ends elsewhere, once.
    bench.subscribe(1, None, 0).unwrap();
    for tie in [3, 3, 2] {
        hear_room(&mut bench, empty.version.at_ms + 2, tie, RoomState::Ended);
    }
    let told = bench.delivered.iter().filter(|(_, delivery)| {
        matches!(delivery, Delivery::Order { order: Order::LeaveRoom(room), .. } if **room == *"c")
    });
    assert_eq!((told.count(), made(&bench)), (1, None));
}

#[test]
fn a_node_that_drains_ends_no_room_of_all_nodes_and_there_is_room_for_those_of_others() {
    let mut bench = Bench::new(0);
    configure_rooms(&mut bench, open_room(7));
    let open = || RoomState::Made(MadeRoom { rules: open_room(0), ends_when_empty: true });
    hear_room(&mut bench, 5, 5, open());
    bench.subscribe(1, None, 0).unwrap();
    bench.homes.drain();
    bench.homes.unsubscribe("c", (ShardId(1), session(1)), Lane::RAW, 0);
    assert_eq!((said_of_rooms(&mut bench), made(&bench)), (vec![], Some(0)));
    // More than may be made here, and more channels than there may be.
    for number in 0..9 {
        let channel = ChannelName::new(&format!("other.{number}")).unwrap();
        let version = RoomVersion { at_ms: 1, tie: 1 };
        let word = RoomWord { channel, version, state: open() };
        bench.homes.hear_room(word, 0, &mut |_, _| {});
    }
    bench.homes.check();
    assert_eq!(bench.homes.rooms, 10);
    let (name, change) = (ChannelName::new("d").unwrap(), RoomChange::default());
    let refused = bench.homes.serve_room(&name, RoomRequest::Make(change), 0, &mut |_, _| {});
    let limit = Refused::LimitReached { limit: Limit::Rooms, most: 2 };
    assert_eq!(refused.unwrap_err(), RoomDenied::Refused(limit));
}

#[test]
fn who_is_there_is_told_to_others_as_long_as_they_share_the_channel() {
    let mut bench = Bench::new(0);
    let by = |distribution| {
        move |rule: &mut ChannelRule| {
            (rule.presence, rule.distribution) = (Presence::Full, distribution);
        }
    };
    let rolls = |told: Vec<ToUpstream>| -> Vec<(bool, Roll)> {
        let rolls = told.into_iter().filter_map(|own| match own {
            ToUpstream::Roll { to: None, numbered, roll, .. } => Some((numbered, roll)),
            _ => None,
        });
        rolls.collect()
    };
    let name = ChannelName::new("c").unwrap();
    let present = |bench: &mut Bench| {
        let index = *bench.homes.by_name.get(&name).unwrap();
        bench.homes.home_mut(index).members.as_ref().unwrap().count()
    };
    let connection = |shard| ConnectionId { shard: ShardId(shard), number: 1 };
    configure_by(&mut bench, by(Distribution::Local));
    bench.subscribe(1, None, 0).unwrap();
    let caller = Caller { connection: connection(1), identity: Identity::default().into() };
    bench.homes.name_member(&name, ShardId(1), session(1), &caller, 0);
    bench.homes.tell_rolls(0);
    assert!(bench.homes.take_outgoing().next().is_none(), "nobody else has it");

    let told = rolls(configure_by(&mut bench, by(Distribution::Bridged)));
    let [(false, Roll { whole: true, asks: true, has_it: true, subscribers: 1, entries, .. })] =
        &told[..]
    else {
        panic!("{told:?}")
    };
    assert_eq!(entries[0].who, Someone::Connection(connection(1)));
    let who = Someone::Connection(connection(2));
    let entries = vec![RollEntry { who, is_there: true, last: false, info: None }];
    let roll = Roll { whole: true, first: true, has_it: true, entries, ..Roll::default() };
    hear(&mut bench, FromUpstream::Roll { from: 7, roll });
    assert_eq!(present(&mut bench), 2);
    bench.subscribe(2, None, 0).unwrap();
    let caller = Caller { connection: connection(3), ..caller };
    bench.homes.name_member(&name, ShardId(2), session(2), &caller, 0);
    bench.homes.tell_rolls(0);
    let told = rolls(bench.homes.take_outgoing().collect());
    assert!(matches!(&told[..], [(false, Roll { whole: false, subscribers: 2, .. })]), "{told:?}");

    let told = rolls(configure_by(&mut bench, by(Distribution::Local)));
    assert!(matches!(&told[..], [(false, Roll { whole: true, has_it: false, .. })]), "{told:?}");
    assert_eq!(present(&mut bench), 2, "those of this node are there");
}
