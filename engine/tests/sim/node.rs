//! Every contact with the engine: shards with their inboxes, and what the control thread asks of them.
//! Nothing else here knows the engine's types.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringfeed_engine::clock::Clock;
use ringfeed_engine::config::{
    ChannelRule, Config, LagPolicy, Presence, Publishers, Sources, Subscribers,
};
use ringfeed_engine::ids::ShardId;
use ringfeed_engine::message::{
    Asked, ChannelPage, HistoryPage, KeyOf, Keyed, Listed, Post, PresencePage, Published, Reached,
    Receipt, Reply, Request, RoomDenied, RoomReport, Sender, Shards, StoredPayload, Waker, queues,
};
use ringfeed_engine::settings::Settings;
use ringfeed_engine::shard::door::Admission;
use ringfeed_engine::shard::{
    Environment, Local, Promoted, Shard, Shared, TurnLimits, check_together,
};
use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::handshake::Request as Head;
use ringfeed_protocol::{ChannelName, Dialect, IdempotencyKey, Offset, Position, Refused};
use tokio::sync::{mpsc, oneshot};

use super::client::Speaks;
use super::control;
use super::dice::Dice;
use super::judge::Kind;
use super::ledger::Found;
use super::net::{ConnId, Net, SimWire};
use super::presence::Present;
use super::rooms::Told;
use super::setup::{Setup, Shows};
use super::talk::portico;
use super::talk::rooms::LOBBY;
use super::token;

/// One shard, and what is on its thread besides.
struct Node {
    /// `None` once it has drained and its thread has ended.
    shard: Option<Shard<SimWire>>,
    local: Rc<Local>,
    /// Readable once somebody has woken it.
    wake: UnixStream,
    /// Its last turn had nothing left to do.
    asleep: bool,
}

/// All shards of one process.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    pub(super) shared: Arc<Shared>,
    net: Rc<RefCell<Net>>,
    /// What shards ask of the control thread.
    pub(super) asked: mpsc::Receiver<Asked>,
    /// What a clock on the wall shows.
    pub(super) unix_ms: Rc<Cell<u64>>,
}

/// A publication that the API asks for.
pub(crate) struct Item<'a> {
    pub(crate) number: u64,
    pub(crate) channel: usize,
    pub(crate) name: &'a str,
    pub(crate) kind: Kind,
    pub(crate) payload: Vec<u8>,
    /// The name of a connection that is not to get it.
    pub(crate) except: Option<String>,
    /// It has an idempotency key.
    pub(crate) keyed: bool,
}

/// Answers that the control thread waits for.
pub(crate) enum Waiting {
    /// Publications: number and channel of each.
    Published(Vec<(u64, usize)>, oneshot::Receiver<Vec<(u32, Published)>>),
    History(usize, oneshot::Receiver<Option<HistoryPage>>),
    Rows(oneshot::Receiver<ChannelPage>),
    Presence(usize, oneshot::Receiver<Option<PresencePage>>),
    /// What is said to an order for a room.
    Room(usize, oneshot::Receiver<Result<RoomReport, RoomDenied>>),
    /// Connections of a user, as an order by this number finds them.
    There(usize, oneshot::Receiver<Result<Vec<Listed>, Refused>>),
    /// How many connections the order has reached.
    Reached(usize, oneshot::Receiver<Reached>),
    /// A shard goes by a policy, or knows of a revocation: its number, and the shard.
    Reconfigured(usize, usize, oneshot::Receiver<ChannelPage>),
    Revoked(usize, usize, oneshot::Receiver<ChannelPage>),
}

/// An answer to the control thread, in plain types.
pub(crate) enum Answer {
    Published(Vec<Outcome>),
    /// The channel's page, if there is such a channel.
    History(usize, Option<Page>),
    Rows(Vec<Row>),
    /// Of a channel, if there is such a one.
    Presence(usize, Option<Present>),
    Room(usize, Told),
    /// Names of connections.
    There(usize, Vec<String>),
    /// `None`: it was refused.
    Reached(usize, Option<u32>),
    Reconfigured(usize, usize),
    Revoked(usize, usize),
    /// The shard dropped the request.
    Lost,
}

/// What came of a publication: epoch and offset, or the error's code.
pub(crate) struct Outcome {
    pub(crate) number: u64,
    pub(crate) channel: usize,
    pub(crate) place: Result<(u64, u64), String>,
    /// It had been published before.
    pub(crate) duplicate: bool,
}

/// A page of history.
pub(crate) struct Page {
    pub(crate) epoch: u64,
    pub(crate) newest: u64,
    /// Offset and payload of each.
    pub(crate) publications: Vec<(u64, Vec<u8>)>,
}

/// Where a channel stands.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) epoch: u64,
    pub(crate) newest: u64,
    pub(crate) subscribers: u64,
}

/// What a shard holds; all zero when nobody is there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) connections: u64,
    pub(crate) subscriptions: u64,
    pub(crate) sockets: u64,
    pub(crate) log_bytes: u64,
    pub(crate) outbox_bytes: u64,
    pub(crate) retained_bytes: u64,
    pub(crate) partial_message_bytes: u64,
    pub(crate) sessions_waiting: u64,
    pub(crate) users: u64,
    pub(crate) questions: u64,
}

impl Cluster {
    pub(crate) fn new(
        setup: &Setup,
        net: &Rc<RefCell<Net>>,
        dice: &mut Dice,
        elapsed: &Rc<Cell<Duration>>,
    ) -> Cluster {
        let (mut ends, mut inboxes, mut wakes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..setup.shards {
            let (wake, waker) = UnixStream::pair().expect("descriptors are to be had");
            wake.set_nonblocking(true).expect("a socket can be made non-blocking");
            waker.set_nonblocking(true).expect("a socket can be made non-blocking");
            let waker = Waker::new(File::from(OwnedFd::from(waker)));
            let (end, inbox) = queues(waker, setup.queue_batches);
            ends.push(end);
            inboxes.push(inbox);
            wakes.push(wake);
        }
        let settings = Settings::new(configuration(setup)).expect("the configuration is valid");
        let shards = Shards::new(ends, [dice.number(), dice.number()]);
        let (shared, asked) = Shared::new(settings, shards, Admission::new(u32::MAX, 0));
        let start = Instant::now();
        let unix_ms = Rc::new(Cell::new(1_700_000_000_000));
        let nodes = inboxes
            .into_iter()
            .zip(wakes)
            .enumerate()
            .map(|(number, (inbox, wake))| {
                let local = Rc::new(Local::new(None));
                let environment = Environment {
                    clock: Clock::Simulated {
                        start,
                        elapsed: elapsed.clone(),
                        unix_ms: unix_ms.clone(),
                    },
                    seed: dice.number(),
                    limits: TurnLimits {
                        events: setup.turn.events,
                        batches: setup.turn.batches,
                        promotions: setup.turn.promotions,
                        sends: setup.turn.sends,
                        deliveries: setup.turn.deliveries,
                        request_bytes: setup.turn.request_bytes,
                    },
                };
                let wire = SimWire::new(net.clone(), number);
                let number = ShardId(number as u16);
                let shard =
                    Shard::new(number, wire, shared.clone(), inbox, local.clone(), environment);
                Node { shard: Some(shard), local, wake, asleep: false }
            })
            .collect();
        Cluster { nodes, shared, net: net.clone(), asked, unix_ms }
    }

    pub(crate) fn count(&self) -> usize {
        self.nodes.len()
    }

    /// One turn, as the shard's thread would go on. Returns whether it has more to do at once.
    pub(crate) fn turn(&mut self, at: usize) -> bool {
        let Node { shard, asleep, wake, .. } = &mut self.nodes[at];
        let Some(running) = shard else { return false };
        let waker = self.shared.shards.waker(ShardId(at as u16));
        waker.set_sleeping(false);
        while matches!(wake.read(&mut [0; 64]), Ok(1..)) {}
        let busy = running.turn().expect("this wire does not fail");
        *asleep = !busy && !running.has_mail();
        if running.is_drained() {
            // With its thread its queues are gone.
            *shard = None;
        }
        waker.set_sleeping(*asleep);
        busy
    }

    /// Whether the shard's thread would run: it has not gone to sleep, or was woken.
    pub(crate) fn is_awake(&mut self, at: usize) -> bool {
        let Node { shard, asleep, wake, .. } = &mut self.nodes[at];
        shard.is_some()
            && (!*asleep
                || self.net.borrow().sides[at].has_events()
                || matches!(wake.read(&mut [0; 64]), Ok(1..)) && {
                    *asleep = false;
                    true
                })
    }

    /// Whether its thread has ended.
    pub(crate) fn has_ended(&self, at: usize) -> bool {
        self.nodes[at].shard.is_none()
    }

    /// The shard's timer.
    pub(crate) fn tick(&self, at: usize) {
        self.nodes[at].local.set_tick();
        self.shared.shards.waker(ShardId(at as u16)).wake();
    }

    /// Hands over a connection as the door does.
    pub(crate) fn promote(
        &self,
        at: usize,
        socket: OwnedFd,
        endpoint: usize,
        speaks: Speaks,
        rest: Vec<u8>,
        (found, conn, setup): (&Found, ConnId, &Setup),
    ) {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let permit = self.shared.admission.admit(address).expect("there is no limit");
        let dialect = match speaks {
            Speaks::Ringfeed => Dialect::Ringfeed,
            Speaks::Raw => Dialect::Raw,
            Speaks::Echo => Dialect::Echo,
            Speaks::Rooms => Dialect::Rooms,
            Speaks::Fluxus => Dialect::Fluxus,
            Speaks::Portico => Dialect::Portico,
        };
        let cookie = portico::cookie(conn);
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{cookie}\r\n");
        let request = Head::parse_whole(head.as_bytes());
        let hidden = setup.endpoints[endpoint].len() as u8;
        let talk = dialect.talk(&request.expect("a request"), hidden);
        let endpoint = endpoint as u8;
        let answer = Vec::new();
        let credentials = control::credentials(found, conn, setup);
        self.nodes[at].local.promote(Promoted {
            socket,
            endpoint,
            dialect,
            talk,
            answer,
            rest,
            permit,
            credentials,
        });
        self.shared.shards.waker(ShardId(at as u16)).wake();
    }

    pub(crate) fn home(&self, channel: &str) -> usize {
        self.shared.shards.home(channel).index()
    }

    /// `POST /api/batch` for one home. `None` when
    /// the shard's queue is full.
    pub(crate) fn publish(&self, home: usize, items: Vec<Item>) -> Option<Waiting> {
        let (reply, answer) = oneshot::channel();
        let numbers = items.iter().map(|item| (item.number, item.channel)).collect();
        let items = (0u32..)
            .zip(items)
            .map(|(place, Item { number, name, kind, payload, except, keyed, .. })| {
                let channel = ChannelName::new(name).expect("channels have valid names");
                let kind = match kind {
                    Kind::Json => PayloadKind::Json,
                    Kind::Text => PayloadKind::Text,
                    Kind::Binary => PayloadKind::Binary,
                };
                let payload = StoredPayload { kind, bytes: Bytes::from(payload) };
                let except = except.map(|id| id.parse().expect("names of connections"));
                let key = keyed.then(|| {
                    let key = IdempotencyKey::new(&number.to_string()).expect("a valid key");
                    Box::new(Keyed { of: KeyOf::Application, key })
                });
                let says = except.is_some() || keyed;
                let by = says.then(|| Box::new(Sender { except, key, ..Sender::default() }));
                (place, Post { channel, payload, by })
            })
            .collect();
        self.request(home, Request::PublishBatch { items, reply })
            .then_some(Waiting::Published(numbers, answer))
    }

    /// `GET /api/history`.
    pub(crate) fn history(
        &self,
        channel: usize,
        name: &str,
        after: Option<u64>,
        limit: u32,
    ) -> Option<Waiting> {
        let (reply, answer) = oneshot::channel();
        let home = self.home(name);
        let name = ChannelName::new(name).expect("channels have valid names");
        let request = Request::History {
            channel: name,
            after: after.map(Offset),
            limit,
            reply: Reply::Control(reply),
        };
        self.request(home, request).then_some(Waiting::History(channel, answer))
    }

    /// `GET /api/presence`.
    pub(crate) fn presence(&self, channel: usize, name: &str, limit: u32) -> Option<Waiting> {
        let (reply, answer) = oneshot::channel();
        let home = self.home(name);
        let name = ChannelName::new(name).expect("channels have valid names");
        let reply = Reply::Control(reply);
        let request = Request::Presence { channel: name, after: None, limit, reply };
        self.request(home, request).then_some(Waiting::Presence(channel, answer))
    }

    /// One shard's part of `GET /api/channels`.
    pub(crate) fn list(&self, home: usize) -> Option<Waiting> {
        let (reply, answer) = oneshot::channel();
        self.request(home, Request::ListChannels { from: 0, reply })
            .then_some(Waiting::Rows(answer))
    }

    /// Tells one shard to drain; `false` when its queue is full.
    pub(crate) fn drain(&self, at: usize) -> bool {
        self.request(at, Request::Drain)
    }

    pub(super) fn request(&self, home: usize, request: Request) -> bool {
        self.shared.shards.request(ShardId(home as u16), request).is_ok()
    }

    /// Nothing is under way: what shards think of each other must be so. Where one has ended, what others have
    /// for it stays under way.
    pub(crate) fn check_together(&self) {
        if self.nodes.iter().all(|node| node.shard.is_some()) {
            check_together(self.nodes.iter().filter_map(|node| node.shard.as_ref()));
        }
    }

    /// Users who come and go of whom the application was not told when the last tick came.
    pub(crate) fn news_waiting(&self) -> u64 {
        self.shared.counters.iter().map(|own| own.presence_changes_waiting.read()).sum()
    }

    /// Counters as the last tick wrote them.
    pub(crate) fn held(&self, at: usize) -> Held {
        let counters = &self.shared.counters[at];
        Held {
            connections: counters.connections.read(),
            subscriptions: counters.subscriptions.read(),
            sockets: counters.sockets.read(),
            log_bytes: counters.log_bytes.read(),
            outbox_bytes: counters.outbox_bytes.read(),
            retained_bytes: counters.retained_bytes.read(),
            partial_message_bytes: counters.partial_message_bytes.read(),
            sessions_waiting: counters.sessions_waiting.read(),
            users: counters.users.read(),
            questions: counters.questions.read(),
        }
    }
}

impl Waiting {
    /// The answer, once it is there.
    pub(crate) fn poll(&mut self) -> Option<Answer> {
        let answer = match self {
            Waiting::Published(numbers, answer) => answer.try_recv().map(|answers| {
                assert_eq!(answers.len(), numbers.len(), "rule api: each item is answered once");
                let outcomes = answers.into_iter().map(|(place, result)| {
                    let (number, channel) = numbers[place as usize];
                    let duplicate = matches!(&result, Ok(receipt) if receipt.duplicate);
                    let place = result
                        .map(|Receipt { position, .. }| {
                            let Position { epoch, offset } =
                                position.expect("nothing is spooled here");
                            (epoch.0, offset.0)
                        })
                        .map_err(|refused| refused.code().as_str().to_owned());
                    Outcome { number, channel, place, duplicate }
                });
                Answer::Published(outcomes.collect())
            }),
            Waiting::History(channel, answer) => answer.try_recv().map(|page| {
                let page = page.map(|page| Page {
                    epoch: page.position.epoch.0,
                    newest: page.position.offset.0,
                    publications: page
                        .publications
                        .into_iter()
                        .map(|p| (p.offset.0, p.payload.bytes.to_vec()))
                        .collect(),
                });
                Answer::History(*channel, page)
            }),
            Waiting::Presence(channel, answer) => answer.try_recv().map(|page| {
                let page = page.map(|page| Present {
                    epoch: page.position.epoch.0,
                    version: page.version,
                    count: page.count,
                    connections: page.connections,
                    more: page.more,
                    names: page
                        .present
                        .map(|all| all.iter().map(|own| own.who.to_string()).collect()),
                });
                Answer::Presence(*channel, page)
            }),
            Waiting::Room(channel, answer) => {
                let told = answer.try_recv().map(control::told_of_room);
                told.map(|told| Answer::Room(*channel, told))
            }
            Waiting::Rows(answer) => answer.try_recv().map(|page| {
                let rows = page.rows.into_iter().map(|row| Row {
                    name: row.name.to_string(),
                    epoch: row.position.epoch.0,
                    newest: row.position.offset.0,
                    subscribers: row.subscribers,
                });
                Answer::Rows(rows.collect())
            }),
            Waiting::There(number, there) => there.try_recv().map(|there| {
                let there = there.expect("there is no other node");
                Answer::There(*number, there.iter().map(|own| own.connection.to_string()).collect())
            }),
            Waiting::Reached(number, reached) => {
                reached.try_recv().map(|count| Answer::Reached(*number, count.ok()))
            }
            Waiting::Reconfigured(number, shard, behind) => {
                behind.try_recv().map(|_| Answer::Reconfigured(*number, *shard))
            }
            Waiting::Revoked(number, shard, behind) => {
                behind.try_recv().map(|_| Answer::Revoked(*number, *shard))
            }
        };
        match answer {
            Ok(answer) => Some(answer),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Answer::Lost),
        }
    }
}

fn presence(shows: Shows) -> Presence {
    match shows {
        Shows::Off => Presence::Off,
        Shows::Count => Presence::Count,
        Shows::Full => Presence::Full,
    }
}

/// The configuration that a run begins with.
pub(super) fn configuration(setup: &Setup) -> Config {
    static DEFAULTS: OnceLock<Config> = OnceLock::new();
    let defaults = || Config::load(&Sources::default()).expect("the defaults are valid");
    let mut config = DEFAULTS.get_or_init(defaults).clone();
    let limits = &mut config.limits;
    limits.message_bytes_max = setup.message_bytes_max;
    limits.messages_per_second_max = setup.messages_per_second_max;
    limits.messages_burst = setup.messages_burst;
    limits.subscriptions_per_connection_max = setup.subscriptions_max;
    limits.channels_max = setup.channels_max;
    limits.rooms_max = setup.rooms_max;
    limits.rooms_per_user_max = setup.rooms_per_user_max;
    limits.outbox_bytes_max = setup.outbox_bytes_max;
    limits.outbox_timeout_ms = setup.outbox_timeout_ms;
    limits.outboxes_bytes_max = setup.outboxes_bytes_max;
    limits.message_timeout_ms = setup.message_timeout_ms;
    limits.partial_bytes_max = setup.partial_bytes_max;
    limits.history_bytes_max = setup.history_bytes_max;
    limits.parked_bytes_max = setup.parked_bytes_max;
    limits.retained_bytes_max = setup.retained_bytes_max;
    limits.history_reply_max = setup.history_reply_max;
    limits.presence_reply_max = setup.presence_reply_max;
    limits.confirm_receivers_max = setup.confirm_receivers_max;
    limits.confirm_ms_max = setup.confirm_ms_max;
    limits.idempotency_ms = setup.idempotency_ms;
    limits.idempotency_keys_max = setup.idempotency_keys_max;
    limits.recovery_bytes_max = setup.recovery_bytes_max;
    limits.cross_shard_bytes_max = setup.cross_shard_bytes_max;
    limits.rpc_calls_per_connection_max = setup.rpc_calls_max;
    limits.connections_per_user_max = setup.connections_per_user_max as u32;
    config.api.body_bytes_max = setup.body_bytes_max;
    config.server.close_timeout_ms = setup.close_timeout_ms;
    config.server.drain_timeout_ms = setup.drain_timeout_ms;
    config.server.drain_spread_ms = setup.drain_spread_ms;
    config.auth.timeout_ms = setup.authentication_timeout_ms;
    config.hooks.timeout_ms = setup.hooks_timeout_ms;
    config.rpc.timeout_ms_max = setup.rpc_timeout_ms;
    if setup.access {
        config.hooks.message_url.0 = "http://application/".into();
        config.hooks.disconnect_url.0 = "http://application/".into();
        config.hooks.presence_url.0 = "http://application/".into();
        config.hooks.presence_batch_max = setup.presence_batch_max;
        config.hooks.presence_queue_max = setup.presence_queue_max;
        token::apply(&mut config);
    }
    config.heartbeat.interval_ms = setup.heartbeat_interval_ms;
    config.heartbeat.timeout_ms = setup.heartbeat_timeout_ms;
    let endpoint = config.endpoints[0].clone();
    config.endpoints.clear();
    for (at, prefix) in setup.endpoints.iter().enumerate() {
        let mut endpoint = endpoint.clone();
        endpoint.channel_prefix.clone_from(prefix);
        let names = setup.list(at).iter().map(|&channel| &setup.channels[channel].name);
        endpoint.subscribe = names.map(|name| name[prefix.len()..].to_owned()).collect();
        config.endpoints.push(endpoint);
    }
    let rule = config.channels[0].clone();
    let (shows, presence_interval_ms) = setup.lobby;
    let lobby = ChannelRule {
        pattern: LOBBY.into(),
        subscribe: Subscribers::Anyone,
        publish: Publishers::Anyone,
        presence: presence(shows),
        join_leave: shows == Shows::Full,
        presence_interval_ms,
        ..rule.clone()
    };
    config.channels = setup
        .groups
        .iter()
        .enumerate()
        .map(|(number, group)| ChannelRule {
            pattern: format!("g{number}.*"),
            subscribe: Subscribers::Anyone,
            publish: Publishers::Anyone,
            history_size: group.history_size,
            history_bytes: group.history_bytes,
            history_age_ms: group.history_age_ms,
            lag_policy: if group.disconnect { LagPolicy::Disconnect } else { LagPolicy::Gap },
            window_bytes: group.window_bytes,
            window_age_ms: group.window_age_ms,
            sender: group.sender,
            confirm: group.confirm,
            presence: presence(group.presence),
            join_leave: group.join_leave,
            presence_interval_ms: group.presence_interval_ms,
            presence_hook: group.presence_hook,
            members_max: group.members_max,
            room: group.room.is_some(),
            room_rules: group.room.as_ref().map(|terms| Arc::new(control::room_of(terms))),
            only_made: group.only_made,
            ..rule.clone()
        })
        .chain([lobby, rule.clone()])
        .collect();
    for (rule, group) in config.channels.iter_mut().zip(&setup.groups) {
        group.takes.apply(rule);
    }
    control::apply(&setup.policies[0], &mut config);
    config
}
