//! What single nodes say to each other; what clusters do is in `marengo-sim`.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use foca::{Header, Member as FocaMember, Message, State};

use super::{
    codec::{LEFT, Payload},
    envelope::{self, Envelope, Greeting, Kind, PROTOCOL, WHO_IS_LEN, WhoIs},
    testing::{config, events, exchange, identity, node, start, transmits},
    *,
};
use crate::identity::{ClusterName, Generation, NodeName};

fn cluster() -> ClusterName {
    ClusterName::new("test").unwrap()
}

/// Nodes 1 and 2, who know each other.
fn pair(now: Instant) -> (Membership, Membership) {
    let (mut one, mut two) = (node(now, 1), node(now, 2));
    one.set_seeds(now, vec![identity(2).addr]);
    exchange(now, &mut [&mut one, &mut two]);
    assert_eq!((one.peers().len(), two.peers().len()), (1, 1));
    events(&mut one);
    events(&mut two);
    (one, two)
}

fn gossip(src: &Identity, dst: &Identity, message: Message<Identity>) -> Payload {
    let header = Header { src: src.clone(), src_incarnation: 0, dst: dst.clone(), message };
    Payload { header, updates: Vec::new() }
}

fn datagram(payload: &Payload) -> bytes::Bytes {
    envelope::emit(Kind::Gossip, &cluster(), &payload.emit().unwrap())
}

fn later(generation: Generation, by: u64) -> Generation {
    Generation(generation.0 + by)
}

fn refused(node: &Membership, reason: &str) -> u64 {
    node.counters().rejected().find(|(name, _)| *name == reason).unwrap().1
}

#[test]
fn a_question_is_as_long_as_any_answer_and_answered_with_less() {
    let now = start();
    let (mut one, mut two) = (node(now, 1), node(now, 2));
    one.set_seeds(now, vec![identity(2).addr]);

    let question = transmits(&mut one).remove(0);
    two.handle_datagram(now, identity(1).addr, &question.data).unwrap();
    let answer = transmits(&mut two).remove(0);

    assert_eq!(question.data.len(), WHO_IS_LEN);
    assert!(answer.data.len() < question.data.len());
    assert_eq!(answer.to, identity(1).addr);
}

#[test]
fn a_short_question_gets_no_answer() {
    let now = start();
    let mut two = node(now, 2);
    let greeting = Greeting { nonce: 1, version: Version::lossy("x") };
    let full = WhoIs { greeting, asker: identity(1) }.emit(&cluster()).unwrap();
    let body = Envelope::parse(&full).unwrap().body;
    let short = envelope::emit(Kind::WhoIs, &cluster(), &body[..53]);

    let result = two.handle_datagram(now, identity(1).addr, &short);

    assert_eq!(result, Err(DatagramError::ShortRequest));
    assert_eq!(transmits(&mut two), []);
}

#[test]
fn an_answer_counts_whatever_address_it_comes_from_but_only_once() {
    let now = start();
    let (mut one, mut two) = (node(now, 1), node(now, 2));
    one.set_seeds(now, vec!["192.0.2.7:1".parse().unwrap()]);
    let question = transmits(&mut one).remove(0);
    two.handle_datagram(now, identity(1).addr, &question.data).unwrap();
    let answer = transmits(&mut two).remove(0);
    let elsewhere: SocketAddr = "198.51.100.1:5".parse().unwrap();

    assert_eq!(one.handle_datagram(now, elsewhere, &answer.data), Ok(()));

    let wanted = MembershipEvent::SyncWanted { with: identity(2).listen };
    assert_eq!(events(&mut one), [wanted]);
    assert_eq!(transmits(&mut one).remove(0).to, identity(2).addr, "announces itself");
    let again = one.handle_datagram(now, elsewhere, &answer.data);
    assert_eq!(again, Err(DatagramError::UnknownNonce));
}

#[test]
fn a_newer_protocol_is_named_to_the_operator() {
    let now = start();
    let mut one = node(now, 1);
    let seed = identity(2).addr;
    one.set_seeds(now, vec![seed]);
    let question = transmits(&mut one).remove(0);
    let nonce = WhoIs::parse_greeting(Envelope::parse(&question.data).unwrap().body);
    // What follows nonce and version may be anything in a later protocol.
    let mut body = nonce.unwrap().nonce.to_be_bytes().to_vec();
    body.extend_from_slice(b"\x059.9.9what comes later");
    let answer = envelope::emit_as(9, Kind::Answer, &cluster(), &body);

    let result = one.handle_datagram(now, seed, &answer);

    assert_eq!(result, Err(DatagramError::OtherProtocol { theirs: 9 }));
    let told = events(&mut one);
    let [MembershipEvent::SeedRefused { reason, .. }] = &told[..] else { panic!("{told:?}") };
    assert!(reason.contains("speaks protocol 9 (version 9.9.9)"), "{reason}");
}

#[test]
fn a_question_in_a_newer_protocol_is_answered() {
    let now = start();
    let mut one = node(now, 1);
    let mut body = 77_u64.to_be_bytes().to_vec();
    body.extend_from_slice(b"\x059.9.9");
    body.resize(300, 9);
    let question = envelope::emit_as(9, Kind::WhoIs, &cluster(), &body);

    let result = one.handle_datagram(now, identity(2).addr, &question);

    assert_eq!(result, Err(DatagramError::OtherProtocol { theirs: 9 }));
    let answer = transmits(&mut one).remove(0);
    let answer = Envelope::parse(&answer.data).unwrap();
    assert_eq!((answer.protocol, answer.kind), (PROTOCOL, Kind::Answer));
    assert_eq!(envelope::Answer::parse(answer.body).unwrap().responder, None);
}

#[test]
fn a_datagram_from_elsewhere_than_it_claims_is_refused() {
    let now = start();
    let (mut one, _two) = pair(now);
    let forged = datagram(&gossip(&identity(3), &identity(1), Message::Announce));

    let result = one.handle_datagram(now, "203.0.113.9:7946".parse().unwrap(), &forged);

    assert_eq!(result, Err(DatagramError::SpoofedSource));
    assert_eq!(refused(&one, "spoofed_source"), 1);
    assert_eq!(transmits(&mut one), []);
    assert_eq!(one.peers().len(), 1);
}

#[test]
fn nobody_is_pinged_on_request_who_is_not_a_member() {
    let now = start();
    let (mut one, two) = pair(now);
    let target = Identity { addr: "203.0.113.9:1".parse().unwrap(), ..identity(9) };
    let request =
        gossip(two.identity(), &identity(1), Message::PingReq { target, probe_number: 1 });

    let result = one.handle_datagram(now, identity(2).addr, &datagram(&request));

    assert_eq!(result, Err(DatagramError::UnknownTarget));
    assert_eq!(transmits(&mut one), []);
}

#[test]
fn an_absurd_generation_poisons_nobody() {
    let now = start();
    let (mut one, two) = pair(now);
    let before = one.peers();
    let absurd = |number| identity(number).with_generation(Generation(u64::MAX));
    let mut payload = gossip(two.identity(), &identity(1), Message::Gossip);
    payload.updates = vec![
        FocaMember::alive(absurd(2)),
        FocaMember::alive(absurd(3)),
        FocaMember::alive(absurd(1)),
        FocaMember::alive(identity(4)),
    ];

    one.handle_datagram(now, identity(2).addr, &datagram(&payload)).unwrap();
    let from_absurd = datagram(&gossip(&absurd(2), &identity(1), Message::Gossip));
    let result = one.handle_datagram(now, identity(2).addr, &from_absurd);

    assert_eq!(result, Err(DatagramError::AbsurdGeneration));
    assert_eq!(one.peers().get(identity(2).addr), before.get(identity(2).addr));
    assert!(one.peers().get(identity(4).addr).is_some(), "the rest of the datagram counts");
    assert_eq!(one.peers().len(), 2);
    assert_eq!(one.identity(), &identity(1));
}

#[test]
fn a_full_table_takes_no_more_members_and_keeps_those_it_has() {
    let now = start();
    let mut one = Membership::new(
        now,
        MembershipConfig { max_members: 2, ..config("test") },
        identity(1),
        StdRng::seed_from_u64(1),
    );
    let mut payload = gossip(&identity(2), &identity(1), Message::Gossip);
    payload.updates = (3..=9).map(|number| FocaMember::alive(identity(number))).collect();

    one.handle_datagram(now, identity(2).addr, &datagram(&payload)).unwrap();
    let stranger = datagram(&gossip(&identity(10), &identity(1), Message::Gossip));
    let result = one.handle_datagram(now, identity(10).addr, &stranger);

    assert_eq!(result, Err(DatagramError::MemberLimit));
    assert_eq!(one.peers().len(), 2);
    assert!(one.peers().get(identity(2).addr).is_some());
    assert_eq!(one.counters().skipped_updates, 6);
}

#[test]
fn a_member_declared_down_too_often_renews_itself_less_often() {
    let now = start();
    let (mut one, two) = pair(now);
    let mut renewals = 0;

    for _ in 0..50 {
        let own = one.identity().clone();
        let undead = datagram(&gossip(two.identity(), &own, Message::TurnUndead));
        let _refused = one.handle_datagram(now, identity(2).addr, &undead);
        renewals += usize::from(*one.identity() != own);
    }

    assert_eq!(renewals, 3);
    assert_eq!(refused(&one, "renewed_too_often"), 47);
    let own = one.identity().clone();
    let undead = datagram(&gossip(two.identity(), &own, Message::TurnUndead));
    let later = now + Duration::from_secs(6);
    assert_eq!(one.handle_datagram(later, identity(2).addr, &undead), Ok(()));
    assert_ne!(*one.identity(), own);
}

#[test]
fn a_second_node_at_the_own_address_is_a_conflict_and_no_war() {
    let now = start();
    let (mut one, two) = pair(now);
    let mut changes = 0;

    for _ in 0..100 {
        let own = one.identity().clone();
        let twin = Identity {
            name: NodeName::new("twin").unwrap(),
            generation: later(own.generation, 5),
            ..own.clone()
        };
        let mut payload = gossip(two.identity(), &own, Message::Gossip);
        payload.updates = vec![FocaMember::alive(twin)];
        one.handle_datagram(now, identity(2).addr, &datagram(&payload)).unwrap();
        changes += usize::from(*one.identity() != own);
    }

    assert_eq!(changes, 3);
    let kinds: Vec<_> = one.conflicts().map(|conflict| conflict.kind).collect();
    assert_eq!(kinds, [ConflictKind::Address]);
    let told = events(&mut one);
    let conflicts =
        told.iter().filter(|event| matches!(event, MembershipEvent::Conflict(_))).count();
    assert_eq!(conflicts, 1, "{told:?}");
    assert_eq!(one.peers().len(), 1);
}

#[test]
fn a_departure_told_by_gossip_alone_is_a_departure() {
    let now = start();
    let (mut one, two) = pair(now);
    let mut payload = gossip(&identity(3), &identity(1), Message::Gossip);
    payload.updates = vec![FocaMember::new(two.identity().clone(), LEFT, State::Down)];

    one.handle_datagram(now, identity(3).addr, &datagram(&payload)).unwrap();

    let told = events(&mut one);
    assert!(told.contains(&MembershipEvent::MemberLeft(identity(2))), "{told:?}");
    let state = |node: &Membership, name: &str| {
        let members = node.members();
        members.iter().find(|member| member.identity.name.as_str() == name).map(|m| m.state)
    };
    assert_eq!(state(&one, "n2"), Some(MemberState::Left));
    one.handle_timeout(now + Duration::from_hours(2));
    assert_eq!(state(&one, "n2"), None, "not shown after an hour");
}

#[test]
fn a_leaving_node_says_goodbye_twice_and_then_nothing() {
    let now = start();
    let (mut one, two) = pair(now);

    one.leave(now);

    assert_eq!(transmits(&mut one).len(), 1);
    let again_at = one.poll_timeout().unwrap();
    one.handle_timeout(again_at);
    assert_eq!(transmits(&mut one).len(), 1);
    assert_eq!(one.poll_timeout(), None);
    let ping = datagram(&gossip(two.identity(), &identity(1), Message::Ping(1)));
    one.handle_datagram(again_at, identity(2).addr, &ping).unwrap();
    assert_eq!(transmits(&mut one), []);
    assert_eq!(one.members()[0].state, MemberState::Left);
}

#[test]
fn a_full_exchange_tells_both_sides_everything() {
    let now = start();
    let (mut one, _two) = pair(now);
    let mut three = node(now, 3);

    let request = three.sync_request();
    let json = serde_json::to_string(&request).unwrap();
    let reply = one.handle_sync(now, &serde_json::from_str(&json).unwrap()).unwrap();
    three.handle_sync_reply(now, &reply).unwrap();

    assert_eq!(three.peers().len(), 2);
    assert_eq!(one.peers().len(), 2);
}

#[test]
fn an_exchange_with_another_cluster_says_what_differs() {
    let now = start();
    let mut one = node(now, 1);
    let other = Membership::new(now, config("b"), identity(2), StdRng::seed_from_u64(1));

    let refusal = one.handle_sync(now, &other.sync_request()).unwrap_err();

    assert_eq!(
        refusal.to_string(),
        "this node speaks protocol 2 in cluster \"test\"; you speak protocol 2 in cluster \"b\""
    );
    assert!(one.peers().is_empty());
}

#[test]
fn an_exchange_with_one_bad_member_has_no_effect() {
    let now = start();
    let mut one = node(now, 1);
    let good = node(now, 2).sync_request();
    let mut bad_name = good.clone();
    bad_name.members.push(SyncMember { name: "a b".to_owned(), ..good.from.clone() });
    let mut bad_addr = good.clone();
    bad_addr.members.push(SyncMember { addr: "0.0.0.0:1".parse().unwrap(), ..good.from.clone() });
    let mut too_many = good.clone();
    too_many.members = vec![good.from.clone(); 5000];

    assert!(matches!(one.handle_sync(now, &bad_name), Err(SyncRefusal::Name { .. })));
    assert!(matches!(one.handle_sync(now, &bad_addr), Err(SyncRefusal::Identity { .. })));
    assert!(matches!(one.handle_sync(now, &too_many), Err(SyncRefusal::TooMany { .. })));
    assert!(one.peers().is_empty());
}

#[test]
fn somebody_elses_down_is_not_believed_in_an_exchange_but_a_departure_is() {
    let now = start();
    for (state, peers) in [(SyncState::Down, 1), (SyncState::Left, 0)] {
        let (mut one, two) = pair(now);
        let mut message = node(now, 3).sync_request();
        message.members = vec![SyncMember { state, ..two.sync_request().from }];
        message.from = one.sync_request().from;

        one.handle_sync(now, &message).unwrap();

        assert_eq!(one.peers().len(), peers, "{state:?}");
    }
}

#[test]
fn without_neighbours_and_seeds_a_node_sends_nothing() {
    let mut now = start();
    let mut one = node(now, 1);

    for _ in 0..1000 {
        now = one.poll_timeout().unwrap();
        one.handle_timeout(now);
    }

    assert_eq!(transmits(&mut one), []);
    assert_eq!(events(&mut one), []);
    assert_eq!(one.pending_timers(), 0);
}
