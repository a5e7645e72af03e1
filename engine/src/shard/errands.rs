//! What is asked of all other nodes from here, until they have answered; and what they ask of this one.

use std::collections::BTreeMap;

use ringfeed_protocol::{ChannelName, Refused, UserId};
use ringfeed_wire::Wire;
use tokio::sync::oneshot;

use super::home::Deliver;
use super::{Shard, route};
use crate::message::{
    Delivery, Errand, ErrandId, Gathered, Kept, Listed, NodesRequest, Outcome, Reached, Reply,
    RoomDenied, RoomReply, RoomReport, RoomRequest, ToUpstream,
};

/// Why an order of another node has reached nobody who is there.
const BEHIND: &str =
    "not all nodes have sent it: on one of them connections are behind with what is sent to them";

/// Who wants to know what has come of it, with what has come of it here.
#[derive(Debug)]
enum Asker {
    Order { user: Option<UserId>, reply: Reply<Reached>, here: u32 },
    List { reply: oneshot::Sender<Result<Vec<Listed>, Refused>>, here: Vec<Listed> },
    Room { reply: RoomReply, here: RoomReport },
    Control(oneshot::Sender<Gathered>),
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Errands {
    next: u64,
    /// By ticket. The bridge bounds how many there are: it answers all.
    waiting: BTreeMap<u64, Asker>,
}

impl Errands {
    fn add(&mut self, asker: Asker) -> u64 {
        let ticket = self.next;
        self.next += 1;
        self.waiting.insert(ticket, asker);
        ticket
    }
}

/// Says to how many connections an order was handed; `user` is whose these are.
fn answer_order(user: Option<UserId>, reply: Reply<Reached>, reached: Reached, deliver: Deliver) {
    match (reply, user) {
        (Reply::Control(reply), _) => drop(reply.send(reached)),
        (Reply::Session(origin), user) => {
            let shard = origin.shard;
            let answer = match (reached, user) {
                (Ok(connections), Some(user)) => Delivery::Handed { origin, user, connections },
                (Err(refused), _) => Delivery::Refused { origin, attempt: None, refused },
                // Sessions order nothing but for users.
                (Ok(_), None) => return,
            };
            deliver(shard, answer);
        }
    }
}

impl<W: Wire> Shard<W> {
    fn ask_nodes(&mut self, asker: Asker, errand: Errand) {
        let ticket = self.errands.add(asker);
        self.links.upstream(ToUpstream::Errand { from: self.id, ticket, errand });
    }

    /// Answers an order that was carried out here, once other nodes, if there may be any, have carried it out, too. Where it was
    /// refused here nobody else is asked.
    pub(super) fn finish_order(&mut self, errand: Errand, reached: Reached, reply: Reply<Reached>) {
        let user = match &errand {
            Errand::User { user, .. } => Some(user.clone()),
            _ => None,
        };
        match reached {
            Ok(here) if self.config.has_upstream() => {
                self.ask_nodes(Asker::Order { user, reply, here }, errand);
            }
            reached => {
                let mut deliver = route(self.id, &mut self.own, &mut self.links);
                answer_order(user, reply, reached, &mut deliver);
            }
        }
    }

    /// Says which connections a user has, here and on other nodes.
    pub(super) fn finish_list(
        &mut self,
        user: UserId,
        reply: oneshot::Sender<Result<Vec<Listed>, Refused>>,
    ) {
        let here = self.users.of(&user).iter().map(Listed::from).collect();
        if self.config.has_upstream() {
            self.ask_nodes(Asker::List { reply, here }, Errand::List { user });
        } else {
            let _ = reply.send(Ok(here));
        }
    }

    /// Does what the API asks of a room that is homed here, and says what has come of it once other nodes know it, too, where it
    /// is for them.
    pub(super) fn serve_room(&mut self, name: &ChannelName, what: RoomRequest, reply: RoomReply) {
        let mut deliver = route(self.id, &mut self.own, &mut self.links);
        let done = self.homes.serve_room(name, what, self.work_ms, &mut deliver);
        drop(deliver);
        match done {
            Ok((here, Some(word))) => {
                self.ask_nodes(Asker::Room { reply, here }, Errand::Keep(Kept::Room(word)));
            }
            done => drop(reply.send(done.map(|(report, _)| report))),
        }
    }

    pub(super) fn serve_nodes(&mut self, what: NodesRequest) {
        match what {
            NodesRequest::Errand { id, errand } => self.do_errand(id, *errand),
            NodesRequest::Ask { errand, reply } => {
                self.ask_nodes(Asker::Control(reply), *errand);
            }
            NodesRequest::Gathered { ticket, gathered } => self.gathered(ticket, gathered),
        }
    }

    /// Other nodes have answered, or did not.
    fn gathered(&mut self, ticket: u64, gathered: Gathered) {
        let Some(asker) = self.errands.waiting.remove(&ticket) else { return };
        match asker {
            Asker::Order { user, reply, here } => {
                let reached = gathered.and_then(|Outcome { reached, behind, .. }| match behind {
                    false => Ok(here.saturating_add(reached)),
                    true => Err(Refused::Unavailable { detail: BEHIND }),
                });
                let mut deliver = route(self.id, &mut self.own, &mut self.links);
                answer_order(user, reply, reached, &mut deliver);
            }
            Asker::List { reply, mut here } => {
                let _ = reply.send(gathered.map(|outcome| {
                    here.extend(outcome.connections);
                    here
                }));
            }
            Asker::Room { reply, here } => {
                let _ = reply.send(match gathered {
                    Ok(Outcome { no_room: false, .. }) => Ok(here),
                    Ok(_) => Err(RoomDenied::NotEverywhere),
                    Err(refused) => Err(RoomDenied::Refused(refused)),
                });
            }
            Asker::Control(reply) => drop(reply.send(gathered)),
        }
    }

    /// Does what another node asks.
    fn do_errand(&mut self, of: ErrandId, errand: Errand) {
        let outcome = match errand {
            Errand::User { user, connection, order } => {
                Outcome::of_order(&self.order_user(&user, connection, &order))
            }
            Errand::Connection { connection, order } => {
                Outcome::of_order(&self.order_one(connection, &order))
            }
            Errand::List { user } => {
                let connections = self.users.of(&user).iter().map(Listed::from).collect();
                Outcome { connections, ..Outcome::default() }
            }
            Errand::Keep(Kept::Room(word)) => {
                let mut deliver = route(self.id, &mut self.own, &mut self.links);
                self.homes.hear_room(*word, self.work_ms, &mut deliver);
                Outcome::default()
            }
            // That comes as a request of its own.
            Errand::Keep(Kept::Revoked(_)) => Outcome::default(),
        };
        self.links.upstream(ToUpstream::Outcome { of, outcome });
    }
}
