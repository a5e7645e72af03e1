//! What a client's commands may be refused with.

use super::{Intent, Link, Pending, Want};
use crate::client::Scene;
use crate::policy::Op;
use crate::setup::{Setup, Shows};
impl Link {
    /// Whether it has never tried to enter a room.
    pub(super) fn is_no_member(&self, channel: usize, setup: &Setup) -> bool {
        let own = self.channels.get(&channel);
        setup.group(channel).room.is_some() && own.is_none_or(|own| own.tries.is_empty())
    }

    /// A command was refused; says what is wrong with that.
    pub(super) fn refused(
        &mut self,
        pending: &Pending,
        code: &str,
        scene: &mut Scene,
    ) -> Option<&'static str> {
        let judge = &mut *scene.judge;
        self.doubt_after(pending, code);
        if let Want::Send(number) = pending.want {
            judge.orders[number].refused = true;
        }
        if let Some(silenced) = self.silenced(pending, code, judge) {
            return (!silenced).then_some("it may speak there");
        }
        if let (Want::Auth { shown: Some(shown) }, "unauthenticated") = (pending.want, code)
            && judge.ledgers.may_refuse(self.conn, shown)
        {
            judge.ledgers.refuse(self.conn, shown);
            return None;
        }
        (!self.error_fits(pending, code, scene)).then_some("no such error is due")
    }

    /// Whether a command may be refused with this code.
    fn error_fits(&self, pending: &Pending, code: &str, scene: &Scene) -> bool {
        let Scene { setup, judge, .. } = scene;
        let subscribing = matches!(pending.want, Want::Subscribe { .. });
        let publishing = matches!(pending.want, Want::Publish(_));
        let seeing = matches!(pending.want, Want::Presence { .. });
        let asking = seeing || matches!(pending.want, Want::History { .. });
        let of = |op| pending.channel.map(|channel| self.chance(op, channel, setup));
        let may_not = |op| of(op).is_some_and(|chance| !chance.always);
        let is_asked =
            matches!(pending.want, Want::Publish(own) if judge.confirmations.is_asked(own));
        let confirming = matches!(pending.want, Want::Confirm { .. });
        let group = pending.channel.map(|channel| setup.group(channel));
        match code {
            "limit_reached" | "busy" if is_asked => true,
            "forbidden" if is_asked && group.is_some_and(|group| !group.confirm) => true,
            "forbidden" if confirming => {
                group.is_some_and(|group| !group.confirm && group.presence != Shows::Full)
            }
            // What it was subscribed to by then is not followed.
            "not_subscribed" if confirming => true,
            "draining" if confirming => judge.draining,
            "rate_limited" => {
                let too_often = |channel| judge.may_be_too_often(channel);
                setup.messages_per_second_max > 0
                    || publishing && pending.channel.is_some_and(too_often)
            }
            "message_too_long" | "invalid_message" => match pending.want {
                Want::Publish(number) => judge.unfit(number) == Some(code),
                _ => false,
            },
            "draining" => {
                let calling = matches!(pending.want, Want::Call(_));
                judge.draining && (subscribing || publishing || asking || calling)
            }
            "already_subscribed" => subscribing && pending.before != Intent::No,
            "not_subscribed" => {
                let refused = judge.draining || pending.before != Intent::Yes;
                pending.want == Want::Unsubscribe && refused
            }
            "limit_reached" if matches!(pending.want, Want::Call(_)) => {
                let calls = self.pending.iter().filter(|p| matches!(p.want, Want::Call(_)));
                calls.count() >= setup.rpc_calls_max as usize
            }
            "timed_out" | "unavailable" => matches!(pending.want, Want::Call(_)),
            "limit_reached" => {
                let others = self.channels.keys().filter(|other| Some(**other) != pending.channel);
                let full = others.count() >= setup.subscriptions_max as usize;
                let table_full = setup.channels_max < 1000;
                let rooms = pending.channel.is_some_and(|at| self.may_be_in_too_many(at, scene));
                (subscribing && (full || table_full || rooms)) || (publishing && table_full)
            }
            "forbidden" if subscribing => {
                let off = |channel| self.is_ordered_off(channel, judge);
                let over = |channel| judge.rooms.may_have_ended(channel);
                may_not(Op::Subscribe)
                    || pending.channel.is_some_and(|channel| off(channel) || over(channel))
            }
            "forbidden" if seeing => {
                let shows = |channel| setup.group(channel).presence != Shows::Off;
                may_not(Op::Presence) || !pending.channel.is_some_and(shows)
            }
            "members_only" if asking => group.is_some_and(|group| group.room.is_some()),
            "no_such_room" if asking => group.is_some_and(|group| group.only_made),
            "forbidden" if asking => may_not(Op::History),
            "channel_full" | "wrong_password" | "members_only" | "no_such_room" if subscribing => {
                pending
                    .channel
                    .is_some_and(|channel| self.may_be_kept_out(pending, channel, code, scene))
            }
            "forbidden" if publishing => may_not(Op::Publish),
            "forbidden" => match pending.want {
                Want::Send(_) => self.founds().any(|found| !found.person.sends),
                want => matches!(want, Want::Other | Want::Call(_)),
            },
            "unauthenticated" => match pending.want {
                Want::Auth { .. } | Want::Ping => false,
                _ => {
                    let since = self.vouched.unwrap_or(u64::MAX);
                    self.found.must_authenticate && pending.turn <= since
                }
            },
            "busy" if subscribing => may_not(Op::Subscribe),
            "busy" => match pending.want {
                Want::Send(number) => setup.may_refuse_sends(&judge.orders[number].order),
                want => setup.access && (publishing || want == Want::Other),
            },
            "bad_channel" if asking => true,
            "unknown_command" if pending.want == Want::Other => !setup.access,
            code => matches!(pending.want, Want::Bad(due) if due == code),
        }
    }

    /// A command was refused: what was expected of later ones on its channel may not hold.
    fn doubt_after(&mut self, pending: &Pending, code: &str) {
        let expected = match pending.want {
            Want::Subscribe { .. } => pending.before == Intent::Yes && code == "already_subscribed",
            Want::Unsubscribe => pending.before == Intent::No && code == "not_subscribed",
            _ => true,
        };
        let Some(channel) = pending.channel.filter(|_| !expected) else { return };
        if let Some(own) = self.channels.get_mut(&channel) {
            own.intent = Intent::Maybe;
        }
        for pending in self.pending.iter_mut().filter(|p| p.channel == Some(channel)) {
            pending.before = Intent::Maybe;
        }
    }
}
