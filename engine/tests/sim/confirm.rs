//! Confirmations: publishers who want to know who has got something, receivers who say so, and what both are told.

use std::collections::{BTreeMap, BTreeSet};

use super::client::{Client, Scene, Speaks};
use super::event::Said;
use super::judge::{Ident, Judge, Rule};
use super::link::{View, Want};
use super::net::ConnId;
use super::world::World;

/// A shard's time for its work may be behind by so much, and goes on in steps.
const LATE_MS: u64 = 2000;

/// A publication that receivers are asked to confirm.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    by: ConnId,
    within_ms: u64,
    sent_ms: u64,
    /// It is in the log.
    accepted: bool,
    /// Who has confirmed it, and who has not, as its publisher was told.
    told: Option<(Vec<String>, Vec<String>)>,
    /// Connections that it came to as it was published.
    receivers: Vec<ConnId>,
    /// Connections that have said so and were told that this was waited for.
    in_time: Vec<ConnId>,
    /// Connections that were told that it was not, while there was time.
    untimely: Vec<ConnId>,
}

/// All of them, by the number of the publication.
#[derive(Debug, Default)]
pub(crate) struct Confirmations {
    asked: BTreeMap<u64, Asked>,
    /// Channels, offsets and connections that have said that this has come, true or not: it may be published later.
    said: BTreeSet<(usize, u64, ConnId)>,
}

impl Confirmations {
    pub(crate) fn is_asked(&self, number: u64) -> bool {
        self.asked.contains_key(&number)
    }

    pub(crate) fn accept(&mut self, number: u64) {
        self.asked.entry(number).and_modify(|asked| asked.accepted = true);
    }
}

impl Client {
    /// Perhaps asks receivers to confirm a publication. Returns what that adds to the command.
    pub(super) fn ask_to_confirm(
        number: u64,
        channel: usize,
        by: ConnId,
        scene: &mut Scene,
    ) -> String {
        let rate = if scene.setup.group(channel).confirm { 400 } else { 10 };
        if !scene.dice.chance(rate) {
            return String::new();
        }
        let within_ms = scene.dice.magnitude(1, 2 * scene.setup.confirm_ms_max as usize) as u64;
        let most = u64::from(scene.setup.confirm_ms_max);
        let sent_ms = scene.now_ms;
        let asked = Asked { by, within_ms: within_ms.min(most), sent_ms, ..Asked::default() };
        scene.judge.confirmations.asked.insert(number, asked);
        format!(",\"confirm_ms\":{within_ms}")
    }

    /// A publication has come whose publisher wants to know.
    pub(super) fn is_asked(
        &mut self,
        is: Ident,
        place: (usize, u64),
        live: bool,
        scene: &mut Scene,
    ) {
        let Some(link) = &mut self.link else { return };
        let Ident::Number(number) = is else { return };
        let Some(asked) = scene.judge.confirmations.asked.get_mut(&number) else {
            let what = format_args!("{} is asked to confirm publication {number}", link.who);
            return scene.judge.broken(Rule::Receipts, what);
        };
        if live {
            asked.receivers.push(link.conn);
        }
        link.to_confirm.push((number, place.0, place.1));
        let may_speak = !link.mute && link.close_sent.is_none();
        if may_speak && scene.dice.chance(500) {
            self.confirm(scene);
        }
    }

    /// Confirms something that has come, or anything.
    pub(super) fn confirm(&mut self, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        let count = link.to_confirm.len();
        let (number, channel, offset) = if count > 0 && !scene.dice.chance(30) {
            let at = scene.dice.below(count);
            let (number, channel, offset) = link.to_confirm[at];
            if scene.dice.chance(900) {
                link.to_confirm.swap_remove(at);
            }
            (Some(number), channel, offset)
        } else {
            let offset = scene.dice.range(1, 20) as u64;
            let Some(channel) = self.any_channel(scene) else { return };
            (None, channel, offset)
        };
        let Some(link) = &mut self.link else { return };
        scene.judge.confirmations.said.insert((channel, offset, link.conn));
        let mut more = format!(",\"offset\":{offset}");
        if self.speaks == Speaks::Ringfeed
            && let Some(View::Live { epoch, .. }) = link.channels.get(&channel).map(|own| own.view)
            && scene.dice.chance(500)
        {
            more.push_str(&format!(",\"epoch\":\"{epoch:016x}\""));
        }
        self.command(Want::Confirm { number, offset }, Some(channel), &more, scene);
    }

    /// Who has confirmed a publication of its own, and who has not.
    pub(super) fn told_receipts(
        &mut self,
        said: &Said,
        place: (Option<usize>, Option<u64>),
        scene: &mut Scene,
    ) {
        let Some(link) = &mut self.link else { return };
        let (who, conn) = (link.who.clone(), link.conn);
        let (Some(channel), Some(epoch), Some(offset), Some(confirmed), Some(missing)) =
            (place.0, place.1, said.offset, said.confirmed(), said.missing())
        else {
            return scene.judge.broken(Rule::Frames, format_args!("{who} got half a receipt"));
        };
        let mut publications = scene.judge.publications.iter();
        let at = publications
            .position(|own| own.channel == channel && own.place == Some((epoch, offset)));
        let number = at.map_or(0, |at| at as u64 + 1);
        let problem = match scene.judge.confirmations.asked.get_mut(&number) {
            None => Some("it has not asked for it"),
            Some(asked) if asked.by != conn => Some("somebody else has asked for it"),
            Some(asked) if asked.told.is_some() => Some("it was told before"),
            Some(asked) => {
                let early = asked.sent_ms + asked.within_ms > scene.now_ms + LATE_MS;
                asked.told = Some((confirmed, missing.clone()));
                (early && !missing.is_empty()).then_some("they have more time")
            }
        };
        if let Some(why) = problem {
            let name = &scene.judge.names[channel];
            let what = format_args!("{who} is told who has confirmed {offset} of {name}: {why}");
            scene.judge.broken(Rule::Receipts, what);
        }
    }

    /// The reply to a confirmation.
    pub(super) fn told_in_time(
        conn: ConnId,
        number: Option<u64>,
        in_time: Option<bool>,
        scene: &mut Scene,
    ) -> Option<&'static str> {
        let now_ms = scene.now_ms;
        let asked = number.and_then(|number| scene.judge.confirmations.asked.get_mut(&number));
        match (asked, in_time) {
            (Some(asked), Some(true)) => asked.in_time.push(conn),
            (Some(asked), Some(false))
                if asked.receivers.contains(&conn) && now_ms < asked.sent_ms + asked.within_ms =>
            {
                asked.untimely.push(conn);
            }
            _ => {}
        }
        in_time.is_none().then_some("it does not say whether it was in time")
    }
}

impl Judge {
    /// Everything is quiet, and has been for longer than anybody has to confirm: what publishers were told is true.
    /// `hears` says of which connections everything was heard.
    pub(super) fn check_receipts(&self, hears: impl Fn(ConnId) -> bool) {
        for (number, asked) in &self.confirmations.asked {
            let Asked { by, accepted, told, receivers, in_time, untimely, .. } = asked;
            let Some((confirmed, missing)) = told else {
                if *accepted && hears(*by) {
                    let what = format_args!("c{by} was not told who has confirmed {number}");
                    self.broken(Rule::Receipts, what);
                }
                continue;
            };
            let mut all = BTreeSet::new();
            let unique = confirmed.iter().chain(missing).all(|name| all.insert(name.clone()));
            let has_confirmed = |name: &&String| {
                let publication = &self.publications[*number as usize - 1];
                let mut said = self.confirmations.said.iter();
                said.any(|&(channel, offset, conn)| {
                    publication.channel == channel
                        && publication.place.is_some_and(|(_, at)| at == offset)
                        && self.ledgers.may_be_named(conn, name)
                })
            };
            let own = all.iter().any(|name| self.ledgers.is_only_named(*by, name));
            let invented = confirmed.iter().find(|name| !has_confirmed(name));
            let named = |names: &[String], conn| {
                names.iter().any(|name| self.ledgers.may_be_named(conn, name))
            };
            // Who is of the publisher's user was not asked.
            let mut heard = in_time.iter().chain(untimely.iter().filter(|&&conn| {
                conn != *by && !self.ledgers.may_be_same(conn, *by) && self.ledgers.is_one(conn)
            }));
            let unheard = heard.find(|&&conn| !named(confirmed, conn));
            let all: Vec<String> = all.into_iter().collect();
            let mut receivers = receivers.iter().filter(|&conn| conn != by);
            let passed_over =
                receivers.find(|&&conn| !named(&all, conn) && !self.ledgers.may_be_same(conn, *by));
            if !unique || own || invented.is_some() || unheard.is_some() || passed_over.is_some() {
                let what = format_args!(
                    "of {number} c{by} was told {confirmed:?} and {missing:?}: unique {unique}, itself {own}, \
                     have not confirmed {invented:?}, told in time {unheard:?}, got it {passed_over:?}"
                );
                self.broken(Rule::Receipts, what);
            }
        }
    }
}

impl World {
    /// See [`Judge::check_receipts`].
    pub(super) fn check_confirmations(&self) {
        self.judge.check_receipts(|conn| {
            let client = &self.clients[self.owners[conn]];
            self.is_heard(conn, client)
        });
    }
}
