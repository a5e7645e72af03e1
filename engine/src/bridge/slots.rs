//! Where things are in a cluster of Redis: each of its masters serves some of 16,384 slots, and what has a name is in one of
//! them (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).

use redis::{RedisError, Value};

/// Slots of a cluster.
pub(super) const SLOTS: u16 = 1 << 14;
/// Masters, to each of which there are two connections.
const MASTERS_MAX: usize = 1000;
/// Servers that are remembered, to ask one of them where the cluster is.
const SOME_MAX: usize = 16;
/// Replicas that are looked at.
const REPLICAS_MAX: usize = 1000;

/// Where a server is.
pub(crate) type Place = (String, u16);

/// CRC-16/XMODEM of each byte.
const CRC: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = ((byte as u16) << 8, 0);
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// The slot of a key, or of a channel of sharded pub/sub: that of its hash tag, if it has one.
pub(super) fn slot(name: &str) -> u16 {
    let tag = name.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    let counts = tag.map(|(tag, _)| tag).filter(|tag| !tag.is_empty()).unwrap_or(name);
    let next = |crc: u16, byte: u8| (crc << 8) ^ CRC[usize::from((crc >> 8) as u8 ^ byte)];
    counts.bytes().fold(0, next) % SLOTS
}

/// Why what a server says of its cluster is of no use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MapError {
    #[error("what it says of the slots of its cluster cannot be read")]
    Unread,
    #[error(
        "of its cluster, {0} slots of {SLOTS} are served by nobody (CLUSTER ADDSLOTS, or `redis-cli --cluster fix`)"
    )]
    Uncovered(usize),
    #[error("its cluster has more than {MASTERS_MAX} masters")]
    Masters,
}

/// Which server serves what.
#[derive(Debug)]
pub(super) struct Map {
    /// Those that serve slots.
    pub(super) masters: Vec<Place>,
    /// Copies of them, some if there are many.
    pub(super) replicas: Vec<Place>,
    /// For each slot, which of the masters.
    of: Vec<Option<u16>>,
}

impl Map {
    /// From the answer to CLUSTER SLOTS. A server that has no address of its own to tell is where it was asked.
    pub(super) fn read(answer: &Value, asked: &str) -> Result<Map, MapError> {
        let Value::Array(ranges) = answer else { return Err(MapError::Unread) };
        let (masters, replicas) = (Vec::new(), Vec::new());
        let mut map = Map { masters, replicas, of: vec![None; SLOTS.into()] };
        for range in ranges {
            map.add(range, asked).ok_or(MapError::Unread)?;
            if map.masters.len() > MASTERS_MAX {
                return Err(MapError::Masters);
            }
        }
        match map.of.iter().filter(|own| own.is_none()).count() {
            0 => Ok(map),
            uncovered => Err(MapError::Uncovered(uncovered)),
        }
    }

    fn add(&mut self, range: &Value, asked: &str) -> Option<()> {
        let Value::Array(range) = range else { return None };
        let [Value::Int(first), Value::Int(last), master, replicas @ ..] = &range[..] else {
            return None;
        };
        let slots = usize::try_from(*first).ok()?..=usize::try_from(*last).ok()?;
        let master = place(master, asked)?;
        let known = self.masters.iter().position(|own| *own == master);
        let at = known.unwrap_or(self.masters.len());
        if known.is_none() {
            self.masters.push(master);
        }
        let at = u16::try_from(at).ok()?;
        self.of.get_mut(slots)?.fill(Some(at));
        // One whose address is not known is of no use, and nothing is asked of it.
        for replica in replicas.iter().filter_map(|own| place(own, asked)) {
            if self.replicas.len() < REPLICAS_MAX && !self.replicas.contains(&replica) {
                self.replicas.push(replica);
            }
        }
        Some(())
    }

    /// Some of its servers, masters first.
    pub(super) fn some(&self) -> Vec<Place> {
        self.masters.iter().chain(&self.replicas).take(SOME_MAX).cloned().collect()
    }

    /// Which of the masters serves a slot.
    pub(super) fn master_of(&self, slot: u16) -> usize {
        self.of.get(usize::from(slot)).copied().flatten().unwrap_or(0).into()
    }
}

fn place(server: &Value, asked: &str) -> Option<Place> {
    let Value::Array(server) = server else { return None };
    let [host, Value::Int(port), ..] = &server[..] else { return None };
    let host = match host {
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        Value::SimpleString(host) => host,
        Value::Nil => "",
        _ => return None,
    };
    let port = u16::try_from(*port).ok().filter(|port| *port != 0)?;
    Some((meant(host, asked)?.to_owned(), port))
}

/// Where an error says to ask instead; `asked` is the host of the server that has said so.
pub(super) fn elsewhere(refused: &RedisError, asked: &str) -> Option<Place> {
    let (host, port) = refused.redirect_node()?.0.rsplit_once(':')?;
    Some((meant(host, asked)?.to_owned(), port.parse().ok()?))
}

/// The host that a server means: the one by which it was asked itself, where it has none to tell.
fn meant<'a>(host: &'a str, asked: &'a str) -> Option<&'a str> {
    match host {
        "" => Some(asked),
        // It is to be called by a name that it does not have.
        "?" => None,
        host => Some(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        for (name, expected) in [
            ("", 0),
            ("123456789", 0x31c3),
            ("foo", 12182),
            ("bar", 5061),
            ("{foo}", 12182),
            ("x{foo}y}{bar}", 12182),
            // Nothing is no tag.
            ("{}foo", slot("{}foo")),
            ("foo{", slot("foo{")),
        ] {
            assert_eq!(slot(name), expected, "{name}");
        }
        assert_ne!(slot("{}foo"), slot("foo"));
        assert_ne!(slot("foo{"), slot("foo"));
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn server(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), text("id"), Value::Map(Vec::new())])
    }

    fn range(first: i64, last: i64, servers: Vec<Value>) -> Value {
        let mut range = vec![Value::Int(first), Value::Int(last)];
        range.extend(servers);
        Value::Array(range)
    }

    #[test]
    fn a_map_says_who_serves_what() {
        let (a, b) = (|| server(text("10.0.0.1"), 7000), || server(Value::Nil, 7001));
        let replica = server(text("b.example"), 7002);
        let answer = Value::Array(vec![
            range(0, 99, vec![a(), server(text("?"), 7003)]),
            range(100, 16_000, vec![b(), replica]),
            range(16_001, 16_383, vec![a(), server(text("b.example"), 7002)]),
        ]);
        let map = Map::read(&answer, "here").unwrap();
        assert_eq!(map.masters, [("10.0.0.1".to_owned(), 7000), ("here".to_owned(), 7001)]);
        assert_eq!(map.replicas, [("b.example".to_owned(), 7002)]);
        let of = [0, 99, 100, 16_000, 16_001, 16_383].map(|slot| map.master_of(slot));
        assert_eq!(of, [0, 0, 1, 1, 0, 0]);
    }

    #[test]
    fn a_map_that_is_of_no_use_is_refused() {
        let one = || server(text("a"), 1);
        let read = |ranges| Map::read(&Value::Array(ranges), "").unwrap_err();
        assert_eq!(read(vec![]), MapError::Uncovered(16_384));
        assert_eq!(read(vec![range(0, 16_382, vec![one()])]), MapError::Uncovered(1));
        let many = (0..16_384).map(|n| range(n, n, vec![server(text("a"), 1 + n)])).collect();
        assert_eq!(read(many), MapError::Masters);
        for unread in [
            Value::Nil,
            Value::Array(vec![]),
            range(0, 16_383, vec![]),
            range(0, 16_384, vec![one()]),
            range(-1, 5, vec![one()]),
            range(7, 5, vec![one()]),
            range(0, 16_383, vec![server(text("?"), 1)]),
            range(0, 16_383, vec![server(text("a"), 0)]),
            range(0, 16_383, vec![server(text("a"), 65_536)]),
            range(0, 16_383, vec![server(Value::BulkString(vec![0xff]), 1)]),
            range(0, 16_383, vec![Value::Array(vec![text("a")])]),
        ] {
            assert_eq!(read(vec![unread.clone()]), MapError::Unread, "{unread:?}");
        }
        assert_eq!(Map::read(&Value::Nil, "").unwrap_err(), MapError::Unread);
    }
}
