//! Who is on a channel: what a client makes of what it is told, and what all of them together know.

use std::collections::BTreeSet;

use super::client::{Client, Scene, Speaks};
use super::event::Said;
use super::judge::{Judge, Rule};
use super::link::{View, Want};
use super::net::{ConnId, Fate, Phase};
use super::setup::Shows;
use super::world::World;

/// All intervals are shorter: by then everybody was told of everything.
const TOLD_MS: u64 = 1200;

/// A client's list of who is on a channel, made as `docs/PROTOCOL.md` says.
#[derive(Debug, Default)]
pub(crate) struct List {
    /// `None` where it has none, or missed something.
    names: Option<BTreeSet<String>>,
    /// Of the answer it was made from.
    version: u64,
    /// Of the last notice, and whether that was a `leave`.
    last: Option<(u64, bool)>,
    /// All notices, in order: an answer may come behind those that are newer.
    kept: Vec<(u64, bool, Option<Vec<String>>)>,
}

/// Who is on a channel, as the control thread was told.
#[derive(Debug)]
pub(crate) struct Present {
    pub(crate) epoch: u64,
    pub(crate) version: u64,
    pub(crate) count: u64,
    pub(crate) connections: u64,
    pub(crate) names: Option<Vec<String>>,
    pub(crate) more: bool,
}

impl List {
    /// Something was missed.
    pub(crate) fn forget(&mut self) {
        self.names = None;
    }

    /// An answer with everybody in it.
    fn answer(&mut self, version: u64, names: &[String]) {
        self.names = Some(names.iter().cloned().collect());
        self.version = version;
        for (version, left, names) in std::mem::take(&mut self.kept) {
            self.apply(version, left, names.as_deref());
            self.kept.push((version, left, names));
        }
    }

    fn apply(&mut self, version: u64, left: bool, names: Option<&[String]>) {
        if version > self.version {
            match (names, &mut self.names) {
                (None, own) => *own = None,
                (Some(names), Some(own)) if left => own.retain(|name| !names.contains(name)),
                (Some(names), Some(own)) => own.extend(names.iter().cloned()),
                (Some(_), None) => {}
            }
        }
    }

    /// A notice; `None` in the place of names says that there are too many. Returns whether its version may follow.
    fn notice(&mut self, version: u64, left: bool, names: Option<&[String]>) -> bool {
        let fits = self.last.is_none_or(|(last, was_left)| {
            version > last || version == last && was_left && !left && names.is_some()
        });
        self.last = Some((version, left));
        self.apply(version, left, names);
        self.kept.push((version, left, names.map(<[String]>::to_vec)));
        fits
    }
}

impl Client {
    /// Asks who is on a channel.
    pub(super) fn presence(&mut self, scene: &mut Scene) {
        let Some(channel) = self.any_channel(scene) else { return };
        let after = scene.dice.chance(200).then(|| {
            if scene.dice.chance(700) { "user:u1".into() } else { format!("connection:{:020x}", 7) }
        });
        let limit = scene.dice.chance(300).then(|| scene.dice.below(4) as u32);
        let mut more =
            after.as_ref().map_or(String::new(), |name| format!(",\"after\":\"{name}\""));
        if let Some(limit) = limit {
            more.push_str(&format!(",\"limit\":{limit}"));
        }
        let all = after.is_none();
        self.command(Want::Presence { all, limit }, Some(channel), &more, scene);
    }

    /// Somebody has come or gone.
    pub(super) fn noticed(&mut self, said: &Said, named: Option<usize>, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        let who = link.who.clone();
        let (Some(channel), Some(version)) = (named, said.version) else {
            let what = format_args!("{who} got a notice without channel or version");
            return scene.judge.broken(Rule::Frames, what);
        };
        let names = said.names();
        let whole = match said.kind {
            "presence" => names.is_none() && said.count.is_some(),
            _ => names.as_ref().is_some_and(|names| (1..=100).contains(&names.len())),
        };
        if !whole || !scene.setup.group(channel).join_leave {
            let what = format_args!("{who} got a notice that is none, or not to be told");
            return scene.judge.broken(Rule::Frames, what);
        }
        let name = &scene.judge.names[channel];
        let own = link.channels.get_mut(&channel).filter(|own| own.view != View::Off);
        let Some(own) = own else {
            let what = format_args!("{who} got a notice of {name}, which is not subscribed");
            return scene.judge.broken(Rule::Subscribed, what);
        };
        let before = own.list.last;
        if !own.list.notice(version, said.kind == "leave", names.as_deref()) {
            let what = format_args!(
                "{who} got a {} of {name} with version {version} behind {before:?}",
                said.kind
            );
            scene.judge.broken(Rule::VersionsGrow, what);
        }
        link.check_allowed(channel, scene);
    }

    /// The answer to who is on a channel. Says what is wrong with it.
    pub(super) fn told_who_is_there(
        said: &Said,
        channel: usize,
        (all, limit): (bool, Option<u32>),
        list: Option<&mut List>,
        scene: &Scene,
    ) -> Option<&'static str> {
        let (Some(version), Some(count), Some(connections)) =
            (said.version, said.count, said.connections)
        else {
            return Some("version, count or connections are missing");
        };
        let group = scene.setup.group(channel);
        let most = scene.judge.rooms.members_max(channel, group.members_max);
        if let Some(most) = most.filter(|most| connections > u64::from(*most)) {
            let name = &scene.judge.names[channel];
            let what = format_args!("{connections} are said to be on {name}, of {most}");
            scene.judge.broken(Rule::MembersAtMost, what);
        }
        let names = said.names();
        match (group.presence, names) {
            (Shows::Off, _) => Some("it had to be refused"),
            (Shows::Count, None) if said.next.is_none() => None,
            (Shows::Full, Some(names)) => {
                let unique: BTreeSet<&String> = names.iter().collect();
                if unique.len() < names.len()
                    || names.len() as u64 > count
                    || count > connections
                    || limit.is_some_and(|limit| names.len() > limit as usize)
                    || names.len() > scene.setup.presence_reply_max as usize
                {
                    return Some("the numbers do not fit");
                }
                let whole = all && said.next.is_none() && limit != Some(0);
                if whole && names.len() as u64 != count {
                    return Some("not all are named, and it is not said so");
                }
                if let Some(list) = list.filter(|_| whole) {
                    list.answer(version, &names);
                }
                None
            }
            _ => Some("it names somebody, or nobody, where it must not"),
        }
    }
}

/// What the application has heard of users who come to channels and leave them.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Of what it was told.
    ids: BTreeSet<u128>,
    there: BTreeSet<(String, String)>,
    /// It will not hear of something.
    unsure: bool,
}

impl Heard {
    /// It is told something, for the first time or again; or it will not hear it.
    pub(crate) fn hear(
        &mut self,
        judge: &Judge,
        (id, lost): (u128, u64),
        changes: &[(String, String, bool)],
        heard: bool,
    ) {
        self.unsure |= lost > 0 || !heard;
        if !heard || !self.ids.insert(id) {
            return;
        }
        for (channel, user, joined) in changes {
            let key = (channel.clone(), user.clone());
            let is_news = if *joined { self.there.insert(key) } else { self.there.remove(&key) };
            if !is_news && !self.unsure {
                let what = format_args!("{user} is told of {channel} again: {joined}");
                judge.broken(Rule::HeardInOrder, what);
            }
        }
    }

    /// Whether it knows who is there.
    fn knows(&self, channel: &str, names: &[String]) -> bool {
        let users = names.iter().filter_map(|name| name.strip_prefix("user:"));
        let there = self.there.iter().filter(|(of, _)| of == channel);
        users.collect::<BTreeSet<_>>() == there.map(|(_, user)| user.as_str()).collect()
    }
}

/// Who may be on a channel, and who is, as far as clients know.
#[derive(Debug, Default)]
struct Known {
    /// Names of whom it is sure that they are there, and of whom it may be.
    sure: BTreeSet<String>,
    possible: BTreeSet<String>,
    /// Connections of strangers that are there, and that may be.
    strangers: (u64, u64),
    /// Connections that are there, and that may be.
    connections: (u64, u64),
}

impl World {
    /// Everything is quiet: who is said to be on each channel is, and clients that were told know it.
    pub(super) fn check_presence(&mut self) {
        self.check_rooms_of_users();
        let before = self.ask_presence();
        self.rest(TOLD_MS);
        let now = self.ask_presence();
        for (channel, (before, now)) in before.into_iter().zip(now).enumerate() {
            self.check_present(channel, now.as_ref());
            let same = |a: &Present, b: &Present| (a.epoch, a.version) == (b.epoch, b.version);
            let told = before.zip(now).filter(|(before, now)| same(before, now));
            if let Some((_, now)) = told.filter(|(_, now)| !now.more) {
                self.check_lists(channel, &now);
                self.check_heard(channel, &now);
            }
        }
    }

    fn ask_presence(&mut self) -> Vec<Option<Present>> {
        self.present = (0..self.setup.channels.len()).map(|_| None).collect();
        for channel in 0..self.setup.channels.len() {
            let name = &self.setup.channels[channel].name;
            self.waiting.extend(self.cluster.presence(channel, name, u32::MAX));
            self.settle();
        }
        std::mem::take(&mut self.present)
    }

    pub(super) fn is_heard(&self, conn: ConnId, client: &Client) -> bool {
        let net = self.net.borrow();
        let state = &net.conns[conn];
        let Some(link) = client.link.as_ref().filter(|link| link.conn == conn) else {
            return false;
        };
        let ends = link.close_seen.is_some() || link.close_sent.is_some() || !link.broke.is_empty();
        state.phase == Phase::Open && state.fate == Fate::Alive && client.reading && !ends
    }

    fn known(&self, channel: usize) -> Known {
        let mut known = Known::default();
        for &conn in &self.open {
            let client = &self.clients[self.owners[conn]];
            let link = client.link.as_ref().filter(|link| link.conn == conn);
            let own = link.and_then(|link| link.channels.get(&channel));
            let Some(own) = own else { continue };
            let users: BTreeSet<_> = self.judge.ledgers.users(conn, u64::MAX).collect();
            let sure = users.len() == 1
                && matches!(client.speaks, Speaks::Ringfeed | Speaks::Rooms)
                && !own.raw.silent
                && self.is_heard(conn, client)
                && own.view != View::Off;
            known.connections.0 += u64::from(sure);
            known.connections.1 += 1;
            for user in users {
                match user {
                    Some(user) => {
                        let name = format!("user:{user}");
                        known.possible.insert(name.clone());
                        known.sure.extend(Some(name).filter(|_| sure));
                    }
                    None => {
                        known.strangers.0 += u64::from(sure);
                        known.strangers.1 += 1;
                    }
                }
            }
        }
        known
    }

    fn check_present(&self, channel: usize, present: Option<&Present>) {
        let (name, group) = (&self.setup.channels[channel].name, self.setup.group(channel));
        let known = self.known(channel);
        let Some(present) = present.filter(|_| group.presence != Shows::Off) else { return };
        let within = |(least, most): (u64, u64), of: u64| (least..=most).contains(&of);
        let most = self.judge.rooms.members_max(channel, group.members_max).map(u64::from);
        let there = present.connections.max(known.connections.0);
        if let Some(most) = most.filter(|most| there > *most) {
            let what = format_args!("of {most} on {name} there are {present:?} {known:?}");
            self.judge.broken(Rule::MembersAtMost, what);
        }
        let mut fits = within(known.connections, present.connections);
        if let Some(names) = present.names.as_ref().filter(|_| !present.more) {
            let strangers = names.iter().filter(|name| name.starts_with("connection:")).count();
            let users = names.iter().filter(|name| name.starts_with("user:"));
            let users: BTreeSet<String> = users.cloned().collect();
            fits &= within(known.strangers, strangers as u64)
                && known.sure.is_subset(&users)
                && users.is_subset(&known.possible)
                && names.len() as u64 == present.count;
        }
        if !fits {
            let what = format_args!("on {name} there are {present:?}; known are {known:?}");
            self.judge.broken(Rule::PresentAsTold, what);
        }
    }

    /// The application was told of everything, where nothing waits any more.
    fn check_heard(&self, channel: usize, present: &Present) {
        let heard = &self.application.heard;
        let waits = heard.unsure || self.cluster.news_waiting() > 0;
        let hooked = self.setup.group(channel).presence_hook && !waits;
        let Some(names) = present.names.as_ref().filter(|_| hooked) else { return };
        let name = &self.setup.channels[channel].name;
        if !heard.knows(name, names) {
            let what = format_args!("of {name} the application knows {heard:?}: {present:?}");
            self.judge.broken(Rule::HeardInOrder, what);
        }
    }

    /// Everybody was told of everything.
    fn check_lists(&self, channel: usize, present: &Present) {
        let Some(names) = &present.names else { return };
        let names: BTreeSet<String> = names.iter().cloned().collect();
        let group = self.setup.group(channel);
        for client in self.clients.iter().filter(|_| group.join_leave) {
            let Some(link) = client.link.as_ref() else { continue };
            let own = link.channels.get(&channel).filter(|own| own.view != View::Off);
            let lies = own
                .into_iter()
                .flat_map(|own| &own.came)
                .find(|(user, came)| names.contains(&format!("user:{user}")) != **came);
            if let Some((user, came)) = lies.filter(|_| self.is_heard(link.conn, client)) {
                let name = &self.setup.channels[channel].name;
                let what = format_args!("{} hears {user} is on {name}: {came}", link.who);
                self.judge.broken(Rule::PresentAsTold, what);
            }
            let list = own.and_then(|own| own.list.names.as_ref());
            if let Some(list) = list.filter(|_| self.is_heard(link.conn, client))
                && *list != names
            {
                let name = &self.setup.channels[channel].name;
                let what = format_args!("{} has {list:?} of {name}: {present:?}", link.who);
                self.judge.broken(Rule::PresentAsTold, what);
            }
        }
    }
}
