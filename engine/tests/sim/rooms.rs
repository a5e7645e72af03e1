//! Rooms: what the API orders of them, and what may come of entering one and of speaking there, worked out without a look
//! at the engine's own rules.
//!
//! Nobody outside sees when a home decides: between a command and its answer, and between an order and its. So each is
//! judged by all that may have held meanwhile.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use super::client::{Client, Scene};
use super::dice::Dice;
use super::judge::{Judge, Rule};
use super::link::{Link, Pending, View, Want};
use super::policy::{Op, Word};
use super::setup::{Group, Setup};
use super::trace::note;
use super::world::World;

/// Words that are passwords, and one that never is.
pub(crate) const PASSWORDS: [&str; 3] = ["a", "open sesame", "ä wrong one"];
const WRONG: usize = 2;

/// What holds in a room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) members_max: u32,
    pub(crate) public: bool,
    pub(crate) moderated: bool,
    /// Anyone speaks, not members alone.
    pub(crate) anyone: bool,
    /// One of [`PASSWORDS`].
    pub(crate) password: Option<usize>,
    /// Users.
    pub(crate) moderators: Vec<usize>,
    pub(crate) invited: Vec<usize>,
}

/// One thing that is said of a room.
#[derive(Debug, Clone)]
pub(crate) enum Field {
    MembersMax(u32),
    Public(bool),
    Moderated(bool),
    Anyone(bool),
    Password(Option<usize>),
    Moderators(Vec<usize>),
    Invited(Vec<usize>),
    EndsWhenEmpty(bool),
}

/// What the API orders.
#[derive(Debug, Clone)]
pub(crate) enum RoomOrder {
    Make(Vec<Field>),
    Change(Vec<Field>),
    Show,
    End,
}

/// What it is told then: terms, whether the room was made and then whether it ends when empty; or why not.
pub(crate) type Told = Result<(Terms, Option<bool>), &'static str>;

/// Somebody who may be asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guest {
    user: Option<usize>,
    moderates: Option<bool>,
    invited: bool,
}

/// A subscribe.
#[derive(Debug, Clone)]
pub(crate) struct Try {
    pub(crate) at: u64,
    pub(crate) password: Option<usize>,
}

/// A publication of a client.
#[derive(Debug)]
struct Spoken {
    channel: usize,
    at: u64,
    guests: Vec<Guest>,
    /// Whether it may have been a member.
    member: bool,
    /// When it had become one, where it surely was.
    since: Option<u64>,
    /// It was said so.
    refused: bool,
}

/// What holds for a time.
#[derive(Debug)]
struct Version {
    /// `None`: there is no such room.
    terms: Option<Terms>,
    /// It was made, and perhaps ends when it is empty.
    made: Option<bool>,
    from: u64,
    /// By then something else held.
    until: Option<u64>,
}

/// One channel that is a room.
#[derive(Debug)]
struct Room {
    by_rule: Terms,
    only_made: bool,
    versions: Vec<Version>,
    /// The one that was told last.
    current: usize,
    /// An order that is not answered, and when it was given. Where it may have been done, its version is the last one.
    pending: Option<(RoomOrder, u64)>,
    /// When it was ordered to end, and did.
    ended: Vec<u64>,
    ends_ordered: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    clock: Cell<u64>,
    by_channel: BTreeMap<usize, Room>,
    spoken: BTreeMap<u64, Spoken>,
    /// Subscribes that were sent, by channel.
    tried: BTreeMap<usize, u64>,
}

impl Terms {
    pub(crate) fn draw(dice: &mut Dice, members_max: u32) -> Terms {
        Terms {
            members_max,
            public: dice.chance(500),
            moderated: dice.chance(300),
            anyone: dice.chance(400),
            password: dice.chance(400).then(|| dice.below(WRONG)),
            moderators: Vec::new(),
            invited: Vec::new(),
        }
    }

    fn with(&self, fields: &[Field]) -> (Terms, Option<bool>) {
        let (mut terms, mut ends) = (self.clone(), None);
        for field in fields.iter().cloned() {
            match field {
                Field::MembersMax(most) => terms.members_max = most,
                Field::Public(public) => terms.public = public,
                Field::Moderated(moderated) => terms.moderated = moderated,
                Field::Anyone(anyone) => terms.anyone = anyone,
                Field::Password(password) => terms.password = password,
                Field::Moderators(users) => terms.moderators = users,
                Field::Invited(users) => terms.invited = users,
                Field::EndsWhenEmpty(own) => ends = Some(own),
            }
        }
        (terms, ends)
    }
}

fn is_named(guest: &Guest, list: &[usize]) -> bool {
    guest.user.is_some_and(|user| list.contains(&user))
}

/// What comes of it when somebody wants to enter, but for a room that is full.
fn entering(terms: Option<&Terms>, guest: &Guest, password: Option<usize>) -> &'static str {
    let Some(terms) = terms else { return "no_such_room" };
    let moderates = guest.moderates.unwrap_or(is_named(guest, &terms.moderators));
    if moderates {
        return "subscribed";
    }
    if !(terms.public || guest.invited || is_named(guest, &terms.invited)) {
        return "members_only";
    }
    match terms.password {
        Some(own) if password != Some(own) => "wrong_password",
        _ => "subscribed",
    }
}

/// What comes of it when somebody speaks.
fn speaking(terms: Option<&Terms>, guest: &Guest, member: bool) -> &'static str {
    let Some(terms) = terms else { return "no_such_room" };
    let moderates = guest.moderates.unwrap_or(is_named(guest, &terms.moderators));
    match (moderates, terms.moderated, terms.anyone || member) {
        (true, ..) | (false, false, true) => "published",
        (false, true, _) => "moderated",
        (false, false, false) => "members_only",
    }
}

impl Rooms {
    pub(crate) fn new(setup: &Setup) -> Rooms {
        let mut rooms = Rooms::default();
        for (channel, own) in setup.channels.iter().enumerate() {
            let Group { room, only_made, .. } = &setup.groups[own.group];
            let Some(terms) = room else { continue };
            let mut room = Room {
                by_rule: terms.clone(),
                only_made: *only_made,
                versions: Vec::new(),
                current: 0,
                pending: None,
                ended: Vec::new(),
                ends_ordered: false,
            };
            room.versions.push(room.unmade(0));
            rooms.by_channel.insert(channel, room);
        }
        rooms
    }

    /// A moment of its own.
    pub(crate) fn now(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    pub(crate) fn is_room(&self, channel: usize) -> bool {
        self.by_channel.contains_key(&channel)
    }

    /// What may have held at a time between these.
    fn held(&self, channel: usize, from: u64, to: u64) -> Vec<Option<&Terms>> {
        let Some(room) = self.by_channel.get(&channel) else { return Vec::new() };
        let then = |version: &&Version| {
            version.from <= to && version.until.is_none_or(|until| until >= from)
        };
        let mut held = Vec::new();
        for version in room.versions.iter().filter(then) {
            held.push(version.terms.as_ref());
            if version.made == Some(true) {
                // It may have ended by itself.
                held.push(room.without());
            }
        }
        held
    }

    /// Whether this may be what has come of a subscribe.
    pub(crate) fn enters(
        &self,
        channel: usize,
        Try { at, password }: &Try,
        guests: &[Guest],
        outcome: &str,
    ) -> bool {
        let held = self.held(channel, *at, self.now());
        held.iter().any(|&terms| {
            let full = outcome == "channel_full";
            let limited = terms.is_some_and(|terms| terms.members_max > 0);
            let due = if full { "subscribed" } else { outcome };
            (!full || limited)
                && guests.iter().any(|guest| entering(terms, guest, *password) == due)
        })
    }

    /// The most members that there may be at any time; `None` where there may be any number.
    pub(crate) fn members_max(&self, channel: usize, by_rule: u32) -> Option<u32> {
        let Some(room) = self.by_channel.get(&channel) else {
            return (by_rule > 0).then_some(by_rule);
        };
        let all = room.versions.iter().flat_map(|version| &version.terms);
        let all: Vec<u32> = all.chain(room.without()).map(|terms| terms.members_max).collect();
        if all.contains(&0) { None } else { Some(all.into_iter().max().unwrap_or(0)) }
    }

    /// Somebody wants to enter.
    pub(crate) fn is_tried(&mut self, channel: usize) {
        *self.tried.entry(channel).or_default() += 1;
    }

    /// The fewest members with which it may have been full; `None` where it never was.
    fn fewest(&self, channel: usize, tried: &Try, by_rule: u32) -> Option<u32> {
        let limited = |most: &u32| *most > 0;
        if !self.is_room(channel) {
            return Some(by_rule).filter(limited);
        }
        let held = self.held(channel, tried.at, self.now());
        held.into_iter().flatten().map(|terms| terms.members_max).filter(limited).min()
    }

    /// Whether it was ordered that it ends.
    pub(crate) fn may_have_ended(&self, channel: usize) -> bool {
        self.by_channel.get(&channel).is_some_and(|room| room.ends_ordered)
    }

    /// Whether who was in it at that time had to go.
    fn has_ended_since(&self, channel: usize, joined: u64) -> bool {
        let room = self.by_channel.get(&channel);
        room.is_some_and(|room| room.ended.iter().any(|&ended| joined < ended))
    }

    /// The password that is mostly the right one.
    fn password(&self, channel: usize) -> Option<usize> {
        let room = self.by_channel.get(&channel)?;
        room.versions[room.current].terms.as_ref()?.password
    }

    /// A publication is in the log. What is wrong with that.
    pub(crate) fn is_heard(&mut self, number: u64) -> Option<String> {
        let spoken = self.spoken.get(&number)?;
        if spoken.refused {
            return Some("its publisher was told that it may not speak".into());
        }
        let fits = self.speaks(spoken, spoken.member, "published");
        let what = format!("its publisher may not have spoken: {spoken:?}");
        self.spoken.remove(&number);
        (!fits).then_some(what)
    }

    fn speaks(&self, spoken: &Spoken, member: bool, outcome: &str) -> bool {
        let Spoken { channel, at, guests, .. } = spoken;
        let held = self.held(*channel, *at, self.now());
        held.iter()
            .any(|&terms| guests.iter().any(|guest| speaking(terms, guest, member) == outcome))
    }

    /// A client is told that it may not speak; `joined` is when it was told that it has subscribed, where it still has.
    /// Returns whether it may be told so.
    fn is_refused(
        &mut self,
        (number, heard): (u64, bool),
        joined: Option<u64>,
        outcome: &str,
    ) -> bool {
        let Some(spoken) = self.spoken.get(&number) else { return false };
        let surely = spoken.since.is_some() && spoken.since == joined;
        let fits = !heard && self.speaks(spoken, surely, outcome);
        self.spoken.entry(number).and_modify(|spoken| spoken.refused = true);
        fits
    }

    /// Something is ordered of a room, if nothing is under way there.
    fn order(&mut self, channel: usize, order: &RoomOrder) -> bool {
        let now = self.now();
        let Some(room) = self.by_channel.get_mut(&channel) else { return false };
        if room.pending.is_some() {
            return false;
        }
        room.ends_ordered |= matches!(order, RoomOrder::End);
        room.pending = Some((order.clone(), now));
        let next = room.ordered(order, now);
        room.versions.extend(next);
        true
    }

    /// A shard has no room for the order: it was never given.
    fn take_back(&mut self, channel: usize) {
        let Some(room) = self.by_channel.get_mut(&channel) else { return };
        room.pending = None;
        room.versions.truncate(room.current + 1);
    }

    /// What is said to an order. Returns what is wrong with it; `short` says that there may be too many rooms.
    fn answered(
        &mut self,
        channel: usize,
        told: &Told,
        (short, draining): (bool, bool),
    ) -> Option<String> {
        let now = self.now();
        let room = self.by_channel.get_mut(&channel)?;
        let (order, at) = room.pending.take()?;
        let next = room.versions.len() - 1;
        let (was, due) = (&room.versions[room.current], &room.versions[next]);
        let is = |version: &Version, (terms, made): &(Terms, Option<bool>)| {
            version.terms.as_ref() == Some(terms) && version.made == *made
        };
        let may_be_over = was.made == Some(true);
        let complaint = format!("{order:?} is answered with {told:?}; it was {was:?}");
        let (fits, goes_on) = match (&order, told) {
            (RoomOrder::Make(_) | RoomOrder::Change(_), Ok(now)) => {
                (next > room.current && is(due, now), true)
            }
            (RoomOrder::End, Ok(then)) => {
                room.ended.push(at);
                (next > room.current && is(was, then), true)
            }
            (RoomOrder::Show, Ok(now)) if is(was, now) => (true, true),
            (RoomOrder::Show, Ok(now)) => {
                let by_rule = room.without() == Some(&now.0) && now.1.is_none();
                (may_be_over && by_rule, false)
            }
            (RoomOrder::Make(_), Err("limit_reached")) => (short, false),
            (RoomOrder::Make(_), Err("draining")) => (draining, false),
            (RoomOrder::Show, Err("not_made")) => {
                (room.only_made && (may_be_over || was.made.is_none()), false)
            }
            (RoomOrder::Change(_) | RoomOrder::End, Err("not_made")) => {
                (may_be_over || was.made.is_none(), false)
            }
            _ => (false, false),
        };
        if goes_on && next > room.current {
            room.versions[room.current].until = Some(now);
            room.current = next;
        } else if !goes_on {
            room.versions.truncate(room.current + 1);
            if may_be_over && !matches!(told, Err("draining" | "limit_reached")) {
                room.versions[room.current].until = Some(now);
                room.versions.push(room.unmade(now));
                room.current += 1;
            }
        }
        (!fits).then_some(complaint)
    }
}

impl Room {
    /// What holds where it was not made.
    fn without(&self) -> Option<&Terms> {
        Some(&self.by_rule).filter(|_| !self.only_made)
    }

    fn unmade(&self, from: u64) -> Version {
        Version { terms: self.without().cloned(), made: None, from, until: None }
    }

    /// What is to hold once this was done; `None` where it cannot be done, or changes nothing.
    fn ordered(&self, order: &RoomOrder, from: u64) -> Option<Version> {
        let now = &self.versions[self.current];
        let version = |(terms, made)| Version { terms: Some(terms), made, from, until: None };
        match order {
            RoomOrder::Make(fields) => {
                let (terms, ends) = self.by_rule.with(fields);
                Some(version((terms, ends.or(Some(false)))))
            }
            RoomOrder::Change(fields) => {
                let (terms, ends) = now.terms.as_ref().filter(|_| now.made.is_some())?.with(fields);
                Some(version((terms, ends.or(now.made))))
            }
            RoomOrder::End => now.made.map(|_| self.unmade(from)),
            RoomOrder::Show => None,
        }
    }
}

impl Link {
    /// Who it may be to a room, and what it may have to enter with.
    fn guests(&self, channel: usize, setup: &Setup) -> Vec<Guest> {
        let group = setup.channels[channel].group;
        let asks = setup.policies.iter().any(|policy| policy.words[group].0 == Word::Hook);
        let mut guests = Vec::new();
        for found in self.founds() {
            let user = found.person.user;
            let named = found.channels.contains(&channel);
            for policy in &setup.policies {
                let permitted = |op| policy.permitted(&found.person, op, group);
                let moderates = permitted(Op::Moderate);
                let sure = permitted(Op::Subscribe) == Some(true);
                if !sure {
                    guests.push(Guest { user, moderates, invited: false });
                }
                if sure || named || asks {
                    guests.push(Guest { user, moderates, invited: true });
                }
            }
        }
        guests
    }

    /// It wants to enter.
    pub(super) fn tries(&mut self, channel: usize, password: Option<usize>, judge: &mut Judge) {
        let at = judge.rooms.now();
        judge.rooms.is_tried(channel);
        if let Some(own) = self.channels.get_mut(&channel) {
            own.tries.push(Try { at, password });
        }
    }

    /// Whether this may be what has come of one of its attempts to enter a room: the one of that moment, or any.
    pub(super) fn enters(
        &self,
        channel: usize,
        tried: Option<&Try>,
        outcome: &str,
        (setup, judge): (&Setup, &Judge),
    ) -> bool {
        let guests = self.guests(channel, setup);
        let own = self.channels.get(&channel);
        let all = own.iter().flat_map(|own| &own.tries);
        let mut all = all.filter(|_| tried.is_none()).chain(tried);
        all.any(|tried| judge.rooms.enters(channel, tried, &guests, outcome))
    }

    /// It speaks, perhaps in a room.
    pub(super) fn speaks(&self, number: u64, channel: usize, (setup, judge): (&Setup, &mut Judge)) {
        if !judge.rooms.is_room(channel) {
            return;
        }
        let own = self.channels.get(&channel);
        let member = own.is_some_and(|own| !own.tries.is_empty());
        let touches = |want: Want| matches!(want, Want::Subscribe { .. } | Want::Unsubscribe);
        let changes = self.pending.iter().any(|p| p.channel == Some(channel) && touches(p.want));
        let since = self.joined(channel).filter(|_| !changes);
        let (at, guests) = (judge.rooms.now(), self.guests(channel, setup));
        let spoken = Spoken { channel, at, guests, member, since, refused: false };
        judge.rooms.spoken.insert(number, spoken);
    }

    /// When it was told that it is in a room in which it still is.
    fn joined(&self, channel: usize) -> Option<u64> {
        let own = self.channels.get(&channel).filter(|own| own.view != View::Off);
        own.map(|own| own.joined)
    }

    /// Whether a subscribe may have been refused so.
    pub(super) fn may_be_kept_out(
        &self,
        pending: &Pending,
        channel: usize,
        code: &str,
        Scene { setup, judge, .. }: &Scene,
    ) -> bool {
        let Want::Subscribe { password, .. } = pending.want else { return false };
        let tried = Try { at: pending.at, password };
        if code == "channel_full" {
            // Beside this one there must have been as many attempts.
            let tries = judge.rooms.tried.get(&channel).copied().unwrap_or_default();
            let others = (tries + judge.ledgers.named(channel)).saturating_sub(1);
            let most = judge.rooms.fewest(channel, &tried, setup.group(channel).members_max);
            if most.is_none_or(|most| others < u64::from(most)) {
                return false;
            }
        }
        if !judge.rooms.is_room(channel) {
            return code == "channel_full";
        }
        self.enters(channel, Some(&tried), code, (setup, judge))
    }

    /// Whether it may be its user's connection to one room too many.
    pub(super) fn may_be_in_too_many(&self, channel: usize, scene: &Scene) -> bool {
        let most = scene.setup.rooms_per_user_max;
        let somebody = self.founds().any(|found| found.person.user.is_some());
        most > 0 && somebody && scene.judge.rooms.is_room(channel)
    }

    /// Rooms that it is in as its user's, who it was from the beginning.
    fn rooms_of_user(&self, judge: &Judge) -> Option<(usize, Vec<usize>)> {
        let user = self.found.person.user?;
        let there = |channel: &usize| {
            judge.rooms.is_room(*channel) && self.joined(*channel).is_some_and(|at| at > 0)
        };
        Some((user, self.channels.keys().copied().filter(there).collect()))
    }

    /// A publication was refused so: whether that may be, where it is a room that refuses.
    pub(super) fn silenced(
        &self,
        pending: &Pending,
        code: &str,
        judge: &mut Judge,
    ) -> Option<bool> {
        let Want::Publish(number) = pending.want else { return None };
        let channel = pending.channel.filter(|channel| judge.rooms.is_room(*channel))?;
        matches!(code, "moderated" | "members_only" | "no_such_room").then(|| {
            let heard = judge.publications[number as usize - 1].place.is_some();
            judge.rooms.is_refused((number, heard), self.joined(channel), code)
        })
    }

    /// Something of a room has come over `raw.v1`, which is not told whether it has entered.
    pub(super) fn check_entered(&mut self, channel: usize, (setup, judge): (&Setup, &Judge)) {
        let entered = self.channels.get(&channel).is_some_and(|own| own.entered);
        if entered || !judge.rooms.is_room(channel) {
            return;
        }
        if !self.enters(channel, None, "subscribed", (setup, judge)) {
            let what = format_args!("{} is in {}", self.who, judge.names[channel]);
            judge.broken(Rule::RoomEnters, what);
        }
        if let Some(own) = self.channels.get_mut(&channel) {
            own.entered = true;
        }
    }

    /// Everything is quiet: it is in no room that has ended.
    pub(super) fn check_rooms(&self, judge: &Judge) {
        for &channel in self.channels.keys() {
            let joined = self.joined(channel);
            if joined.is_some_and(|joined| judge.rooms.has_ended_since(channel, joined)) {
                let what = format_args!("{} is still in {}", self.who, judge.names[channel]);
                judge.broken(Rule::RoomEnds, what);
            }
        }
    }
}

impl Client {
    /// What is said to enter a room: mostly the right word.
    pub(super) fn any_password(channel: usize, scene: &mut Scene) -> Option<usize> {
        if !scene.judge.rooms.is_room(channel) {
            return None;
        }
        let right = scene.judge.rooms.password(channel);
        match scene.dice.below(10) {
            0 | 1 => None,
            2 => Some(scene.dice.below(PASSWORDS.len())),
            _ => right,
        }
    }
}

impl World {
    fn any_fields(&mut self) -> Vec<Field> {
        let dice = &mut self.dice;
        let users = self.setup.users;
        let some = |dice: &mut Dice| (0..users).filter(|_| dice.chance(300)).collect::<Vec<_>>();
        let count = dice.pick(&[0, 1, 1, 2, 4, 6]);
        let mut fields = Vec::new();
        for _ in 0..count {
            fields.push(match dice.below(8) {
                0 => Field::MembersMax(dice.pick(&[0, 1, 2, 5])),
                1 => Field::Public(dice.chance(600)),
                2 => Field::Moderated(dice.chance(400)),
                3 => Field::Anyone(dice.chance(400)),
                4 => Field::Password(dice.chance(600).then(|| dice.below(WRONG))),
                5 => Field::Moderators(some(dice)),
                6 => Field::Invited(some(dice)),
                _ => Field::EndsWhenEmpty(dice.chance(500)),
            });
        }
        fields
    }

    /// The API makes, changes, shows or ends a room.
    pub(super) fn order_room(&mut self) {
        let channel = self.dice.below(self.setup.channels.len());
        let fields = self.any_fields();
        let order = match self.dice.below(10) {
            0..=3 => RoomOrder::Make(fields),
            4..=6 => RoomOrder::Change(fields),
            7 => RoomOrder::Show,
            _ => RoomOrder::End,
        };
        if !self.judge.rooms.order(channel, &order) {
            return;
        }
        note!(self.trace, "the API orders of room {channel}: {order:?}");
        let name = &self.setup.channels[channel].name;
        match self.cluster.room(channel, name, &order) {
            Some(waiting) => self.waiting.push(waiting),
            None => self.judge.rooms.take_back(channel),
        }
    }

    /// Everything is quiet: no user is in more rooms than one may be.
    pub(super) fn check_rooms_of_users(&self) {
        let most = self.setup.rooms_per_user_max as usize;
        let mut of_user = vec![BTreeSet::new(); self.setup.users];
        for &conn in self.open.iter().filter(|_| most > 0) {
            let client = &self.clients[self.owners[conn]];
            let link = client.link.as_ref().filter(|link| link.conn == conn);
            let rooms = link.and_then(|link| link.rooms_of_user(&self.judge));
            if let Some((user, rooms)) = rooms.filter(|_| self.is_heard(conn, client)) {
                of_user[user].extend(rooms);
            }
        }
        if let Some(user) = of_user.iter().position(|rooms| rooms.len() > most) {
            let what = format_args!("u{user} is in {:?}, not in {most}", of_user[user]);
            self.judge.broken(Rule::RoomsOfUser, what);
        }
    }

    /// What came of it.
    pub(super) fn told_of_room(&mut self, channel: usize, told: &Told) {
        note!(self.trace, "the API is told of room {channel}: {told:?}");
        let short = self.setup.rooms_max < 1000 || self.setup.channels_max < 1000;
        let wrong = self.judge.rooms.answered(channel, told, (short, self.judge.draining));
        if let Some(wrong) = wrong {
            let name = &self.setup.channels[channel].name;
            self.judge.broken(Rule::Api, format_args!("of {name}: {wrong}"));
        }
    }
}
