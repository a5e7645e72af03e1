//! What the subscribers of a channel are told of who comes and goes: changes are put together for a while, and where
//! they are many it is only told how many are there.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::access::Identity;
use crate::message::{Present, Someone};

/// As many as one notice names, …
const NAMES_MAX: usize = 100;
/// … with so many bytes of what is shown of them.
const INFO_BYTES_MAX: usize = 16 * 1024;

/// What is to be told.
#[derive(Debug, PartialEq)]
pub(super) enum Notice {
    /// Who has left, and who has come or is shown otherwise now.
    Names { left: Vec<Present>, came: Vec<Present> },
    /// Too many have to be named.
    Count,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Notices {
    interval_ms: u64,
    /// When something may be told next.
    next_ms: u64,
    /// When it is looked at whether there is, while it is to be.
    pub(super) due_ms: Option<u64>,
    /// Who has changed since the last notice, and what was told of them by then.
    changed: BTreeMap<Someone, Option<Arc<Identity>>>,
    /// More have than are named.
    many: bool,
    /// Somebody was told since who is there: of all who have changed it is to be said what they are now, since whoever
    /// asked may know something that is neither the state before nor the one behind it.
    asked: bool,
}

impl Notices {
    pub(super) fn new(interval_ms: u64) -> Notices {
        let (changed, many, asked) = (BTreeMap::new(), false, false);
        Notices { interval_ms, next_ms: 0, due_ms: None, changed, many, asked }
    }

    /// Whether changes are told as they come.
    pub(super) fn is_immediate(&self) -> bool {
        self.interval_ms == 0
    }

    /// Somebody is about to change; `now` is what is shown of them until then, where they are there.
    pub(super) fn note(&mut self, who: &Someone, now: Option<&Arc<Identity>>) {
        if self.many || self.changed.contains_key(who) {
            return;
        }
        if self.changed.len() == NAMES_MAX {
            self.changed.clear();
            self.many = true;
        } else {
            self.changed.insert(who.clone(), now.cloned());
        }
    }

    /// When it is to be told, if there is anything and nobody sees to it yet.
    pub(super) fn becomes_due(&mut self, now_ms: u64) -> Option<u64> {
        if self.due_ms.is_some() || self.changed.is_empty() && !self.many {
            return None;
        }
        let due_ms = now_ms.max(self.next_ms);
        self.due_ms = Some(due_ms);
        Some(due_ms)
    }

    /// Somebody is told who is there.
    pub(super) fn ask(&mut self) {
        self.asked = !self.changed.is_empty();
    }

    /// What is to be told now. `there` says what is shown of somebody who is there.
    pub(super) fn take<'a>(
        &mut self,
        now_ms: u64,
        there: impl Fn(&Someone) -> Option<&'a Arc<Identity>>,
    ) -> Option<Notice> {
        self.due_ms = None;
        let (asked, many) = (std::mem::take(&mut self.asked), std::mem::take(&mut self.many));
        let (mut left, mut came, mut info_bytes) = (Vec::new(), Vec::new(), 0);
        for (who, told) in std::mem::take(&mut self.changed) {
            match (there(&who), told) {
                (Some(now), told)
                    if asked || told.as_ref().is_none_or(|told| told.info != now.info) =>
                {
                    info_bytes += now.info.as_ref().map_or(0, |info| info.len());
                    came.push(Present { who, identity: now.clone() });
                }
                // Of who has left only the name is told.
                (None, Some(_)) => left.push(Present { who, identity: Arc::default() }),
                (None, None) if asked => left.push(Present { who, identity: Arc::default() }),
                _ => {}
            }
        }
        let notice = match many || info_bytes > INFO_BYTES_MAX {
            true => Notice::Count,
            false if left.is_empty() && came.is_empty() => return None,
            false => Notice::Names { left, came },
        };
        self.next_ms = now_ms.saturating_add(self.interval_ms);
        Some(notice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfeed_protocol::UserId;

    fn user(name: &str) -> Someone {
        Someone::User(UserId::new(name).unwrap())
    }

    fn shown(info: &str) -> Arc<Identity> {
        Arc::new(Identity { info: Some(info.into()), ..Identity::default() })
    }

    fn names(notice: Option<Notice>) -> (Vec<String>, Vec<String>) {
        let Some(Notice::Names { left, came }) = notice else { panic!("{notice:?}") };
        let names = |all: Vec<Present>| all.iter().map(|own| own.who.to_string()).collect();
        (names(left), names(came))
    }

    #[test]
    fn only_what_has_come_of_it_is_told() {
        let mut notices = Notices::new(500);
        assert_eq!(notices.becomes_due(0), None);
        let (one, other) = (shown("1"), shown("2"));
        // Ann comes; Bob comes and goes; Cleo goes and comes back; Dan goes; Eve is shown otherwise.
        notices.note(&user("ann"), None);
        notices.note(&user("bob"), None);
        notices.note(&user("bob"), Some(&one));
        notices.note(&user("cleo"), Some(&one));
        notices.note(&user("cleo"), None);
        notices.note(&user("dan"), Some(&one));
        notices.note(&user("eve"), Some(&one));
        assert_eq!((notices.becomes_due(7), notices.becomes_due(8)), (Some(7), None));
        let there = |who: &Someone| match who.to_string().as_str() {
            "user:ann" | "user:cleo" => Some(&one),
            "user:eve" => Some(&other),
            _ => None,
        };
        let told = names(notices.take(7, there));
        assert_eq!(told, (vec!["user:dan".into()], vec!["user:ann".into(), "user:eve".into()]));
        assert!(notices.take(8, |_| None).is_none());
        // Not sooner than an interval later.
        notices.note(&user("ann"), Some(&one));
        assert_eq!(notices.becomes_due(9), Some(507));
    }

    #[test]
    fn who_was_told_something_in_between_is_told_what_has_come_of_it() {
        let mut notices = Notices::new(0);
        let one = shown("1");
        notices.note(&user("ann"), None);
        notices.note(&user("bob"), Some(&one));
        // Ann is there at this moment, and Bob is not.
        notices.ask();
        let told = names(notices.take(0, |who| (*who == user("bob")).then_some(&one)));
        assert_eq!(told, (vec!["user:ann".into()], vec!["user:bob".into()]));
        notices.ask();
        notices.note(&user("ann"), None);
        assert!(notices.take(0, |_| None).is_none(), "nothing had changed when it was asked");
    }

    #[test]
    fn where_many_change_it_is_told_how_many_are_there() {
        let mut notices = Notices::new(0);
        for i in 0..=NAMES_MAX {
            notices.note(&user(&format!("u{i}")), None);
        }
        assert_eq!(notices.becomes_due(1), Some(1));
        assert_eq!(notices.take(1, |_| None), Some(Notice::Count));
        assert!(notices.take(1, |_| None).is_none());
        let long = shown(&"x".repeat(INFO_BYTES_MAX + 1));
        notices.note(&user("ann"), None);
        assert_eq!(notices.take(1, |_| Some(&long)), Some(Notice::Count));
    }
}
