//! Laws of the wire format, and what becomes of bytes that are not ours.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use foca::{Header, Member, Message, State};
use marengo_core::{
    identity::{ClusterName, DataPlaneId, Generation, Identity, NodeName, Version},
    membership::{
        Membership, MembershipConfig,
        codec::{self, Payload},
        envelope::{self, Answer, Envelope, Greeting, Kind, WhoIs},
    },
};
use proptest::{collection::vec, option, prelude::*};
use rand::{SeedableRng as _, rngs::StdRng};

fn ip() -> impl Strategy<Value = IpAddr> + Clone {
    let v4 = any::<[u8; 4]>().prop_map(IpAddr::from);
    let v6 = any::<[u8; 16]>().prop_map(IpAddr::from);
    prop_oneof![v4, v6]
}

fn identity() -> impl Strategy<Value = Identity> + Clone {
    let name = "[!-~]{1,63}".prop_map(|name| NodeName::new(&name).expect("a name"));
    let addr = (ip(), 1..=u16::MAX).prop_map(SocketAddr::from as fn((IpAddr, u16)) -> SocketAddr);
    let key = prop_oneof![Just([0; 32]), any::<[u8; 32]>()];
    let numbers = (any::<u64>(), 1..=u64::MAX);
    (name, addr.clone(), ip(), addr, numbers, key).prop_filter_map(
        "an address that can be sent to",
        |(name, addr, vtep, listen, (generation, data_plane), public_key)| {
            let (generation, data_plane) = (Generation(generation), DataPlaneId::new(data_plane)?);
            Identity { name, addr, vtep, listen, generation, data_plane, public_key }
                .into_checked()
                .ok()
        },
    )
}

fn member() -> impl Strategy<Value = Member<Identity>> {
    let state = prop_oneof![Just(State::Alive), Just(State::Suspect), Just(State::Down)];
    (identity(), any::<u16>(), state)
        .prop_map(|(id, incarnation, state)| Member::new(id, incarnation, state))
}

fn message() -> impl Strategy<Value = Message<Identity>> {
    let numbered = (identity(), any::<u8>());
    prop_oneof![
        any::<u8>().prop_map(Message::Ping),
        any::<u8>().prop_map(Message::Ack),
        numbered
            .clone()
            .prop_map(|(target, probe_number)| Message::PingReq { target, probe_number }),
        numbered
            .clone()
            .prop_map(|(origin, probe_number)| Message::IndirectPing { origin, probe_number }),
        numbered
            .clone()
            .prop_map(|(target, probe_number)| Message::IndirectAck { target, probe_number }),
        numbered.prop_map(|(origin, probe_number)| Message::ForwardedAck { origin, probe_number }),
        Just(Message::Announce),
        Just(Message::Feed),
        Just(Message::Gossip),
        Just(Message::TurnUndead),
    ]
}

fn payload() -> impl Strategy<Value = Payload> {
    (identity(), any::<u16>(), identity(), message(), vec(member(), 0..5)).prop_map(
        |(src, src_incarnation, dst, message, mut updates)| {
            if matches!(message, Message::Announce | Message::TurnUndead) {
                updates.clear();
            }
            Payload { header: Header { src, src_incarnation, dst, message }, updates }
        },
    )
}

fn greeting() -> impl Strategy<Value = Greeting> {
    let version = "[!-~]{1,32}".prop_map(|version| Version::lossy(&version));
    (any::<u64>(), version).prop_map(|(nonce, version)| Greeting { nonce, version })
}

fn cluster() -> impl Strategy<Value = ClusterName> {
    "[!-~]{1,32}".prop_map(|name| ClusterName::new(&name).expect("a name"))
}

proptest! {
    #[test]
    fn a_payload_is_read_back(payload in payload()) {
        let bytes = payload.emit().expect("fits");
        prop_assert_eq!(Payload::parse(&bytes), Ok(payload));
    }

    #[test]
    fn an_identity_is_read_back_and_never_longer_than_promised(identity in identity()) {
        let mut bytes = Vec::new();
        codec::emit_identity(&identity, &mut bytes).expect("fits");
        prop_assert!(bytes.len() <= codec::MAX_IDENTITY_LEN);
        prop_assert_eq!(codec::parse_identity(&bytes[..]), Ok(identity));
    }

    #[test]
    fn an_identity_without_room_leaves_no_trace(identity in identity(), room in 0_usize..167) {
        let mut whole = Vec::new();
        codec::emit_identity(&identity, &mut whole).expect("fits");
        let mut space = vec![7; room];
        let result = codec::emit_identity(&identity, &mut space[..]);
        if room < whole.len() {
            prop_assert_eq!(result, Err(codec::CodecError::Short));
            prop_assert!(space.iter().all(|byte| *byte == 7));
        } else {
            prop_assert_eq!(result, Ok(()));
        }
    }

    #[test]
    fn questions_and_answers_are_read_back_and_no_answer_is_longer(
        (greeting, asker, cluster) in (greeting(), identity(), cluster()),
        (theirs, responder, known) in (cluster(), option::of(identity()), any::<u64>()),
    ) {
        let question = WhoIs { greeting, asker };
        let known_generation = Generation(known);
        let answer = Answer { greeting, responder, known_generation };

        let asked = question.emit(&cluster).expect("fits");
        let answered = answer.emit(&theirs).expect("fits");

        prop_assert!(answered.len() <= asked.len());
        let envelope = Envelope::parse(&asked).expect("whole");
        prop_assert_eq!((envelope.kind, envelope.cluster), (Kind::WhoIs, cluster));
        prop_assert_eq!(WhoIs::parse(envelope.body), Ok(question));
        let envelope = Envelope::parse(&answered).expect("whole");
        prop_assert_eq!((envelope.kind, envelope.cluster), (Kind::Answer, theirs));
        prop_assert_eq!(Answer::parse(envelope.body), Ok(answer));
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in vec(any::<u8>(), 0..1300)) {
        let _any = Envelope::parse(&bytes);
        let _any = Payload::parse(&bytes);
        let _any = WhoIs::parse(&bytes);
        let _any = Answer::parse(&bytes);
    }

    #[test]
    fn a_damaged_payload_makes_no_parser_panic(
        payload in payload(), at in any::<prop::sample::Index>(), value in any::<u8>(),
    ) {
        let mut bytes = payload.emit().expect("fits");
        *at.get_mut(&mut bytes) = value;
        let _any = Payload::parse(&bytes);
        let _any = Payload::parse(&bytes[..at.index(bytes.len())]);
    }
}

/// Two nodes that know each other, and every datagram they sent meanwhile.
struct Pair {
    now: Instant,
    nodes: [Membership; 2],
    datagrams: Vec<(SocketAddr, Vec<u8>)>,
}

impl Pair {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "a test needs some instant to begin with")]
        let now = Instant::now();
        let nodes = [1, 2].map(|number| {
            let ip = IpAddr::from([10, 0, 0, number]);
            let name = NodeName::new(&format!("n{number}")).expect("a name");
            let (addr, listen) = (SocketAddr::new(ip, 7946), SocketAddr::new(ip, 8080));
            let identity = Identity::new(
                name,
                addr,
                ip,
                listen,
                Generation(1_000_000),
                DataPlaneId::new(u64::from(number)).expect("not zero"),
            );
            let config = MembershipConfig::new(ClusterName::new("test").expect("a name"));
            let rng = StdRng::seed_from_u64(u64::from(number));
            Membership::new(now, config, identity.expect("an identity"), rng)
        });
        let mut pair = Self { now, nodes, datagrams: Vec::new() };
        let seed = pair.nodes[1].identity().addr;
        pair.nodes[0].set_seeds(now, vec![seed]);
        for _ in 0..200 {
            pair.exchange();
            pair.now += Duration::from_millis(50);
            let now = pair.now;
            for node in &mut pair.nodes {
                if node.poll_timeout().is_some_and(|deadline| deadline <= now) {
                    node.handle_timeout(now);
                }
            }
        }
        assert!(pair.nodes.iter().all(|node| node.peers().len() == 1));
        pair
    }

    fn exchange(&mut self) {
        for _ in 0..20 {
            for sender in 0..2 {
                let from = self.nodes[sender].identity().addr;
                while let Some(transmit) = self.nodes[sender].poll_transmit() {
                    self.nodes[1 - sender]
                        .handle_datagram(self.now, from, &transmit.data)
                        .expect("a good datagram");
                    self.datagrams.push((from, transmit.data.to_vec()));
                }
            }
        }
    }
}

/// Changes a few bytes, cuts off some, or adds some.
fn mutate(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..=4) {
        match rng.random_range(0..10) {
            0 => bytes.truncate(rng.random_range(0..=bytes.len())),
            1 => bytes.extend((0..rng.random_range(1..40)).map(|_| rng.random::<u8>())),
            _ if bytes.is_empty() => bytes.push(rng.random()),
            2..=5 => {
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << rng.random_range(0..8);
            }
            _ => {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
        }
    }
}

#[test]
fn two_hundred_thousand_bad_datagrams_change_nothing_and_are_counted() {
    let seed = std::env::var("MARENGO_SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or(1);
    let repeat = format!("with MARENGO_SIM_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let Pair { now, nodes: [mut node, _], datagrams } = Pair::new();
    while node.poll_event().is_some() {}
    while node.poll_transmit().is_some() {}
    let before = (node.members(), node.peers(), node.identity().clone());
    let timers = node.pending_timers();
    let stranger: SocketAddr = "10.0.0.2:7946".parse().expect("an address");

    for _ in 0..100_000 {
        let len = rng.random_range(0..400);
        let mut bytes: Vec<u8> = (0..len).map(|_| rng.random()).collect();
        // Half of them get past the first look.
        if rng.random_bool(0.5) && len > 8 {
            bytes[..8].copy_from_slice(&[
                b'M',
                b'G',
                envelope::PROTOCOL,
                rng.random_range(0..6),
                0,
                0,
                0,
                0,
            ]);
        }
        assert!(node.handle_datagram(now, stranger, &bytes).is_err(), "{repeat}");
    }
    for _ in 0..100_000 {
        let (from, original) = &datagrams[rng.random_range(0..datagrams.len())];
        let mut bytes = original.clone();
        mutate(&mut bytes, &mut rng);
        if bytes != *original {
            assert!(node.handle_datagram(now, *from, &bytes).is_err(), "{repeat}");
        }
    }

    assert_eq!((node.members(), node.peers(), node.identity().clone()), before, "{repeat}");
    assert_eq!(node.pending_timers(), timers, "{repeat}");
    assert_eq!(node.poll_transmit(), None, "{repeat}");
    assert_eq!(node.poll_event(), None, "{repeat}");
    assert!(node.counters().rejected_total() > 199_000, "{repeat}");
}

#[test]
fn mutated_datagrams_with_a_right_checksum_never_panic_and_break_no_bound() {
    let mut rng = StdRng::seed_from_u64(1);
    let Pair { mut now, nodes: [mut node, _], datagrams } = Pair::new();

    for round in 0..30_000 {
        let (from, original) = &datagrams[rng.random_range(0..datagrams.len())];
        let mut bytes = original[..original.len() - 4].to_vec();
        mutate(&mut bytes, &mut rng);
        let checksum = envelope::crc32(&bytes);
        bytes.extend_from_slice(&checksum.to_be_bytes());
        let _any = node.handle_datagram(now, *from, &bytes);
        if round % 100 == 0 {
            now += Duration::from_millis(200);
            node.handle_timeout(now);
        }
        while node.poll_transmit().is_some() {}
        while node.poll_event().is_some() {}
    }

    assert!(node.members().len() <= 4097);
    assert!(node.pending_timers() < 100, "{} timers", node.pending_timers());
}
