use super::nodes::UNSAID_MAX;
use super::*;
use crate::message::Roll;

/// One that is connected, and a channel.
fn connected() -> (Bridge, ChannelName) {
    let (revoked, rooms) = (Arc::new(RevokedTable::new(1)), Arc::new(RoomTable::new(1)));
    let (by, patience_ms) = (Numbering::Redis, 1000);
    let process = Process { instance: 1, by, patience_ms, revoked, rooms };
    let mut bridge = Bridge::new(process, 0);
    bridge.connected();
    (bridge, ChannelName::new("a").unwrap())
}

#[test]
fn that_a_channel_is_not_here_any_more_is_said_until_it_is_heard() {
    let (mut bridge, channel) = connected();
    let roll = |has_it: bool| {
        let roll = Roll { whole: true, first: true, asks: has_it, has_it, ..Roll::default() };
        ToUpstream::Roll { channel: channel.clone(), numbered: true, to: None, roll }
    };
    let said = |bridge: &mut Bridge| -> Vec<u64> {
        let all = bridge.take_commands();
        let told = all.filter(|(_, own)| matches!(own, Command::Message(To::Followers(_), _)));
        told.map(|(number, _)| number).collect()
    };
    bridge.wanted(roll(false));
    let first = said(&mut bridge);
    bridge.tick(1);
    assert_eq!((first.len(), said(&mut bridge).len()), (1, 0), "it is under way");
    bridge.answered(first[0], Err(Failed::Unknown));
    bridge.tick(2);
    assert_eq!(said(&mut bridge).len(), 1);
    bridge.lost(3);
    bridge.tick(4);
    assert_eq!(said(&mut bridge).len(), 0, "nobody can be told");
    bridge.connected();
    let again = said(&mut bridge);
    bridge.answered(again[0], Ok(Reply::HeardBy(1)));
    bridge.tick(5);
    assert_eq!((again.len(), said(&mut bridge).len()), (1, 0), "it was heard");
    // Where it is here again, that is what others are told.
    bridge.wanted(roll(false));
    let left = said(&mut bridge);
    bridge.wanted(roll(true));
    bridge.answered(left[0], Err(Failed::Unknown));
    assert_eq!(said(&mut bridge).len(), 1);
    bridge.tick(6);
    assert_eq!(said(&mut bridge).len(), 0);
    assert!(bridge.unsaid.is_empty());
}

#[test]
fn that_very_many_channels_are_not_here_is_said_once() {
    let (mut bridge, _) = connected();
    bridge.lost(1);
    for number in 0..UNSAID_MAX {
        let channel = ChannelName::new(&number.to_string()).unwrap();
        let roll = Roll::not_there();
        bridge.wanted(ToUpstream::Roll { channel, numbered: true, to: None, roll });
    }
    bridge.connected();
    let said = |bridge: &mut Bridge| {
        let all = bridge.take_commands();
        all.filter(|(_, own)| matches!(own, Command::Message(To::Followers(_), _))).count()
    };
    assert_eq!(said(&mut bridge), UNSAID_MAX);
    bridge.tick(2);
    assert_eq!(said(&mut bridge), 0);
}

#[test]
fn who_follows_no_more_before_it_is_confirmed_leaves_nothing_behind() {
    let (mut bridge, channel) = connected();
    let follow = || ToUpstream::Follow { channel: channel.clone(), since: None, ask: 1 };
    bridge.wanted(follow());
    bridge.wanted(ToUpstream::Unfollow { channel: channel.clone() });
    bridge.subscribed(&channel);
    assert!(bridge.ways.is_empty(), "{:?}", bridge.ways);
    // Followed again in between, it is asked about once both are confirmed.
    for what in [follow(), ToUpstream::Unfollow { channel: channel.clone() }, follow()] {
        bridge.wanted(what);
    }
    let reads = |bridge: &mut Bridge| {
        bridge.take_commands().filter(|(_, own)| matches!(own, Command::Read(_))).count()
    };
    bridge.subscribed(&channel);
    assert_eq!(reads(&mut bridge), 0);
    bridge.subscribed(&channel);
    assert_eq!(reads(&mut bridge), 1);
}
