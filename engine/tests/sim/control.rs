//! What the control thread has to do with access: identities as the door gives them, questions of shards, orders
//! for users and connections, settings. With [`node`](super::node) the only contact with the engine.

use std::sync::Arc;

use bytes::Bytes;
use ringfeed_engine::access::{Admitted, Grant, Grants, Identity, Room, RoomChange, Statement};
use ringfeed_engine::callers::KeyHash;
use ringfeed_engine::config::{ChannelRule, Config, Permission, Publishers, Speakers, Subscribers};
use ringfeed_engine::ids::{ConnectionId, ShardId, Ticket};
use ringfeed_engine::message::{
    Answer, Asked, Caller, Change, Denied, Heard, Order as EngineOrder, Question, Reply, Request,
    Revocation, Revoked as EngineRevoked, RoomDenied, RoomReport, RoomRequest, StoredPayload,
    SubscribeAllowed, UserRequest,
};
use ringfeed_engine::settings::Settings;
use ringfeed_engine::shard::Credentials;
use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::{CallError, ChannelName, Operation, Refused, UserId};
use tokio::sync::oneshot;

use super::judge::Kind;
use super::ledger::{Found, Revoked};
use super::net::ConnId;
use super::node::{Cluster, Waiting, configuration};
use super::policy::{Line, Op, Policy, Whom, Word};
use super::rooms::{Field, PASSWORDS, RoomOrder, Terms, Told};
use super::setup::Setup;

/// What a shard asks, in plain types; connections are known by a claim or by their number.
#[derive(Debug)]
pub(crate) enum Matter {
    Subscribe {
        channel: String,
    },
    Publish {
        channel: String,
        payload: Vec<u8>,
    },
    Message {
        message: String,
    },
    /// A method is called, by this number.
    Call {
        number: u64,
    },
    /// An issuer's keys are to be fetched.
    Keys,
    /// A connection has ended.
    Ended,
    /// Who comes and goes: channel, user, and whether it has come.
    Presence {
        id: u128,
        lost: u64,
        changes: Vec<(String, String, bool)>,
    },
}

/// A question that waits for an answer.
#[derive(Debug)]
pub(crate) struct Posed {
    pub(crate) shard: usize,
    ticket: Ticket,
    pub(crate) conn: ConnId,
    pub(crate) matter: Matter,
}

/// What the application says.
#[derive(Debug, Clone)]
pub(crate) enum Says {
    /// To a subscribe: yes, up to a second.
    Allow(Option<u64>),
    /// To a publish: as it is, or as this.
    Publish(Option<(Kind, Vec<u8>)>),
    Reply(Option<String>),
    No(&'static str),
    CannotBeAsked,
    Noted,
}

/// What is ordered for connections.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    Send(Vec<u8>),
    Disconnect(u16),
    Unsubscribe(String),
}

/// Whom an order is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    User(usize),
    /// By its name outside.
    Connection(String),
}

/// Numbers of connections outside begin here.
const NUMBERS: u64 = 1 << 40;

/// The number outside of a connection that has one before it is a session.
pub(crate) fn number_of(conn: ConnId) -> u64 {
    NUMBERS + conn as u64
}

/// The name of a connection with a number.
pub(crate) fn name_of(shard: usize, number: u64) -> String {
    ConnectionId { shard: ShardId(shard as u16), number }.to_string()
}

/// The shard of a connection by its name.
pub(crate) fn shard_of(name: &str) -> usize {
    name.parse::<ConnectionId>().expect("a connection's name").shard.index()
}

fn user_id(user: usize) -> UserId {
    UserId::new(&format!("u{user}")).expect("users have valid ids")
}

/// How an operation is called in tokens.
pub(crate) fn name_of_op(op: Op) -> &'static str {
    operation(op).name()
}

fn operation(op: Op) -> Operation {
    match op {
        Op::Subscribe => Operation::Subscribe,
        Op::Publish => Operation::Publish,
        Op::History => Operation::History,
        Op::Presence => Operation::Presence,
        Op::Moderate => Operation::Moderate,
    }
}

/// What the door hands over.
pub(crate) fn credentials(found: &Found, conn: ConnId, setup: &Setup) -> Credentials {
    let Found { person, token, issued_s, expires_s, channels, .. } = found;
    let grant = |line: &&Line| Grant {
        operation: operation(line.op),
        pattern: format!("g{}.*", line.group).into(),
    };
    let identity = || {
        let mut attributes: Vec<_> =
            person.roles.iter().map(|r| format!("role:r{r}").into()).collect();
        if person.sends {
            attributes.push("role:sender".into());
        }
        // By which questions are told from each other.
        attributes.push(format!("claim:conn={conn}").into());
        let (allow, deny): (Vec<&Line>, Vec<&Line>) = person.grants.iter().partition(|l| l.allow);
        let grants = Grants {
            allow: allow.iter().map(grant).collect(),
            deny: deny.iter().map(grant).collect(),
        };
        Identity {
            user: person.user.map(user_id),
            attributes: attributes.into(),
            grants: (!person.grants.is_empty()).then(|| Box::new(grants)),
            token: token.map(|token| format!("t{token}").into()),
            issued_at: *issued_s,
            expires_at: *expires_s,
            info: None,
        }
    };
    let name = |&channel: &usize| ChannelName::new(&setup.channels[channel].name);
    let channels = || -> Vec<ChannelName> {
        channels.iter().map(name).collect::<Result<_, _>>().expect("valid names")
    };
    let stated = || {
        let Identity { user, attributes, grants, expires_at, .. } = identity();
        let mut grants = grants.map_or_else(Grants::default, |grants| *grants);
        grants.allow_channels(&channels());
        // Its token has named the user, or the application has.
        let (of, user) = if conn.is_multiple_of(2) { (user, None) } else { (None, user) };
        Box::new(Statement { of, user, attributes, grants, expires_at, info: None })
    };
    let admitted = || Admitted {
        identity: identity(),
        channels: channels(),
        stated: found.asked.then(stated),
    };
    Credentials {
        admitted: found.admitted.then(|| Box::new(admitted())),
        must_authenticate: found.must_authenticate,
        number: found.number,
        refused: found
            .refused
            .then(|| Refused::Unauthenticated { detail: "nobody vouches for you".into() }),
    }
}

/// Has a configuration say what a policy says.
pub(super) fn apply(policy: &Policy, config: &mut Config) {
    // The last rule is not a group's.
    let rules: &mut [ChannelRule] = &mut config.channels;
    for (rule, (subscribe, publish)) in rules.iter_mut().zip(&policy.words) {
        rule.subscribe = match subscribe {
            Word::Anyone => Subscribers::Anyone,
            Word::Users => Subscribers::Users,
            Word::Hook => Subscribers::Hook,
            Word::Nobody => Subscribers::Nobody,
        };
        rule.publish = match publish {
            Word::Anyone => Publishers::Anyone,
            Word::Users => Publishers::Users,
            Word::Hook => Publishers::Hook,
            Word::Nobody => Publishers::Api,
        };
    }
    let permission = |line: &Line| {
        let who = match line.whom {
            Whom::Anonymous => "anonymous".to_owned(),
            Whom::User(user) => format!("user:u{user}"),
            Whom::Role(role) => format!("role:r{role}"),
        };
        let operations = vec![operation(line.op)];
        let (allow, deny) = if line.allow { (operations, vec![]) } else { (vec![], operations) };
        Permission { who: vec![who], channels: vec![format!("g{}.*", line.group)], allow, deny }
    };
    config.permissions = policy.lines.iter().map(permission).collect();
    // Some may send to every user, whatever else changes.
    config.permissions.push(Permission {
        who: vec!["role:sender".into()],
        channels: vec!["*".into()],
        allow: vec![Operation::Send],
        deny: vec![],
    });
}

fn password_of(number: usize) -> KeyHash {
    KeyHash::of(PASSWORDS[number].as_bytes())
}

/// The rules of a room, as an engine has them.
pub(super) fn room_of(terms: &Terms) -> Room {
    Room {
        members_max: terms.members_max,
        public: terms.public,
        moderated: terms.moderated,
        speak: if terms.anyone { Speakers::Anyone } else { Speakers::Members },
        password: terms.password.map(password_of),
        moderators: terms.moderators.iter().copied().map(user_id).collect(),
        members: terms.invited.iter().copied().map(user_id).collect(),
    }
}

fn change(fields: &[Field]) -> RoomChange {
    let mut change = RoomChange::default();
    let users = |users: Vec<usize>| users.into_iter().map(user_id).collect();
    for field in fields.iter().cloned() {
        match field {
            Field::MembersMax(most) => change.members_max = Some(most),
            Field::Public(public) => change.public = Some(public),
            Field::Moderated(moderated) => change.moderated = Some(moderated),
            Field::Anyone(true) => change.speak = Some(Speakers::Anyone),
            Field::Anyone(false) => change.speak = Some(Speakers::Members),
            Field::Password(password) => change.password = Some(password.map(password_of)),
            Field::Moderators(own) => change.moderators = Some(users(own)),
            Field::Invited(own) => change.members = Some(users(own)),
            Field::EndsWhenEmpty(ends) => change.ends_when_empty = Some(ends),
        }
    }
    change
}

/// What is told of a room, in plain types.
pub(super) fn told_of_room(told: Result<RoomReport, RoomDenied>) -> Told {
    let RoomReport { rules, ends_when_empty, .. } = told.map_err(|denied| match denied {
        RoomDenied::NoRooms => "no_rooms",
        RoomDenied::NotMade => "not_made",
        RoomDenied::Refused(refused) => refused.code().as_str(),
        RoomDenied::NotEverywhere => "not_everywhere",
    })?;
    let users = |all: &std::collections::BTreeSet<UserId>| {
        all.iter().map(|user| user[1..].parse().expect("a user's number")).collect()
    };
    let known = |own| (0..PASSWORDS.len()).find(|&number| password_of(number) == own);
    let terms = Terms {
        members_max: rules.members_max,
        public: rules.public,
        moderated: rules.moderated,
        anyone: rules.speak == Speakers::Anyone,
        password: rules.password.map(|own| known(own).expect("a known password")),
        moderators: users(&rules.moderators),
        invited: users(&rules.members),
    };
    Ok((terms, ends_when_empty))
}

fn connection_of(Caller { connection, identity }: &Caller) -> ConnId {
    let claims = identity.attributes.iter().find_map(|own| own.strip_prefix("claim:conn="));
    let by_number = || connection.number.checked_sub(NUMBERS).map(|conn| conn as usize);
    claims.and_then(|conn| conn.parse().ok()).or_else(by_number).expect("a known connection asks")
}

impl Cluster {
    /// The next question of a shard.
    pub(crate) fn question(&mut self) -> Option<Posed> {
        loop {
            let Asked { shard, ticket, question } = self.asked.try_recv().ok()?;
            let (caller, matter) = match question {
                Question::Subscribe { caller, channel } => {
                    (caller, Matter::Subscribe { channel: channel.to_string() })
                }
                Question::Publish { caller, channel, payload } => {
                    let (channel, payload) = (channel.to_string(), payload.bytes.to_vec());
                    (caller, Matter::Publish { channel, payload })
                }
                Question::Message { caller, message, .. } => {
                    let message = String::from_utf8_lossy(&message).into_owned();
                    (caller, Matter::Message { message })
                }
                Question::Rpc { caller, params, .. } => {
                    let params = params.expect("calls have parameters");
                    let number =
                        params.strip_prefix("{\"call\":").and_then(|own| own.strip_suffix('}'));
                    let number = number.and_then(|own| own.parse().ok()).expect("a call's number");
                    (caller, Matter::Call { number })
                }
                Question::Disconnect { caller, .. } => (caller, Matter::Ended),
                Question::Presence(news) => {
                    let change =
                        |own: &Change| (own.channel.to_string(), own.user.to_string(), own.joined);
                    let matter = Matter::Presence {
                        id: news.id,
                        lost: news.lost,
                        changes: news.changes.iter().map(change).collect(),
                    };
                    return Some(Posed { shard: shard.index(), ticket, conn: 0, matter });
                }
                Question::Keys { url, .. } if !url.is_empty() => {
                    // Whoever needs them.
                    return Some(Posed {
                        shard: shard.index(),
                        ticket,
                        conn: 0,
                        matter: Matter::Keys,
                    });
                }
                // What a full queue is full of.
                Question::Keys { .. } | Question::Connect { .. } => continue,
            };
            // Who is a stranger without a number has asked nothing that is answered.
            if matches!(matter, Matter::Ended) && caller.identity.attributes.is_empty() {
                return Some(Posed { shard: shard.index(), ticket, conn: 0, matter });
            }
            let conn = connection_of(&caller);
            return Some(Posed { shard: shard.index(), ticket, conn, matter });
        }
    }

    /// Fills the queue of questions up, as a control thread does that is late.
    pub(crate) fn stuff_questions(&self) {
        let filler = || Asked {
            shard: ShardId(u16::MAX),
            ticket: Ticket { slot: 0, generation: 0 },
            question: Question::Keys { url: "".into(), kid: "".into() },
        };
        while self.shared.questions.ask(filler()) {}
    }

    /// Hands a shard the application's answer; `false` when its queue is full.
    pub(crate) fn answer(&self, posed: &Posed, says: &Says) -> bool {
        let denied = match says {
            Says::No(text) => Denied::Refused { status: 403, text: (*text).into() },
            _ => Denied::Unavailable("the application cannot be asked"),
        };
        let answer = match (&posed.matter, says) {
            (Matter::Subscribe { .. }, Says::Allow(expires_at)) => {
                Answer::Subscribe(Ok(SubscribeAllowed { expires_at: *expires_at }))
            }
            (Matter::Publish { .. }, Says::Publish(instead)) => {
                Answer::Publish(Ok(instead.clone().map(|(kind, bytes)| stored(kind, bytes))))
            }
            (Matter::Message { .. }, Says::Reply(reply)) => {
                Answer::Message(Ok(reply.clone().map(String::into_boxed_str)))
            }
            (Matter::Call { number }, Says::Reply(_)) => {
                Answer::Rpc(Ok(format!("[{number}]").into()))
            }
            (Matter::Call { .. }, Says::No(text)) => {
                Answer::Rpc(Err(CallError::Forbidden { detail: (*text).into() }))
            }
            (Matter::Call { .. }, _) => {
                let detail = "the application cannot be asked";
                Answer::Rpc(Err(CallError::Unavailable { detail }))
            }
            (Matter::Presence { .. }, says) => Answer::Heard(match says {
                Says::Noted => Heard::Yes,
                Says::No(_) => Heard::Never,
                _ => Heard::NotYet,
            }),
            (_, Says::Noted) => Answer::Noted,
            (Matter::Subscribe { .. }, _) => Answer::Subscribe(Err(denied)),
            (Matter::Publish { .. }, _) => Answer::Publish(Err(denied)),
            (Matter::Message { .. } | Matter::Ended | Matter::Keys, _) => {
                Answer::Message(Err(denied))
            }
        };
        self.shared.shards.answer(ShardId(posed.shard as u16), posed.ticket, answer).is_ok()
    }

    /// The second issuer's keys are known from now on.
    pub(crate) fn publish_keys(&self) {
        self.shared.remote_keys.store(Arc::new(super::token::published_keys()));
    }

    /// Asks the home of a room for something; `None` where its queue is full.
    pub(crate) fn room(&self, channel: usize, name: &str, order: &RoomOrder) -> Option<Waiting> {
        let what = match order {
            RoomOrder::Make(fields) => RoomRequest::Make(change(fields)),
            RoomOrder::Change(fields) => RoomRequest::Change(change(fields)),
            RoomOrder::Show => RoomRequest::Show,
            RoomOrder::End => RoomRequest::End,
        };
        let (reply, answer) = oneshot::channel();
        let (home, what) = (self.home(name), what.into());
        let room = ChannelName::new(name).expect("a valid name");
        let request = Request::Room { channel: room, what, reply };
        self.request(home, request).then_some(Waiting::Room(channel, answer))
    }

    pub(crate) fn home_of_user(&self, user: usize) -> usize {
        self.shared.shards.home(&user_id(user)).index()
    }

    /// Orders something, after asking who is there: their names come first, then how many were reached.
    pub(crate) fn order(&self, number: usize, target: &Target, order: &Order) -> Vec<Waiting> {
        let (reply, reached) = oneshot::channel();
        let order = match order {
            Order::Send(payload) => {
                EngineOrder::Send { from: None, payload: stored(Kind::Json, payload.clone()) }
            }
            Order::Disconnect(code) => {
                EngineOrder::Disconnect { code: *code, reason: "so it was ordered".into() }
            }
            Order::Unsubscribe(channel) => {
                EngineOrder::Unsubscribe(ChannelName::new(channel).expect("a valid name"))
            }
        };
        let mut waiting = Vec::new();
        match target {
            Target::Connection(name) => {
                let connection: ConnectionId = name.parse().expect("a connection's name");
                let request = Request::Connection { connection, order: order.into(), reply };
                if self.request(connection.shard.index(), request) {
                    waiting.push(Waiting::Reached(number, reached));
                }
            }
            Target::User(user) => {
                let home = self.home_of_user(*user);
                let (list, there) = oneshot::channel();
                let what = UserRequest::List { reply: list };
                if self.request(home, Request::User { user: user_id(*user), what: what.into() }) {
                    waiting.push(Waiting::There(number, there));
                    let reply = Reply::Control(reply);
                    let what = UserRequest::Order { connection: None, order, reply };
                    if self.request(home, Request::User { user: user_id(*user), what: what.into() })
                    {
                        waiting.push(Waiting::Reached(number, reached));
                    }
                }
            }
        }
        waiting
    }

    /// Tells one shard of a revocation; `false` where its queue is full.
    pub(crate) fn revoke(&self, at: usize, whom: Revoked) -> bool {
        let whom = match whom {
            Revoked::Token(token) => EngineRevoked::Token(format!("t{token}").into()),
            Revoked::User(user, before) => EngineRevoked::User(user_id(user), before),
        };
        let revocation = Revocation { whom, until: u64::MAX };
        self.request(at, Request::Revoke(revocation))
    }

    /// Sets a policy; shards are told one by one.
    pub(crate) fn set_policy(&self, setup: &Setup, policy: &Policy) {
        let mut config = configuration(setup);
        apply(policy, &mut config);
        let settings = Settings::new(config).expect("the configuration is valid");
        self.shared.settings.store(Arc::new(settings));
    }

    /// Tells one shard that there are new settings.
    pub(crate) fn reconfigure(&self, at: usize) -> bool {
        self.request(at, Request::Reconfigure)
    }

    /// Asks something whose answer says that what was asked before is done.
    pub(crate) fn behind(
        &self,
        at: usize,
    ) -> Option<oneshot::Receiver<ringfeed_engine::message::ChannelPage>> {
        let (reply, answer) = oneshot::channel();
        self.request(at, Request::ListChannels { from: u32::MAX, reply }).then_some(answer)
    }
}

fn stored(kind: Kind, bytes: Vec<u8>) -> StoredPayload {
    let kind = match kind {
        Kind::Json => PayloadKind::Json,
        Kind::Text => PayloadKind::Text,
        Kind::Binary => PayloadKind::Binary,
    };
    StoredPayload { kind, bytes: Bytes::from(bytes) }
}
