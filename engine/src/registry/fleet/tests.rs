use super::*;

const LIMITS: Limits = Limits {
    node_timeout: Duration::from_secs(15),
    forget_after: Duration::from_secs(3600),
    nodes_max: 3,
    channels_max: 2,
};

fn id(text: &str) -> NodeId {
    text.parse().unwrap()
}

fn node(name: &str, epoch: &str) -> Announcement {
    Announcement {
        id: id(name),
        url: format!("http://{name}:9800").parse().unwrap(),
        peer: None,
        weight: Default::default(),
        state: NodeState::Active,
        epoch: id(epoch),
    }
}

fn start() -> Moment {
    Moment { now: Instant::now(), unix_ms: 1_000_000_000_000 }
}

fn after(at: Moment, seconds: u64) -> Moment {
    let now = at.now + Duration::from_secs(seconds);
    Moment { now, unix_ms: at.unix_ms + seconds * 1000 }
}

fn announce(fleet: &mut Fleet, name: &str, epoch: &str, plain: bool, at: Moment) -> bool {
    let stored = fleet.announced(node(name, epoch), plain, at).unwrap();
    fleet.announce(stored, at)
}

fn live(fleet: &mut Fleet, at: Moment) -> Vec<String> {
    fleet.nodes(false, false, at).into_iter().map(|node| node.id.to_string()).collect()
}

#[test]
fn who_is_silent_is_not_live_and_comes_back_with_a_word() {
    let at = start();
    let mut fleet = Fleet::new(LIMITS, Contents::default(), at);
    announce(&mut fleet, "a", "1", false, at);
    announce(&mut fleet, "old", "1", true, at);
    let before = fleet.nodes_version(at);
    assert_eq!(fleet.nodes_version(after(at, 14)), before);
    let settled = fleet.nodes_version(after(at, 15));
    assert!(settled > before, "that it has settled is told, too");
    let gone = fleet.nodes_version(after(at, 16));
    assert!(gone > settled);
    assert_eq!(live(&mut fleet, after(at, 16)), ["old"], "its like are silent for minutes");
    assert_eq!(fleet.nodes(true, false, after(at, 16)).len(), 2);
    assert!(fleet.hear(&id("a"), Some(&id("1")), None, after(at, 17)).unwrap().is_none());
    assert!(fleet.nodes_version(after(at, 17)) > gone);
    assert_eq!(live(&mut fleet, after(at, 17)), ["a", "old"]);
}

#[test]
fn another_process_replaces_one_and_the_old_one_is_told() {
    let at = start();
    let mut fleet = Fleet::new(LIMITS, Contents::default(), at);
    assert!(!announce(&mut fleet, "a", "1", false, at));
    let version = fleet.nodes_version(at);
    assert!(!announce(&mut fleet, "a", "1", false, at), "the same again");
    assert_eq!(fleet.nodes_version(at), version);
    assert!(announce(&mut fleet, "a", "2", false, at));
    assert!(fleet.nodes_version(at) > version);
    assert_eq!(fleet.hear(&id("a"), Some(&id("1")), None, at).unwrap_err(), NotHeard::Replaced);
    assert_eq!(fleet.hear(&id("b"), None, None, at).unwrap_err(), NotHeard::Unknown);
    assert!(!fleet.has(&id("a"), Some(&id("1"))) && fleet.has(&id("a"), None));
}

#[test]
fn after_a_restart_nodes_are_as_live_as_they_were() {
    let at = start();
    let stored = |name: &str, last_seen_ms| StoredNode {
        node: node(name, "1"),
        plain: false,
        created_ms: 1,
        last_seen_ms,
    };
    let saved_ms = at.unix_ms - 3_600_000;
    let nodes = vec![stored("a", saved_ms - 1000), stored("b", saved_ms - 60_000)];
    let contents = Contents { nodes, saved_ms, nodes_version: u64::MAX / 2, ..Default::default() };
    let mut fleet = Fleet::new(LIMITS, contents, at);
    assert_eq!(
        live(&mut fleet, at),
        ["a"],
        "an hour in which nobody could be heard does not count"
    );
    assert!(!fleet.is_settled(at) && fleet.is_settled(after(at, 15)));
    assert!(fleet.nodes_version(at) > u64::MAX / 2);
    assert_eq!(live(&mut fleet, after(at, 15)), Vec::<String>::new());
}

#[test]
fn what_only_the_file_says_is_over_for_nobody() {
    let at = start();
    let shares = |name: &str, epoch: u64| {
        let instance = Instance(epoch);
        let peer = Some("127.0.0.1:1".parse().unwrap());
        Announcement { peer, ..node(name, &instance.to_string()) }
    };
    let stored = |name: &str| StoredNode {
        node: shares(name, 1),
        plain: false,
        created_ms: 1,
        last_seen_ms: at.unix_ms,
    };
    // An older copy, of before both began again and came to a later view.
    let contents = Contents {
        nodes: vec![stored("a"), stored("b")],
        saved_ms: at.unix_ms,
        ..Default::default()
    };
    let mut fleet = Fleet::new(LIMITS, contents, at);
    let epoch = id(&Instance(2).to_string());
    assert_eq!(fleet.hear(&id("a"), Some(&epoch), None, at).unwrap_err(), NotHeard::Unknown);
    let own = Standpoint { instance: Instance(2), view: 9, ..Standpoint::default() };
    assert_eq!(fleet.stands(&id("a"), &own, at).unwrap_err(), NotHeard::Unknown);
    let member = |name: &str, epoch| ViewMember {
        id: id(name),
        instance: Instance(epoch),
        peer: "127.0.0.1:1".parse().unwrap(),
        leaving: false,
    };
    let members = vec![member("a", 2), member("b", 4), member("c", 3)];
    let c = fleet.announced(shares("c", 3), false, at).unwrap();
    fleet.announce(c, at);
    let own = Standpoint { instance: Instance(3), view: 9, ..Standpoint::default() };
    fleet.stands(&id("c"), &own, at).unwrap();
    fleet.take_over_view(View { number: 9, previous: 8, members, ..View::default() }, at);
    assert_eq!(fleet.next_view(after(at, 16)), None, "a and b may go on without c");
    // An operator says that both are gone.
    fleet.leave(&id("a"), false, at);
    assert!(!fleet.let_go_unheard(&id("b")), "it is known here");
    fleet.members.remove(&id("b"));
    assert!(fleet.let_go_unheard(&id("b")));
    fleet.stands(&id("c"), &own, after(at, 16)).unwrap();
    assert_eq!(fleet.next_view(after(at, 16)).unwrap().members, [member("c", 3)]);
}

#[test]
fn what_could_not_be_stored_is_taken_again() {
    let at = start();
    let mut fleet = Fleet::new(LIMITS, Contents::default(), at);
    announce(&mut fleet, "a", "1", false, at);
    fleet.hear(&id("a"), None, None, after(at, 1)).unwrap();
    assert!(fleet.report(&id("a"), "{}".into(), after(at, 1)));
    let later = fleet.take_later(after(at, 1));
    assert_eq!((later.seen.len(), later.metrics.len()), (1, 1));
    fleet.settle(&later, false);
    let later = fleet.take_later(after(at, 2));
    assert_eq!((later.seen.len(), later.metrics.len()), (1, 1));
    fleet.settle(&later, true);
    let later = fleet.take_later(after(at, 3));
    assert!(later.seen.is_empty() && later.metrics.is_empty());
    // Forgotten after an hour, and the file is told until it knows.
    let later = fleet.take_later(after(at, 3602));
    assert_eq!((&*later.gone, &*later.gone_metrics), (&[id("a")][..], &[id("a")][..]));
    fleet.settle(&later, false);
    let later = fleet.take_later(after(at, 3603));
    assert_eq!(later.gone, [id("a")]);
    fleet.settle(&later, true);
    assert!(fleet.take_later(after(at, 3604)).gone.is_empty());
}

#[test]
fn there_are_no_more_than_are_allowed() {
    let at = start();
    let mut fleet = Fleet::new(LIMITS, Contents::default(), at);
    for name in ["a", "b", "c"] {
        announce(&mut fleet, name, "1", false, at);
        assert!(fleet.report(&id(name), "{}".into(), at));
    }
    assert_eq!(fleet.announced(node("d", "1"), false, at).unwrap_err(), Full);
    assert!(!fleet.report(&id("d"), "{}".into(), at));
    announce(&mut fleet, "a", "2", false, at);
    fleet.leave(&id("a"), false, at);
    announce(&mut fleet, "d", "1", false, at);
}

#[test]
fn channels_are_for_the_nodes_that_their_patterns_fit() {
    let at = start();
    let mut fleet = Fleet::new(LIMITS, Contents::default(), at);
    for (name, nodes) in [("all", &["*"][..]), ("some", &["node-1", "eu-*"])] {
        let allowed_nodes = nodes.iter().map(|&node| node.to_owned()).collect();
        let version = fleet.next_channels_version(at);
        assert!(version > fleet.channels_version() && fleet.has_room_for_channel(name));
        let entry = ChannelEntry { name: name.into(), allowed_nodes, rule: None };
        fleet.set_channel(name, Some(entry), version);
    }
    let of = |node| -> Vec<String> {
        fleet.channels(node).into_iter().map(|entry| entry.name).collect()
    };
    assert_eq!(of(None), ["all", "some"]);
    assert_eq!(of(Some("node-1")), ["all", "some"]);
    assert_eq!(of(Some("eu-9")), ["all", "some"]);
    assert_eq!(of(Some("node-10")), ["all"], "a part of an id is not an id");
    assert!(!fleet.has_room_for_channel("third"));
}
