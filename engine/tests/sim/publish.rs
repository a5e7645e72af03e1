//! What the API publishes. Some of it has idempotency keys and is sent again: also behind one that is held back, and when
//! nobody has waited for the first answer.

use super::client::{Speaks, payload_size};
use super::dice::Dice;
use super::judge::{Ident, Judge, Rule};
use super::net::ConnId;
use super::node::Item;
use super::trace::note;
use super::world::World;

/// Of these so many are remembered, to be sent again.
const SENT_MAX: usize = 32;

/// A publication that may be sent again.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    number: u64,
    channel: usize,
    except: Option<String>,
}

impl Sent {
    /// Something with a key is sent: perhaps it will be again.
    fn remember(self, all: &mut Vec<Sent>, dice: &mut Dice) {
        if all.len() == SENT_MAX {
            all.swap_remove(dice.below(SENT_MAX));
        }
        all.push(self);
    }
}

impl World {
    pub(super) fn publish(&mut self) {
        let channel = self.any_channel();
        let home = self.cluster.home(&self.setup.channels[channel].name);
        let others: Vec<usize> = (0..self.setup.channels.len())
            .filter(|&other| self.cluster.home(&self.setup.channels[other].name) == home)
            .collect();
        let count = match self.dice.below(10) {
            0..6 => 1,
            6..9 => self.dice.range(2, 8),
            _ => self.dice.magnitude(8, 100),
        };
        let mixed = self.dice.chance(300);
        let channels: Vec<usize> = (0..count)
            .map(|_| if mixed { others[self.dice.below(others.len())] } else { channel })
            .collect();
        let except = self.any_conn().filter(|_| self.dice.chance(self.setup.no_echo));
        self.publish_to(home, &channels, None, except);
    }

    /// More at once than any chunk, window or send holds.
    pub(super) fn flood(&mut self) {
        let channel = self.any_channel();
        let home = self.cluster.home(&self.setup.channels[channel].name);
        let each = self.dice.magnitude(500, 20_000);
        let count = self.dice.magnitude(34_000, 200_000) / each + 1;
        self.publish_to(home, &vec![channel; count], Some(each), None);
    }

    /// Payloads of `len` bytes, or of any. Returns the numbers, where the shard took them.
    pub(super) fn publish_to(
        &mut self,
        home: usize,
        channels: &[usize],
        len: Option<usize>,
        except: Option<ConnId>,
    ) -> Vec<u64> {
        // Of `raw.v1` nobody could say what it was not sent.
        let except =
            except.filter(|&conn| self.clients[self.owners[conn]].speaks == Speaks::Ringfeed);
        let except = except.and_then(|conn| Some((conn, self.name_of_conn(conn)?)));
        let mut numbers = Vec::new();
        let mut items = Vec::new();
        for &channel in channels {
            let (kind, any) = payload_size(&mut self.dice, &self.setup);
            let number = self.judge.publication(channel, kind, len.unwrap_or(any));
            numbers.push(number);
            let excepted = except.as_ref().filter(|_| self.judge.ident(number) != Ident::Empty);
            if let Some((conn, _)) = excepted {
                self.judge.except(number, *conn);
            }
            let excepted = excepted.map(|(_, name)| name.clone());
            let payload = self.judge.payload(number);
            // Of what has no number nobody could say how often it is there.
            let keyed =
                self.judge.ident(number) != Ident::Empty && self.dice.chance(self.setup.keyed);
            if keyed {
                let sent = Sent { number, channel, except: excepted.clone() };
                sent.remember(&mut self.sent, &mut self.dice);
            }
            let (name, except) = (self.setup.channels[channel].name.as_str(), excepted);
            items.push(Item { number, channel, name, kind, payload, except, keyed });
        }
        let bytes: usize = items.iter().map(|item| item.payload.len()).sum();
        match self.cluster.publish(home, items) {
            Some(waiting) => {
                note!(
                    self.trace,
                    "the API publishes {} on {:?} at s{home}, {bytes} bytes",
                    numbers.len(),
                    channels.first()
                );
                self.waiting.push(waiting);
                numbers
            }
            None => {
                note!(self.trace, "the API cannot publish: the queue of s{home} is full");
                Vec::new()
            }
        }
    }

    /// The API sends something again, once or more often.
    pub(super) fn publish_again(&mut self) {
        if self.sent.is_empty() {
            return;
        }
        let Sent { number, channel, except } = self.sent[self.dice.below(self.sent.len())].clone();
        let name = self.setup.channels[channel].name.as_str();
        let home = self.cluster.home(name);
        let count = if self.dice.chance(200) { self.dice.range(2, 5) } else { 1 };
        let item = |_| Item {
            number,
            channel,
            name,
            kind: self.judge.publications[number as usize - 1].kind,
            payload: self.judge.payload(number),
            except: except.clone(),
            keyed: true,
        };
        let items = (0..count).map(item).collect();
        if let Some(waiting) = self.cluster.publish(home, items) {
            note!(self.trace, "the API publishes {number} again, {count} times");
            self.judge.publications[number as usize - 1].is_sent_again = true;
            self.waiting.push(waiting);
        }
    }
}

impl Judge {
    /// What was answered to a publication that has a place.
    pub(super) fn answered_once(&mut self, number: u64, duplicate: bool) {
        let publication = &mut self.publications[number as usize - 1];
        let (again, first) = (publication.is_sent_again, publication.is_acknowledged);
        publication.is_acknowledged |= !duplicate;
        if duplicate && !again {
            let what = format_args!("{number} was sent once and is called a duplicate");
            self.broken(Rule::Once, what);
        }
        if !duplicate && first {
            self.broken(Rule::Once, format_args!("{number} was published twice"));
        }
    }
}
