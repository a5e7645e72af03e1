//! Rules of rooms against a table, and against a model that knows none of their code.

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn open() -> Room {
    Room {
        members_max: 0,
        public: true,
        moderated: false,
        speak: Speakers::Anyone,
        password: None,
        moderators: BTreeSet::new(),
        members: BTreeSet::new(),
    }
}

fn enter(
    room: &Room,
    guest: &Guest,
    invited: bool,
    password: Option<KeyHash>,
    members: u64,
) -> Result<(), Barred> {
    room.may_enter(&Entry { guest: guest.clone(), invited, password }, members)
}

fn guest(name: &str, moderates: Option<bool>) -> Guest {
    Guest { user: Some(user(name)), moderates }
}

#[test]
fn a_moderator_needs_neither_password_nor_invitation_but_a_place() {
    let password = Some(KeyHash::of(b"open sesame"));
    let moderators = [user("mod")].into();
    let room = Room { members_max: 2, public: false, password, moderators, ..open() };
    let (named, allowed) = (guest("mod", None), Guest { user: None, moderates: Some(true) });
    for moderator in [&named, &allowed] {
        assert_eq!(enter(&room, moderator, false, None, 1), Ok(()));
        assert_eq!(enter(&room, moderator, false, password, 2), Err(Barred::Full));
    }
    let denied = guest("mod", Some(false));
    assert_eq!(enter(&room, &denied, false, password, 0), Err(Barred::MembersOnly));
}

#[test]
fn who_may_not_enter_learns_nothing_of_password_and_places() {
    let password = Some(KeyHash::of(b"open sesame"));
    let room =
        Room { members_max: 1, public: false, password, members: [user("ann")].into(), ..open() };
    let (ann, bob) = (guest("ann", None), guest("bob", None));
    let wrong = Some(KeyHash::of(b"sesame"));
    assert_eq!(enter(&room, &bob, false, password, 1), Err(Barred::MembersOnly));
    assert_eq!(enter(&room, &Guest::default(), false, password, 0), Err(Barred::MembersOnly));
    for given in [None, wrong] {
        assert_eq!(enter(&room, &ann, false, given, 1), Err(Barred::WrongPassword));
        assert_eq!(enter(&room, &bob, true, given, 1), Err(Barred::WrongPassword));
    }
    assert_eq!(enter(&room, &ann, false, password, 1), Err(Barred::Full));
    assert_eq!(enter(&room, &bob, true, password, 0), Ok(()));
}

#[test]
fn who_speaks_is_a_matter_of_moderation_first() {
    let (ann, moderator) = (guest("ann", None), guest("bob", Some(true)));
    let members = Room { speak: Speakers::Members, ..open() };
    assert_eq!(members.may_speak(&ann, true), Ok(()));
    assert_eq!(members.may_speak(&ann, false), Err(Barred::MembersOnly));
    assert_eq!(open().may_speak(&Guest::default(), false), Ok(()));
    let moderated = Room { moderated: true, ..members.clone() };
    assert_eq!(moderated.may_speak(&ann, true), Err(Barred::Moderated));
    for room in [&members, &moderated] {
        assert_eq!(room.may_speak(&moderator, false), Ok(()));
    }
}

/// The model: everything said again as a reader of the documentation would, in its own words: what stands against
/// somebody, all of it, of which the first counts.
mod model {
    use super::*;

    fn moderates(room: &Room, guest: &Guest) -> bool {
        let named = room.moderators.iter().filter(|own| Some(*own) == guest.user.as_ref()).count();
        match guest.moderates {
            Some(said) => said,
            None => named == 1,
        }
    }

    pub(super) fn enter(
        room: &Room,
        guest: &Guest,
        invited: bool,
        (own, given): (Option<&str>, Option<&str>),
        members: u64,
    ) -> Option<Barred> {
        let mut against = Vec::new();
        let users: Vec<&UserId> = room.members.iter().collect();
        let named = guest.user.as_ref().is_some_and(|user| users.contains(&user));
        if !(room.public || invited || named) {
            against.push(Barred::MembersOnly);
        }
        if own.is_some() && own != given {
            against.push(Barred::WrongPassword);
        }
        if moderates(room, guest) {
            against.clear();
        }
        if room.members_max != 0 && members + 1 > room.members_max.into() {
            against.push(Barred::Full);
        }
        against.into_iter().min_by_key(|barred| match barred {
            Barred::MembersOnly => 0,
            Barred::WrongPassword => 1,
            Barred::Moderated | Barred::Full => 2,
        })
    }

    pub(super) fn speak(room: &Room, guest: &Guest, is_member: bool) -> Option<Barred> {
        let members_alone = format!("{:?}", room.speak) == "Members";
        match (moderates(room, guest), room.moderated, members_alone, is_member) {
            (false, true, ..) => Some(Barred::Moderated),
            (false, false, true, false) => Some(Barred::MembersOnly),
            _ => None,
        }
    }
}

/// Panics at the first case in which the two do not agree.
fn compare(cases: u32, seed: u64) {
    const USERS: [&str; 3] = ["a", "b", "c"];
    const PASSWORDS: [Option<&str>; 4] = [None, Some(""), Some("x"), Some("x\0")];
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut seen = std::collections::BTreeMap::<Option<Barred>, u32>::new();
    for case in 0..cases {
        let mut some = |odds| {
            USERS.into_iter().filter(|_| rng.random_bool(odds)).map(user).collect::<BTreeSet<_>>()
        };
        let (moderators, invitations) = (some(0.2), some(0.5));
        let own = PASSWORDS[rng.random_range(0..4)];
        let given = PASSWORDS[rng.random_range(0..4)];
        let hash = |text: Option<&str>| text.map(|text| KeyHash::of(text.as_bytes()));
        let room = Room {
            members_max: rng.random_range(0..4),
            public: rng.random(),
            moderated: rng.random(),
            speak: if rng.random() { Speakers::Anyone } else { Speakers::Members },
            password: hash(own),
            moderators,
            members: invitations,
        };
        let guest = Guest {
            user: USERS.get(rng.random_range(0..4)).map(|name| user(name)),
            moderates: [None, None, Some(true), Some(false)][rng.random_range(0..4)],
        };
        let (invited, members) = (rng.random(), rng.random_range(0..4));
        let entered = enter(&room, &guest, invited, hash(given), members).err();
        let expected = model::enter(&room, &guest, invited, (own, given), members);
        let told = format!("case {case} of seed {seed}: {guest:?} {invited} {members} in {room:?}");
        assert_eq!(entered, expected, "{own:?} {given:?}, {told}");
        let spoken = room.may_speak(&guest, invited).err();
        assert_eq!(spoken, model::speak(&room, &guest, invited), "{told}");
        *seen.entry(entered).or_default() += 1;
        *seen.entry(spoken).or_default() += 1;
    }
    // Cases that all end the same way would show nothing.
    for way in [
        None,
        Some(Barred::MembersOnly),
        Some(Barred::WrongPassword),
        Some(Barred::Moderated),
        Some(Barred::Full),
    ] {
        let times = seen.get(&way).copied().unwrap_or_default();
        assert!(times > cases / 20, "{way:?}: {times} of {cases}");
    }
}

#[test]
fn rooms_agree_with_a_naive_model() {
    compare(20_000, rand::random());
}

/// `cargo test -p ringfeed-engine --lib --release -- --ignored a_million`
#[test]
#[ignore = "takes longer; for changes of rooms"]
fn rooms_agree_with_a_naive_model_a_million_times() {
    compare(1_000_000, rand::random());
}
