//! The scripts against a real server, compared with what `command.rs` says of them.

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use redis::{Connection, RedisResult};
use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::{ChannelName, UserId};

use super::*;
use crate::bridge::Item;
use crate::message::room_samples::made_room;
use crate::message::{
    KeyDigest, Outgoing, Revocation, Revoked, RoomState, RoomVersion, RoomWord, StoredPayload,
};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server of its own for a test.
struct Server {
    process: Child,
    _dir: tempfile::TempDir,
    connection: Connection,
    scripts: Scripts,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start() -> Server {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--enable-debug-command", "yes", "--unixsocket"])
            .arg(&socket)
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is needed (package redis-server)");
        let client = redis::Client::open(format!("unix://{}", socket.display())).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut connection = loop {
            match client.get_connection() {
                Ok(connection) => break connection,
                Err(e) => assert!(Instant::now() < deadline, "{e}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let scripts = Scripts::loaded(Scripts::load().query(&mut connection).unwrap());
        Server { process, _dir: dir, connection, scripts }
    }

    fn ask(&mut self, words: &[&str]) -> Value {
        redis::cmd(words[0]).arg(&words[1..]).query(&mut self.connection).unwrap()
    }

    fn append(
        &mut self,
        keep: Keep,
        (instance, first): (u64, u64),
        payloads: &[u64],
    ) -> RedisResult<(Epoch, u64)> {
        let plain: Vec<_> = payloads.iter().map(|&payload| (payload, None)).collect();
        let (epoch, last, duplicates) = self.append_keyed(keep, (instance, first), &plain)?;
        assert_eq!(duplicates, []);
        Ok((epoch, last))
    }

    /// Payloads, each with its idempotency key if it has one.
    fn append_keyed(
        &mut self,
        keep: Keep,
        (instance, first): (u64, u64),
        payloads: &[(u64, Option<u8>)],
    ) -> RedisResult<Appended> {
        let item = |(number, &(payload, key)): (u64, &(u64, Option<u8>))| Item {
            // Numbers grow, and no more is known of them.
            number: 3 * number,
            bytes: item(&payload.to_string()),
            key: key.map(digest),
        };
        let items = (first..).zip(payloads).map(item).collect();
        let append = Append { channel: channel(), instance, items };
        let cmd = self.scripts.append(&Names::new("t", 0, 99), keep, "PUBLISH", &append);
        match reply(cmd.query(&mut self.connection)?) {
            Some(Reply::Appended { epoch, last, duplicates }) => Ok((epoch, last.0, duplicates)),
            other => panic!("{other:?}"),
        }
    }

    fn read(&mut self, keep: Keep, since: Option<Position>) -> Followed {
        let read = Read { channel: channel(), since };
        let cmd = self.scripts.read(&Names::new("t", 0, 0), keep, &read);
        match reply(cmd.query(&mut self.connection).unwrap()) {
            Some(Reply::Read(followed)) => followed,
            other => panic!("{other:?}"),
        }
    }

    /// What is kept for all nodes, where it is little.
    fn all_kept(&mut self, names: &Names) -> Vec<Kept> {
        match reply(all_kept(names, 0).query(&mut self.connection).unwrap()) {
            Some(Reply::Kept(found, None)) => found,
            other => panic!("{other:?}"),
        }
    }
}

/// Epoch, offset of the last one, and what was there before.
type Appended = (Epoch, u64, Vec<(u32, Position)>);

/// Keys of which some come again.
const KEYS: u8 = 60;

const KEEP: Keep = Keep { size: 1 << 20, bytes: 0, age_ms: 0, idle_ms: 1 << 40, keys_ms: 1 << 30 };

fn digest(key: u8) -> KeyDigest {
    KeyDigest([key; 16])
}

/// All keys of Redis that instances 0 and 1 use.
fn names_of_keys() -> Vec<String> {
    let (names, channel) = (Names::new("t", 0, 99), channel());
    let mut keys = names.keys(&channel).to_vec();
    keys.extend((0..2).map(|instance| names.appended(&channel, instance)));
    keys.extend((0..KEYS).map(|key| names.keyed(&channel, digest(key))));
    keys
}

fn channel() -> ChannelName {
    ChannelName::new("a}{b").unwrap()
}

fn item(text: &str) -> Bytes {
    let payload =
        StoredPayload { kind: PayloadKind::Text, bytes: Bytes::copy_from_slice(text.as_bytes()) };
    item::encode(&Outgoing { payload, meta: None, except: None, wanted: None })
}

fn at(epoch: Epoch, offset: u64) -> Option<Position> {
    Some(Position { epoch, offset: Offset(offset) })
}

/// Offset and payload of each.
fn told(followed: &Followed) -> Vec<(u64, u64)> {
    let payload = |numbered: &Numbered| {
        std::str::from_utf8(&numbered.publication.payload.bytes).unwrap().parse().unwrap()
    };
    followed.publications.iter().map(|numbered| (numbered.offset.0, payload(numbered))).collect()
}

/// Epoch, offset, life of the server, and earlier lives of the channel.
type Place = (Epoch, u64, u64, Vec<(Epoch, u64)>);

/// What the server has to know of the channel.
#[derive(Debug, Clone, Default)]
struct Model {
    /// Where it stands; `None` where it is not known.
    place: Option<Place>,
    history: Vec<(u64, u64)>,
    /// Of what an instance has appended last the number, and what was answered.
    appended: HashMap<u64, (u64, Appended)>,
    /// Where publications with keys stand.
    keyed: HashMap<u8, Position>,
}

impl Model {
    /// What is to be there before a script does its work, given the epoch that it has answered with.
    fn place(&mut self, life: u64, seen: Option<Position>, answered: Epoch, known: &[Epoch]) {
        let place = match self.place.take() {
            None => {
                self.history.clear();
                assert!(!known.contains(&answered), "an epoch comes twice");
                (answered, 0, life, Vec::new())
            }
            Some((epoch, offset, of, mut lineage)) => {
                let ahead = seen.is_some_and(|seen| seen.epoch == epoch && seen.offset.0 > offset);
                if of == life && !ahead {
                    (epoch, offset, of, lineage)
                } else {
                    assert!(!known.contains(&answered), "an epoch comes twice");
                    lineage.insert(0, (epoch, offset));
                    lineage.truncate(16);
                    (answered, offset, life, lineage)
                }
            }
        };
        assert_eq!(place.0, answered);
        self.place = Some(place);
    }

    /// What is to be answered, given the epoch that was; the channel's place is that of before.
    fn append(
        &mut self,
        (instance, first): (u64, u64),
        payloads: &[(u64, Option<u8>)],
        ever: &mut HashMap<(Epoch, u64), u64>,
    ) -> Appended {
        let (epoch, offset, ..) = self.place.as_mut().unwrap();
        let done = self.appended.get(&instance).map_or(0, |(number, _)| number + 1);
        let mut duplicates = Vec::new();
        for ((place, number), &(payload, key)) in (0..).zip(first..).zip(payloads) {
            if number < done {
                continue;
            }
            if let Some(&position) = key.and_then(|key| self.keyed.get(&key)) {
                duplicates.push((place, position));
                continue;
            }
            *offset += 1;
            self.history.push((*offset, payload));
            let before = ever.insert((*epoch, *offset), payload);
            assert_eq!(before, None, "{epoch} {offset}");
            let position = Position { epoch: *epoch, offset: Offset(*offset) };
            key.map(|key| self.keyed.insert(key, position));
        }
        let answer = (*epoch, *offset, duplicates);
        let last = first + payloads.len() as u64 - 1;
        self.appended.insert(instance, (last, answer.clone()));
        answer
    }
}

#[test]
#[allow(clippy::too_many_lines)] // one arm for each thing that may happen
fn scripts_do_what_is_said_of_them() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut server = Server::start();
    let (mut model, mut saved) = (Model::default(), None);
    let (mut life, mut payload, mut numbers) = (0, 0, [0; 2]);
    // All that was ever told of a position: never something else.
    let mut ever: HashMap<(Epoch, u64), u64> = HashMap::new();
    let mut epochs: Vec<Epoch> = Vec::new();
    let keys = names_of_keys();
    for _ in 0..3000 {
        match random.random_range(0..100) {
            0..45 => {
                let instance = random.random_range(0..2_usize);
                let count = random.random_range(1..5);
                let mut payloads = Vec::new();
                let id = instance as u64;
                // Whoever did not hear the answer asks again, and again, with more behind it where it has waited.
                for _ in 0..random.random_range(1..4) {
                    let more = if payloads.is_empty() || random.random() { count } else { 0 };
                    for _ in 0..more {
                        let key = random.random_range(0..3 * KEYS);
                        payloads.push((payload, (key < KEYS).then_some(key)));
                        payload += 1;
                    }
                    let first = numbers[instance];
                    let answer = server.append_keyed(KEEP, (id, first), &payloads).unwrap();
                    let last = first + payloads.len() as u64 - 1;
                    epochs.push(answer.0);
                    match model.appended.get(&id) {
                        Some((number, before)) if *number >= last => assert_eq!(answer, *before),
                        _ => {
                            let known = &epochs[..epochs.len() - 1];
                            model.place(life, None, answer.0, known);
                            assert_eq!(answer, model.append((id, first), &payloads, &mut ever));
                        }
                    }
                }
                numbers[instance] += payloads.len() as u64;
            }
            45..90 => {
                let since = match random.random_range(0..10) {
                    0 => None,
                    1 => at(Epoch(random.random()), random.random_range(0..10)),
                    _ if epochs.is_empty() => None,
                    _ => {
                        let recent = epochs.len().saturating_sub(random.random_range(1..60));
                        let last = model.place.as_ref().map_or(0, |place| place.1);
                        // Now and then it is ahead of the server.
                        let offset = (last + 2).saturating_sub(random.random_range(0..40));
                        at(epochs[recent], offset)
                    }
                };
                let followed = server.read(KEEP, since);
                let epoch = followed.position.epoch;
                model.place(life, since, epoch, &epochs);
                epochs.push(epoch);
                let (_, offset, _, lineage) = model.place.as_ref().unwrap();
                assert_eq!(followed.position.offset.0, *offset);
                let lives: Vec<_> = followed.lineage.iter().map(|&(e, o)| (e, o.0)).collect();
                assert_eq!(lives, *lineage);
                let all = lineage.is_empty() && model.history.first().is_some_and(|own| own.0 == 1);
                let from = since.and_then(|since| match followed.shared_with(since.epoch) {
                    Some(shared) => Some(since.offset.min(shared).0),
                    None => all.then_some(0),
                });
                let behind = from.map_or(Vec::new(), |from| {
                    model.history.iter().copied().filter(|&(offset, _)| offset > from).collect()
                });
                let behind: Vec<_> = behind.into_iter().take(ENTRIES_MAX).collect();
                assert_eq!(told(&followed), behind, "behind {since:?}");
                for (offset, payload) in told(&followed) {
                    assert_eq!(*ever.entry((epoch, offset)).or_insert(payload), payload);
                }
            }
            90..94 => {
                server.ask(&["DEBUG", "CHANGE-REPL-ID"]);
                life += 1;
            }
            94..96 => {
                let dump = |key: &String| -> Option<Vec<u8>> {
                    redis::cmd("DUMP").arg(key).query(&mut server.connection).unwrap()
                };
                saved = Some((model.clone(), keys.iter().map(dump).collect::<Vec<_>>()));
            }
            96..99 => {
                // The server begins again with what it had saved.
                let Some((then, dumps)) = &saved else { continue };
                server.ask(&["FLUSHALL"]);
                for (key, dump) in keys.iter().zip(dumps) {
                    if let Some(dump) = dump {
                        let mut restore = redis::cmd("RESTORE");
                        restore.arg(key).arg(0).arg(&dump[..]).arg("REPLACE");
                        let () = restore.query(&mut server.connection).unwrap();
                    }
                }
                server.ask(&["DEBUG", "CHANGE-REPL-ID"]);
                (model, life) = (then.clone(), life + 1);
            }
            _ => {
                server.ask(&["FLUSHALL"]);
                model = Model::default();
            }
        }
    }
}

#[test]
fn an_answer_has_a_bounded_part_of_the_history_and_the_next_one_goes_on() {
    let mut server = Server::start();
    let mut epoch = Epoch(0);
    for first in (0..2000).step_by(100) {
        let payloads: Vec<u64> = (first..first + 100).collect();
        epoch = server.append(KEEP, (1, first), &payloads).unwrap().0;
    }
    let mut seen = Vec::new();
    while seen.len() < 2000 {
        let followed = server.read(KEEP, at(epoch, seen.len() as u64));
        assert!(followed.publications.len() <= ENTRIES_MAX);
        assert_eq!(followed.position.offset, Offset(2000));
        seen.extend(told(&followed));
    }
    assert_eq!(seen, (1..=2000).zip(0..).collect::<Vec<_>>());
    // Of large ones fewer, and one however large it is.
    let large = "x".repeat(BYTES_MAX / 2 + 1);
    let append = |items: Vec<Bytes>, first: u64| {
        let item = |(number, bytes)| Item { number, bytes, key: None };
        let items = (first..).zip(items).map(item).collect();
        let append = Append { channel: channel(), instance: 1, items };
        server.scripts.append(&Names::new("t", 0, 1), KEEP, "PUBLISH", &append)
    };
    let cmds = [append(vec![item(&large); 3], 6000), append(vec![item(&large.repeat(3))], 6003)];
    for cmd in cmds {
        let _: Value = cmd.query(&mut server.connection).unwrap();
    }
    for from in 2000..2004 {
        let followed = server.read(KEEP, at(epoch, from));
        let offsets: Vec<u64> = followed.publications.iter().map(|own| own.offset.0).collect();
        assert_eq!(offsets, [from + 1]);
    }
}

#[test]
fn what_is_told_of_the_history_has_no_holes() {
    let mut server = Server::start();
    let (epoch, _) = server.append(KEEP, (1, 0), &[0, 1, 2, 3, 4, 5]).unwrap();
    let [_, history] = Names::new("t", 0, 1).keys(&channel());
    server.ask(&["XDEL", &history, "3-0"]);
    assert_eq!(told(&server.read(KEEP, at(epoch, 0))), [(1, 0), (2, 1)]);
    assert_eq!(told(&server.read(KEEP, at(epoch, 2))), [(4, 3), (5, 4), (6, 5)]);
    // What is none of ours is not there.
    server.ask(&["DEL", &history]);
    server.ask(&["XADD", &history, "6-0", "1", "nothing"]);
    let keep = KEEP;
    server.append(keep, (1, 6), &[6]).unwrap();
    assert_eq!(told(&server.read(KEEP, at(epoch, 0))), [(7, 6)]);
}

#[test]
fn history_is_as_long_as_the_rule_says_or_somewhat_longer() {
    let mut server = Server::start();
    let keep = Keep { size: 10, ..KEEP };
    let mut epoch = Epoch(0);
    for number in 0..1000 {
        epoch = server.append(keep, (1, number), &[number]).unwrap().0;
    }
    let kept = told(&server.read(keep, at(epoch, 0)));
    assert!((10..300).contains(&kept.len()), "{}", kept.len());
    assert_eq!(kept.last(), Some(&(1000, 999)));
    // Where nothing is kept there is none, and offsets go on.
    let none = Keep { size: 0, ..KEEP };
    server.ask(&["FLUSHALL"]);
    let (epoch, last) = server.append(none, (1, 1000), &[1, 2]).unwrap();
    assert_eq!(last, 2);
    assert_eq!(told(&server.read(none, at(epoch, 0))), []);
}

#[test]
fn what_is_too_old_is_told_no_more_and_goes_in_the_end() {
    let mut server = Server::start();
    let keep = |age_ms| Keep { age_ms, ..KEEP };
    let (epoch, _) = server.append(KEEP, (1, 0), &(0..500).collect::<Vec<_>>()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    // Some milliseconds later.
    while server.read(KEEP, at(epoch, 0)).publications[0].age_ms < 50 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    server.append(keep(60_000), (1, 500), &[500]).unwrap();
    assert_eq!(server.read(keep(60_000), at(epoch, 0)).publications.len(), 501);
    assert_eq!(told(&server.read(keep(49), at(epoch, 0))), [(501, 500)]);
    assert_eq!(told(&server.read(keep(49), at(epoch, 250))), [(501, 500)]);
    // Each append takes some away, and not all at once.
    let length = |server: &mut Server| match server.read(KEEP, at(epoch, 0)).publications.first() {
        Some(first) => 500_u64.saturating_sub(first.offset.0 - 1),
        None => 0,
    };
    let (mut number, mut before) = (501, 500);
    while before > 0 {
        server.append(keep(49), (1, number), &[number]).unwrap();
        number += 1;
        let now = length(&mut server);
        assert!(now < before && before - now <= 65, "{before} {now}");
        before = now;
    }
}

#[test]
fn keys_go_when_nothing_is_published_and_the_place_stays_longest() {
    let mut server = Server::start();
    let names = Names::new("t", 0, 1);
    let [place, history] = names.keys(&channel());
    let (appended, keyed) = (names.appended(&channel(), 1), names.keyed(&channel(), digest(7)));
    let left = |server: &mut Server, key: &str| match server.ask(&["PTTL", key]) {
        Value::Int(left) => left,
        other => panic!("{other:?}"),
    };
    let keep = Keep { size: 10, bytes: 0, age_ms: 100_000, idle_ms: 60_000, keys_ms: 300_000 };
    let (epoch, ..) = server.append_keyed(keep, (1, 0), &[(0, Some(7))]).unwrap();
    let all = [(&place, 100_000), (&history, 100_000), (&appended, 3_600_000), (&keyed, 300_000)];
    for (key, most) in all {
        let left = left(&mut server, key);
        assert!((1..=most).contains(&left) && left > most - 30_000, "{key} {left}");
    }
    // Whoever looks makes it stay.
    server.ask(&["PEXPIRE", &place, "1000"]);
    server.read(keep, at(epoch, 0));
    assert!(left(&mut server, &place) > 70_000);
    // Gone, its history means nothing.
    server.ask(&["DEL", &place]);
    let followed = server.read(keep, at(epoch, 0));
    assert!(followed.position.epoch != epoch && followed.position.offset == Offset(0));
    assert_eq!((followed.lineage.len(), told(&followed)), (0, Vec::new()));
}

#[test]
fn what_cannot_be_done_is_not_done_in_part() {
    let mut server = Server::start();
    let names = Names::new("t", 0, 1);
    let ([place, history], appended) = (names.keys(&channel()), names.appended(&channel(), 1));
    let (epoch, _) = server.append(KEEP, (1, 0), &[0]).unwrap();
    // Redis is full.
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let refused = server.append(KEEP, (1, 1), &[1]).unwrap_err();
    assert_eq!(refused.code(), Some("OOM"));
    assert_eq!(server.read(KEEP, at(epoch, 0)).position, at(epoch, 1).unwrap());
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    // No offset is left.
    server.ask(&["HSET", &place, "offset", "9007199254740990"]);
    assert!(server.append(KEEP, (1, 1), &[1, 2]).is_err());
    assert_eq!(server.append(KEEP, (1, 1), &[1]).unwrap(), (epoch, 9_007_199_254_740_991));
    let position = at(epoch, 9_007_199_254_740_990);
    assert_eq!(told(&server.read(KEEP, position)), [(9_007_199_254_740_991, 1)]);
    // A key is of another type.
    for key in [&place, &history, &appended] {
        server.ask(&["FLUSHALL"]);
        server.append(KEEP, (1, 9), &[9]).unwrap();
        server.ask(&["DEL", key]);
        server.ask(&["SADD", key, "x"]);
        if key != &place {
            assert!(server.append(KEEP, (1, 10), &[1]).is_err(), "{key}");
            let [place, ..] = Names::new("t", 0, 1).keys(&channel());
            assert_eq!(server.ask(&["HGET", &place, "offset"]), Value::BulkString(b"1".to_vec()));
        }
    }
}

#[test]
fn who_is_revoked_is_kept_by_the_later_word_until_it_is_over() {
    let mut server = Server::start();
    let names = Names::new("t", 0, 1);
    let user = |before: u64| Revoked::User(UserId::new("ann").unwrap(), before);
    let token = |id: &str| Revoked::Token(id.into());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let huge = u64::MAX - 1;
    for (whom, until) in [
        (user(50), now + 100),
        (user(40), u64::MAX),
        (user(60), huge),
        (token("ann"), now + 50),
        (token("over"), now - 10),
    ] {
        let revocation = Revocation { whom, until };
        let kept = Kept::Revoked(revocation);
        let cmd = server.scripts.keep(&names, &kept, &Bytes::from_static(b"errand"));
        let heard: u64 = cmd.query(&mut server.connection).unwrap();
        assert_eq!(heard, 0, "nobody listens");
    }
    let mut found = server.all_kept(&names);
    found.sort_by_key(|own| matches!(own, Kept::Revoked(Revocation { until: u64::MAX, .. })));
    let expected = [(token("ann"), now + 50), (user(60), u64::MAX)];
    assert_eq!(found, expected.map(|(whom, until)| Kept::Revoked(Revocation { whom, until })));
}

#[test]
fn of_a_room_the_later_word_is_kept_and_of_one_that_has_ended_for_a_time() {
    let mut server = Server::start();
    let names = Names::new("t", 0, 1);
    let channel = |name: &str| ChannelName::new(name).unwrap();
    let word = |name: &str, at_ms: u64, tie: u64, state: RoomState| {
        let version = RoomVersion { at_ms, tie };
        Kept::Room(Box::new(RoomWord { channel: channel(name), version, state }))
    };
    let made = |name: &str, at_ms, tie| word(name, at_ms, tie, RoomState::Made(made_room(2)));
    let ended = |name: &str, at_ms, tie| word(name, at_ms, tie, RoomState::Ended);
    // Numbers that are larger than those that Lua and sorted sets tell apart.
    let (large, larger) = (u64::MAX - 1, u64::MAX);
    let [_, until] = names.kept();
    let over = |server: &mut Server| match server.ask(&["ZCARD", &until]) {
        Value::Int(count) => count,
        other => panic!("{other:?}"),
    };
    for (said, counts, ended) in [
        (made("a", 5, 0), made("a", 5, 0), 0),
        (made("a", 4, larger), made("a", 5, 0), 0),
        (ended("a", 5, large), ended("a", 5, large), 1),
        (made("a", 5, 1), ended("a", 5, large), 1),
        (made("a", 5, larger), made("a", 5, larger), 0),
        (ended("a", 5, larger), made("a", 5, larger), 0),
        (word("a", 6, 0, RoomState::Empty), word("a", 6, 0, RoomState::Empty), 1),
        (made("a", 1 << 40, 0), made("a", 1 << 40, 0), 0),
    ] {
        let cmd = server.scripts.keep(&names, &said, &Bytes::from_static(b"errand"));
        assert_eq!(cmd.query::<u64>(&mut server.connection).unwrap(), 0);
        assert_eq!(server.all_kept(&names), [counts]);
        assert_eq!(over(&mut server), ended, "{said:?}");
    }
    // Whatever else stands there gives way.
    let [kept, _] = names.kept();
    server.ask(&["HSET", &kept, "\u{2}\u{1}a", "x"]);
    for said in [ended("b", 9, 9), made("a", 1, 1)] {
        let cmd = server.scripts.keep(&names, &said, &Bytes::new());
        cmd.exec(&mut server.connection).unwrap();
    }
    assert_eq!(over(&mut server), 1);
    // It goes once that is long ago, as soon as something is kept.
    server.ask(&["ZADD", &until, "1", "\u{2}\u{1}b"]);
    let cmd = server.scripts.keep(&names, &made("c", 1, 1), &Bytes::new());
    cmd.exec(&mut server.connection).unwrap();
    let mut found = server.all_kept(&names);
    found.sort_by_key(|own| matches!(own, Kept::Room(word) if word.channel == channel("c")));
    assert_eq!(found, [made("a", 1, 1), made("c", 1, 1)]);
    assert_eq!(over(&mut server), 0);
}

#[test]
fn a_history_ahead_of_its_place_is_given_up() {
    let mut server = Server::start();
    let [place, ..] = Names::new("t", 0, 1).keys(&channel());
    let (epoch, _) = server.append(KEEP, (1, 0), &[0, 1, 2, 3]).unwrap();
    server.ask(&["HSET", &place, "offset", "2"]);
    assert_eq!(server.append(KEEP, (1, 4), &[4, 5]).unwrap(), (epoch, 4));
    assert_eq!(told(&server.read(KEEP, at(epoch, 2))), [(3, 4), (4, 5)]);
}

#[test]
fn whatever_is_answered_is_understood_or_refused() {
    let bytes = |bytes: &[u8]| Value::BulkString(bytes.to_vec());
    let epoch = || bytes(&[1; 8]);
    for answer in [
        Value::Nil,
        Value::Int(-1),
        Value::Array(vec![bytes(b"0"), Value::Int(1)]),
        Value::Array(vec![]),
        Value::Array(vec![epoch()]),
        Value::Array(vec![bytes(b"short"), Value::Int(1)]),
        Value::Array(vec![epoch(), Value::Int(-1)]),
        Value::Array(vec![epoch(), Value::Int(1)]),
        Value::Array(vec![epoch(), Value::Int(1), bytes(b"short")]),
        Value::Array(vec![epoch(), Value::Int(1), Value::Int(1)]),
        Value::Array(vec![epoch(), Value::Int(1), bytes(b""), Value::Nil]),
        Value::Array(vec![epoch(), Value::Int(1), bytes(b""), Value::Array(vec![epoch(); 3])]),
    ] {
        assert!(reply(answer.clone()).is_none(), "{answer:?}");
    }
}
