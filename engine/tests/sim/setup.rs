//! What one seed runs with: sizes, limits and rules far below those of a machine, so that little work
//! meets every limit.

use super::client::Speaks;
use super::control::Order;
use super::dice::Dice;
use super::policy::{self, Line, Policy};
use super::rooms::Terms;
use super::takes::Takes;
use super::talk::portico;

/// What most of the load looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Anything.
    Mixed,
    /// Many connections on few channels: more subscribers on a lane than a turn serves.
    Crowd,
    /// Connections on many channels each.
    Lists,
    /// Few connections that do a lot.
    Few,
    /// Half of the connections stay on one channel and keep its shard busy; the others wander among
    /// channels that they mostly have for themselves.
    Wander,
}

/// What is told of who is on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shows {
    Off,
    Count,
    Full,
}

/// Channels under one rule of the configuration: those named `g<number>.*`.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) history_size: u32,
    pub(crate) history_bytes: u64,
    pub(crate) history_age_ms: u32,
    /// Readers that lag are closed, not told of a gap.
    pub(crate) disconnect: bool,
    pub(crate) window_bytes: u32,
    pub(crate) window_age_ms: u32,
    pub(crate) sender: bool,
    /// Publishers may ask receivers to confirm.
    pub(crate) confirm: bool,
    pub(crate) presence: Shows,
    pub(crate) join_leave: bool,
    pub(crate) presence_interval_ms: u32,
    /// The application is told which users come and go.
    pub(crate) presence_hook: bool,
    /// 0 is no limit.
    pub(crate) members_max: u32,
    pub(crate) takes: Takes,
    /// Its channels are rooms.
    pub(crate) room: Option<Terms>,
    /// Only once they were made.
    pub(crate) only_made: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Channel {
    pub(crate) name: String,
    pub(crate) group: usize,
}

/// What a turn may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TurnSizes {
    pub(crate) events: usize,
    pub(crate) batches: usize,
    pub(crate) promotions: usize,
    pub(crate) sends: usize,
    pub(crate) deliveries: usize,
    pub(crate) request_bytes: usize,
}

#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) mode: Mode,
    pub(crate) shards: usize,
    pub(crate) turn: TurnSizes,
    pub(crate) queue_batches: usize,
    pub(crate) groups: Vec<Group>,
    pub(crate) channels: Vec<Channel>,
    /// Prefix of each endpoint.
    pub(crate) endpoints: Vec<String>,
    /// What each of them subscribes everybody to.
    pub(crate) lists: Vec<Vec<usize>>,
    pub(crate) message_bytes_max: u32,
    pub(crate) messages_per_second_max: u32,
    pub(crate) messages_burst: u32,
    pub(crate) subscriptions_max: u32,
    pub(crate) channels_max: u32,
    pub(crate) rooms_max: u32,
    /// 0 is no limit.
    pub(crate) rooms_per_user_max: u32,
    pub(crate) outbox_bytes_max: u32,
    pub(crate) outbox_timeout_ms: u32,
    pub(crate) outboxes_bytes_max: u64,
    pub(crate) message_timeout_ms: u32,
    pub(crate) partial_bytes_max: u64,
    pub(crate) history_bytes_max: u64,
    pub(crate) parked_bytes_max: u64,
    pub(crate) retained_bytes_max: u64,
    pub(crate) history_reply_max: u32,
    pub(crate) presence_reply_max: u32,
    pub(crate) confirm_receivers_max: u32,
    pub(crate) confirm_ms_max: u32,
    /// Of 1,000 publications of the API: have an idempotency key.
    pub(crate) keyed: u32,
    /// Among the steps: such a one is sent again.
    pub(crate) resends: u32,
    pub(crate) idempotency_ms: u32,
    pub(crate) idempotency_keys_max: u32,
    pub(crate) presence_batch_max: u32,
    pub(crate) presence_queue_max: u32,
    pub(crate) recovery_bytes_max: u32,
    pub(crate) cross_shard_bytes_max: u32,
    pub(crate) body_bytes_max: u32,
    pub(crate) close_timeout_ms: u32,
    pub(crate) drain_timeout_ms: u32,
    pub(crate) drain_spread_ms: u32,
    /// 0 switches pings off.
    pub(crate) heartbeat_interval_ms: u32,
    pub(crate) heartbeat_timeout_ms: u32,
    pub(crate) clients: usize,
    pub(crate) steps: usize,
    pub(crate) adopt_faults: u32,
    /// Most bytes of an ordinary payload, and of a rare large one.
    pub(crate) payload_bytes: usize,
    pub(crate) large_bytes: usize,
    /// Of 1,000 things that clients do: ask who is on a channel.
    pub(crate) looks: u32,
    /// In 1,000 publications.
    pub(crate) large: u32,
    pub(crate) empty: u32,
    /// Among the steps: publications of more at once than anything holds.
    pub(crate) floods: u32,
    /// Of 1,000 clients.
    pub(crate) attentive: u32,
    /// Most bytes that a client reads at once which does not read everything.
    pub(crate) sip_bytes: usize,
    pub(crate) raw: u32,
    pub(crate) echo: u32,
    pub(crate) rooms: u32,
    pub(crate) fluxus: u32,
    pub(crate) portico: u32,
    /// What is told in the lobby that has no prefix, every so many ms.
    pub(crate) lobby: (Shows, u32),
    /// Of 1,000 things that clients do: leave all channels for another one.
    pub(crate) moves: u32,
    /// Of 1,000 subscribes to a channel of which something was seen before: those that recover.
    pub(crate) recovers: u32,
    /// Of 1,000 of these: from before what was seen.
    pub(crate) rewinds: u32,
    /// In 1,000 steps that move the clock.
    pub(crate) jumps: u32,
    /// Share of turns among the steps.
    pub(crate) turns: u32,
    pub(crate) clocks: u32,
    /// Clients are somebody, and the application has a say.
    pub(crate) access: bool,
    /// What configurations say about access: the first one holds from the beginning.
    pub(crate) policies: Vec<Policy>,
    pub(crate) users: usize,
    /// Of 1,000 clients: those without a user.
    pub(crate) strangers: u32,
    /// 0 is no limit.
    pub(crate) connections_per_user_max: usize,
    /// Of 1,000 connections: those about which the door has to ask.
    pub(crate) door_waits: u32,
    pub(crate) hooks_timeout_ms: u32,
    pub(crate) rpc_timeout_ms: u32,
    pub(crate) rpc_calls_max: u32,
    pub(crate) authentication_timeout_ms: u32,
    /// Of what the application says.
    pub(crate) says: u64,
    /// Among the steps: answers of the application, and a moment in which nothing can be asked.
    pub(crate) answers: u32,
    pub(crate) stuffed: u32,
    /// Orders of the API, revocations, and other configurations.
    pub(crate) orders: u32,
    /// In a thousand publications, those of which one connection is not sent.
    pub(crate) no_echo: u32,
    /// Of 1,000 orders: those that end a subscription.
    pub(crate) taken_off: u32,
    /// Of rooms.
    pub(crate) room_orders: u32,
    pub(crate) revocations: u32,
    pub(crate) reconfigurations: u32,
    /// The clock on the wall is set.
    pub(crate) wall_clocks: u32,
    /// Whether the server may be drained in the middle.
    pub(crate) drains: bool,
}

impl Setup {
    /// Whether there is so little room in outboxes that what is sent to users may be refused.
    pub(crate) fn may_refuse_sends(&self, order: &Order) -> bool {
        matches!(order, Order::Send(_)) && self.outboxes_bytes_max < 1 << 20
    }

    #[allow(clippy::too_many_lines)] // a line for each limit
    pub(crate) fn draw(dice: &mut Dice) -> Setup {
        use Mode::{Crowd, Few, Lists, Mixed, Wander};
        let mode = dice.pick(&[Mixed, Crowd, Crowd, Lists, Few, Wander, Wander]);
        let shards = match mode {
            Crowd | Wander => dice.pick(&[1, 1, 1, 2, 3]),
            _ => dice.pick(&[1, 1, 2, 2, 3, 4]),
        };
        let turn = TurnSizes {
            events: dice.magnitude(1, 32),
            batches: dice.range(1, 4),
            promotions: dice.range(1, 8),
            sends: dice.magnitude(1, if mode == Lists { 24 } else { 10 }),
            deliveries: dice.magnitude(2, 200),
            request_bytes: dice.magnitude(200, 200_000),
        };
        let groups: Vec<Group> = (0..dice.range(1, 3)).map(|_| Group::draw(dice)).collect();
        let channel_count = match mode {
            Crowd => dice.pick(&[1, 1, 2, 3]),
            Lists => dice.range(6, 40),
            Mixed => dice.range(1, 12),
            Few => dice.range(1, 5),
            Wander => dice.range(4, 20),
        };
        let channels = (0..channel_count)
            .map(|number| {
                let group = dice.below(groups.len());
                let name = match dice.below(12) {
                    0 => format!("g{group}.{number}@räume/{}", "x".repeat(dice.below(200))),
                    _ => format!("g{group}.c{number}"),
                };
                Channel { name, group }
            })
            .collect();
        let clients = match mode {
            Crowd if dice.chance(100) => dice.range(60, 200),
            Crowd => dice.range(4, 40),
            Lists => dice.range(3, 14),
            Mixed => dice.range(2, 24),
            Few => dice.range(1, 5),
            Wander => dice.range(8, 30),
        };
        let heartbeat = dice.chance(500);
        let limited = dice.chance(120);
        let access = dice.chance(450);
        let asks = access && dice.chance(650);
        // Else keys are forgotten, and nobody could say what is to come of them.
        let resends = dice.chance(600);
        let on = |dice: &mut Dice, rate: u32, weight: u32| {
            if access && dice.chance(rate) { weight } else { 0 }
        };
        let mut setup = Setup {
            mode,
            shards,
            turn,
            queue_batches: dice.pick(&[1, 1, 2, 4, 256]),
            endpoints: if dice.chance(300) {
                vec!["".into(), "g0.".into()]
            } else {
                vec!["".into()]
            },
            lists: Vec::new(),
            message_bytes_max: dice.pick(&[1 << 20, 1 << 16, 1 << 16, 4096, 700]),
            messages_per_second_max: if limited { dice.range(5, 50) as u32 } else { 0 },
            messages_burst: dice.range(5, 30) as u32,
            subscriptions_max: dice.pick(&[128, 128, 128, 8, 3, 1]),
            channels_max: if dice.chance(100) { dice.range(1, 12) as u32 } else { 1_000_000 },
            rooms_max: dice.pick(&[1000, 1000, 1]),
            rooms_per_user_max: if access { dice.pick(&[0, 0, 1, 2]) } else { 0 },
            outbox_bytes_max: dice.pick(&[1 << 20, 1 << 16, 16_384, 4096, 1024]),
            outbox_timeout_ms: dice.pick(&[10_000, 10_000, 1000]),
            outboxes_bytes_max: dice.pick(&[64 << 20, 64 << 20, 64 << 20, 200_000, 200_000, 1500]),
            message_timeout_ms: dice.pick(&[10_000, 10_000, 1000]),
            partial_bytes_max: dice.pick(&[64 << 20, 64 << 20, 100_000]),
            history_bytes_max: dice.pick(&[1 << 30, 1 << 30, 40_000]),
            parked_bytes_max: dice.pick(&[32 << 20, 32 << 20, 100_000, 2000]),
            retained_bytes_max: dice.pick(&[32 << 20, 32 << 20, 4000]),
            history_reply_max: dice.pick(&[1000, 10, 2]),
            presence_reply_max: dice.pick(&[1000, 1000, 2]),
            confirm_receivers_max: dice.pick(&[1000, 1000, 3]),
            confirm_ms_max: dice.pick(&[2000, 500]),
            keyed: dice.pick(&[0, 300, 1000]),
            resends: if resends { dice.pick(&[20, 70]) } else { 0 },
            idempotency_ms: if resends { 86_400_000 } else { dice.pick(&[500, 5000]) },
            idempotency_keys_max: if resends { 1_000_000 } else { dice.pick(&[1, 20, 1000]) },
            presence_batch_max: dice.pick(&[1000, 2, 1]),
            presence_queue_max: dice.pick(&[100_000, 100_000, 100_000, 8]),
            recovery_bytes_max: dice.pick(&[1 << 24, 1 << 16, 2000]),
            cross_shard_bytes_max: dice.pick(&[8 << 20, 1 << 16, 4096, 500]),
            body_bytes_max: dice.pick(&[4 << 20, 10_000, 1024]),
            close_timeout_ms: dice.pick(&[3000, 1000, 400]),
            drain_timeout_ms: dice.pick(&[10_000, 2000, 300]),
            drain_spread_ms: dice.pick(&[5000, 100, 0]),
            heartbeat_interval_ms: if heartbeat { dice.pick(&[25_000, 2000, 400]) } else { 0 },
            heartbeat_timeout_ms: dice.pick(&[10_000, 1000, 300]),
            clients,
            steps: dice.magnitude(100, 2500),
            adopt_faults: if dice.chance(200) { 30 } else { 0 },
            payload_bytes: dice.magnitude(8, 1500),
            large_bytes: dice.magnitude(2000, 300_000),
            looks: 0,
            large: dice.pick(&[0, 0, 5, 20, 60]),
            empty: if dice.chance(100) { 50 } else { 0 },
            floods: dice.pick(&[0, 0, 3, 20]),
            attentive: dice.pick(&[1000, 950, 800, 500, 200, 0]),
            sip_bytes: 65_536,
            raw: dice.pick(&[0, 100, 300, 1000]),
            echo: dice.pick(&[0, 0, 50]),
            rooms: 0,
            fluxus: 0,
            portico: 0,
            lobby: (Shows::Off, 0),
            moves: dice.pick(&[0, 0, 300, 800]),
            recovers: 600,
            rewinds: 50,
            jumps: dice.pick(&[0, 50, 200]),
            turns: dice.magnitude(200, 1500) as u32,
            clocks: dice.pick(&[5, 30, 100]),
            access,
            policies: policy::draw(dice, groups.len(), !access, asks),
            users: if access { dice.range(1, 4) } else { 0 },
            strangers: if access { dice.pick(&[0, 300, 800]) } else { 1000 },
            door_waits: if access { dice.pick(&[0, 300, 800]) } else { 0 },
            connections_per_user_max: if access { dice.pick(&[0, 0, 1, 2, 4]) } else { 0 },
            hooks_timeout_ms: dice.pick(&[100, 500, 1500]),
            rpc_timeout_ms: dice.pick(&[100, 500, 1500]),
            rpc_calls_max: dice.pick(&[16, 16, 2, 1]),
            authentication_timeout_ms: dice.pick(&[200, 1000, 5000]),
            says: dice.number(),
            answers: if asks { dice.pick(&[10, 60, 300]) } else { 0 },
            stuffed: if asks && dice.chance(30) { 2 } else { 0 },
            taken_off: 200,
            orders: on(dice, 500, 15),
            room_orders: dice.pick(&[0, 5, 30]),
            no_echo: dice.pick(&[0, 0, 100, 500]),
            revocations: on(dice, 400, 5),
            reconfigurations: on(dice, 500, 8),
            wall_clocks: on(dice, 500, 10),
            drains: dice.chance(150),
            groups,
            channels,
        };
        for group in setup.groups.iter_mut().filter(|own| access && own.presence == Shows::Full) {
            group.presence_hook = dice.chance(500);
        }
        if mode == Wander {
            // Busy, but not so far behind that nothing more is taken.
            setup.steps = dice.range(800, 2500);
            setup.moves = setup.moves.max(300);
            setup.raw = dice.pick(&[100, 500, 900]);
            setup.attentive = setup.attentive.max(500);
            setup.turns = dice.magnitude(100, 500) as u32;
            setup.payload_bytes = dice.range(100, 1500);
            setup.turn.sends = dice.range(2, 12);
            for group in &mut setup.groups {
                group.window_bytes = group.window_bytes.max(32_768);
            }
        }
        if access && dice.chance(250) {
            setup.have_replays_wait(dice);
        } else if dice.chance(150) {
            setup.have_them_come_and_go(dice);
        } else if dice.chance(250) {
            setup.have_rooms(dice);
        }
        if dice.chance(350) {
            setup.have_them_talk(dice);
        }
        setup
    }

    /// Few clients on few channels, which are rooms; whoever may do with them what they like does so all the time.
    fn have_rooms(&mut self, dice: &mut Dice) {
        self.steps = dice.range(300, 1500);
        self.channels.truncate(2);
        self.clients = self.clients.min(6);
        self.attentive = 1000;
        self.raw = dice.pick(&[0, 0, 200]);
        self.moves = dice.pick(&[0, 200, 500]);
        (self.subscriptions_max, self.channels_max) = (128, 1_000_000);
        self.messages_per_second_max = 0;
        self.turns = dice.magnitude(1000, 2500) as u32;
        self.room_orders = dice.pick(&[0, 20, 60]);
        (self.orders, self.strangers) = (0, self.strangers.min(300));
        self.policies.truncate(1);
        for policy in &mut self.policies {
            policy.words.fill((policy::Word::Anyone, policy::Word::Anyone));
            for _ in 0..dice.below(3) {
                let op = policy::Op::Moderate;
                policy.lines.push(Line { op, ..policy::line(dice, self.groups.len()) });
            }
        }
        for group in &mut self.groups {
            let room = Terms::draw(dice, group.members_max);
            group.only_made = self.room_orders > 0 && dice.chance(200);
            group.room = Some(room);
        }
    }

    /// Clients come to few channels and leave them, are told so, and ask who is there meanwhile.
    fn have_them_come_and_go(&mut self, dice: &mut Dice) {
        self.steps = dice.range(300, 1500);
        self.channels.truncate(2);
        self.attentive = dice.pick(&[1000, 900, 500]);
        self.raw = dice.pick(&[0, 100]);
        (self.looks, self.moves) = (dice.pick(&[150, 400]), dice.pick(&[0, 300]));
        self.subscriptions_max = 128;
        self.presence_reply_max = 1000;
        self.turns = dice.magnitude(500, 1500) as u32;
        self.clocks = dice.pick(&[30, 100]);
        for group in &mut self.groups {
            (group.presence, group.join_leave) = (Shows::Full, true);
            group.presence_hook = self.access;
            group.presence_interval_ms = dice.pick(&[0, 100, 500, 500]);
        }
    }

    /// Some clients are those of existing systems.
    fn have_them_talk(&mut self, dice: &mut Dice) {
        (self.rooms, self.fluxus, self.portico) = dice.pick(&[
            (1000, 0, 0),
            (600, 0, 0),
            (0, 1000, 0),
            (0, 600, 0),
            (300, 300, 0),
            (0, 0, 700),
            (200, 200, 300),
        ]);
        self.raw = self.raw.min(100);
        // A payload of nothing does not say which channel it is of.
        self.portico *= u32::from(self.empty == 0);
        if self.portico > 0 {
            if !self.endpoints.iter().any(|prefix| prefix == portico::PREFIX) {
                self.endpoints.push(portico::PREFIX.into());
            }
            let names = portico::ROOMS.iter().map(|name| format!("{}{name}", portico::PREFIX));
            self.channels.extend(names.map(|name| Channel { name, group: 0 }));
        }
        let shows = dice.pick(&[Shows::Off, Shows::Full, Shows::Full]);
        self.lobby = (shows, dice.pick(&[0, 0, 100, 500]));
        for group in &mut self.groups {
            group.sender |= dice.chance(500);
            // Of these their dialects tell in words of their own.
            (group.takes, group.confirm) = (Takes::default(), false);
            (group.room, group.only_made) = (None, false);
        }
        (self.room_orders, self.rooms_per_user_max) = (0, 0);
        for prefix in self.endpoints.iter().filter(|_| self.empty == 0) {
            let most = dice.pick(&[0, 0, 2]);
            let own = (0..self.channels.len()).filter(|&at| {
                let name = &self.channels[at].name;
                name.len() > prefix.len() && name.starts_with(prefix) && dice.chance(150)
            });
            self.lists.push(own.take(most).collect());
        }
    }

    /// Much is recovered, by clients that do not read it at once, and what they may have changes meanwhile.
    fn have_replays_wait(&mut self, dice: &mut Dice) {
        self.steps = dice.range(300, 2000);
        self.attentive = dice.pick(&[0, 200]);
        self.raw = dice.pick(&[0, 100]);
        self.payload_bytes = dice.range(100, 1500);
        self.outbox_bytes_max = self.outbox_bytes_max.max(16_384);
        self.recovery_bytes_max = self.recovery_bytes_max.max(1 << 16);
        self.sip_bytes = dice.pick(&[300, 3000]);
        self.clients = self.clients.min(6);
        self.channels.truncate(3);
        (self.recovers, self.rewinds) = (950, 700);
        self.turns = dice.magnitude(300, 1500) as u32;
        self.orders = dice.pick(&[0, 30]);
        self.reconfigurations = dice.pick(&[0, 10, 30]);
        self.taken_off = 600;
        for group in &mut self.groups {
            group.history_size = group.history_size.max(dice.pick(&[5, 40, 1000]));
            group.history_age_ms = 300_000;
        }
    }

    /// Whether every client reads: readers who read, but slowly, use up what a channel waits for others.
    pub(crate) fn nobody_is_slow(&self) -> bool {
        self.attentive == 1000
    }

    /// The endpoint with a prefix.
    pub(crate) fn endpoint_of(&self, prefix: &str) -> usize {
        self.endpoints.iter().position(|own| own == prefix).unwrap_or(0)
    }

    /// What a client speaks who speaks neither `raw.v1` nor `echo`, by a number below 1,000.
    pub(crate) fn speaks_of_old(&self, number: u32) -> Speaks {
        match number {
            n if n < self.rooms => Speaks::Rooms,
            n if n < self.rooms + self.fluxus => Speaks::Fluxus,
            n if n < self.rooms + self.fluxus + self.portico => Speaks::Portico,
            _ => Speaks::Ringfeed,
        }
    }

    /// What everybody at an endpoint is subscribed to.
    pub(crate) fn list(&self, endpoint: usize) -> &[usize] {
        self.lists.get(endpoint).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn group(&self, channel: usize) -> &Group {
        &self.groups[self.channels[channel].group]
    }
}

impl Group {
    fn draw(dice: &mut Dice) -> Group {
        let sender = dice.chance(300);
        let presence = dice.pick(&[Shows::Off, Shows::Off, Shows::Count, Shows::Full, Shows::Full]);
        let members_max = dice.pick(&[0, 0, 0, 0, 0, 1, 2, 5]);
        let room = dice.chance(300).then(|| Terms::draw(dice, members_max));
        Group {
            history_size: dice.pick(&[0, 0, 1, 5, 40, 1000]),
            history_bytes: dice.pick(&[16 << 20, 16 << 20, 10_000]),
            history_age_ms: dice.pick(&[0, 300_000, 300_000, 500]),
            disconnect: dice.chance(300),
            window_bytes: dice.magnitude(256, 256 * 1024) as u32,
            window_age_ms: dice.pick(&[10_000, 10_000, 1000, 100]),
            sender,
            confirm: sender && dice.chance(500),
            presence,
            join_leave: presence == Shows::Full && dice.chance(600),
            presence_interval_ms: dice.pick(&[0, 0, 100, 500]),
            presence_hook: false,
            takes: Takes::draw(dice),
            members_max,
            only_made: room.is_some() && dice.chance(200),
            room,
        }
    }
}
