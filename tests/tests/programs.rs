//! The programs under BPF_PROG_TEST_RUN: a frame in, verdict and counters out.
//!
//! A frame of a test run never has a tunnel key, and the key that a program sets is not to be
//! seen: what depends on keys is asserted on the wire (reach.rs, filter.rs).

use std::{net::IpAddr, time::Duration};

use marengo_common::{
    DropReason, FLOOD_CHUNK, FloodChunk, MacAddr, MacEntry, MacKey, PeerEntry, PeerState,
    ProgramName, Settings, Vni, VtepKey, WITHOUT_GENERATIONS, WITHOUT_MOVES,
};
use marengo_tests::{
    Capture,
    object::{Object, Verdict},
    packet::{self, BROADCAST},
    require_root,
    sandbox::Sandbox,
    wait,
};

/// The loopback device: the only one that a test run can do without.
const LO: u32 = 1;
/// Some other device.
const ELSEWHERE: u32 = 99;
const VNI: u32 = 1024;
const GENERATION: u32 = 7;

const NOWHERE: MacEntry =
    MacEntry { peer: 0, generation: 0, last_seen_ns: 0, moved_from: 0, moved_at: 0 };

/// Where the egress program runs.
#[derive(Clone, Copy, Debug)]
enum At {
    Bridge,
    Device,
}

struct Case {
    name: &'static str,
    at: At,
    to: [u8; 6],
    /// (index, state) of each slot.
    peers: &'static [(u32, PeerState)],
    /// VNI, peer and stamp of what is known of station 1.
    mac: Option<(u32, u32, u32)>,
    flood: &'static [u32],
    verdict: Verdict,
    /// The peers that one frame was sent to.
    sent: &'static [u32],
    dropped: Option<DropReason>,
}

const UP: PeerState = PeerState::Forwarding;
const DOWN: PeerState = PeerState::Down;
const STATION: [u8; 6] = packet::station(1);

const BASE: Case = Case {
    name: "",
    at: At::Bridge,
    to: STATION,
    peers: &[(1, UP), (2, UP)],
    mac: None,
    flood: &[],
    verdict: Verdict::Next,
    sent: &[],
    dropped: None,
};

const EGRESS: [Case; 16] = [
    Case { name: "bridge: an unknown station is left to the bridge", ..BASE },
    Case { name: "bridge: a broadcast is left to the bridge", to: BROADCAST, flood: &[1], ..BASE },
    Case {
        name: "bridge: a known station's frame is sent to its peer",
        mac: Some((VNI, 2, GENERATION)),
        sent: &[2],
        ..BASE
    },
    Case {
        name: "bridge: a stamp of an earlier generation is a miss",
        mac: Some((VNI, 2, GENERATION - 1)),
        ..BASE
    },
    Case {
        name: "bridge: a peer that is down is a miss",
        peers: &[(2, DOWN)],
        mac: Some((VNI, 2, GENERATION)),
        ..BASE
    },
    Case { name: "bridge: a slot that is gone is a miss", mac: Some((VNI, 3, GENERATION)), ..BASE },
    Case {
        name: "bridge: a station of another network is a miss",
        mac: Some((VNI + 1, 2, GENERATION)),
        ..BASE
    },
    Case {
        name: "device: a known station's frame is sent to its peer alone",
        at: At::Device,
        mac: Some((VNI, 2, GENERATION)),
        flood: &[1, 2],
        sent: &[2],
        ..BASE
    },
    Case {
        name: "device: an unknown station's frame is flooded",
        at: At::Device,
        flood: &[1],
        sent: &[1],
        ..BASE
    },
    Case {
        name: "device: a stale stamp is flooded, not delivered to the wrong peer",
        at: At::Device,
        mac: Some((VNI, 2, GENERATION - 1)),
        flood: &[1],
        sent: &[1],
        ..BASE
    },
    Case {
        name: "device: a broadcast goes to everybody on the list once",
        at: At::Device,
        to: BROADCAST,
        peers: &[(1, UP), (2, UP), (3, UP), (4, UP)],
        flood: &[1, 2, 3],
        sent: &[1, 2, 3],
        ..BASE
    },
    Case {
        name: "device: a peer that is down gets no copy",
        at: At::Device,
        to: BROADCAST,
        peers: &[(1, UP), (2, DOWN), (3, UP)],
        flood: &[1, 2, 3],
        sent: &[1, 3],
        ..BASE
    },
    Case {
        name: "device: an index without a slot gets no copy",
        at: At::Device,
        to: BROADCAST,
        peers: &[(1, UP)],
        flood: &[9, 1],
        sent: &[1],
        ..BASE
    },
    Case {
        name: "device: a broadcast without peers is dropped",
        at: At::Device,
        to: BROADCAST,
        peers: &[],
        verdict: Verdict::Shot,
        dropped: Some(DropReason::NoPeers),
        ..BASE
    },
    Case {
        name: "device: a broadcast with peers that are all down is dropped",
        at: At::Device,
        to: BROADCAST,
        peers: &[(1, DOWN)],
        flood: &[1],
        verdict: Verdict::Shot,
        dropped: Some(DropReason::NoPeers),
        ..BASE
    },
    Case {
        name: "device: an unknown station without a flood list is dropped",
        at: At::Device,
        verdict: Verdict::Shot,
        dropped: Some(DropReason::NoPeers),
        ..BASE
    },
];

#[test]
fn egress_gives_each_frame_its_peers_verdict_and_count() {
    require_root!();
    inside(|| {
        for case in EGRESS {
            let mut object = Object::load(0);
            object.put_settings(settings(if matches!(case.at, At::Device) {
                LO
            } else {
                ELSEWHERE
            }));
            for (index, state) in case.peers {
                object.put_peer(*index, peer(*index, *state));
            }
            if let Some((vni, peer, generation)) = case.mac {
                let entry = MacEntry { peer, generation, ..NOWHERE };
                object.put_mac(MacKey::new(vni, MacAddr(STATION)), entry);
            }
            put_flood(&mut object, case.flood);
            let frame = packet::marked(case.to, packet::station(9), case.name);

            let verdict = object.run(ProgramName::EGRESS, &frame, LO);

            assert_eq!(verdict, case.verdict, "{}", case.name);
            for index in 1..10 {
                let expected =
                    if case.sent.contains(&index) { (1, frame.len() as u64) } else { (0, 0) };
                assert_eq!(object.sent(index), expected, "{}: peer {index}", case.name);
            }
            expect_drops(&mut object, case.name, case.dropped);
        }
    });
}

#[test]
fn flood_reaches_every_peer_of_a_list_of_several_chunks() {
    require_root!();
    let sandbox = Sandbox::open(Duration::from_mins(1));
    let namespace = sandbox.namespace("flood");
    let copies = Capture::start(&namespace, "lo");
    let peers = 3 * u32::try_from(FLOOD_CHUNK).unwrap() + 5;
    namespace.inside(|| {
        let mut object = Object::load(0);
        object.put_settings(settings(LO));
        let list: Vec<u32> = (1..=peers).collect();
        for index in &list {
            object.put_peer(*index, peer(*index, UP));
        }
        put_flood(&mut object, &list);
        let frame = packet::marked(BROADCAST, packet::station(9), "to all");

        assert_eq!(object.run(ProgramName::EGRESS, &frame, LO), Verdict::Next);

        for index in list {
            assert_eq!(object.sent(index), (1, frame.len() as u64), "peer {index}");
        }
        expect_drops(&mut object, "flood", None);
    });
    // The last one gets the frame itself, which a test run does not send.
    wait::until("the copies", Duration::from_secs(2), || {
        copies.count(|frame| frame.outgoing && packet::is_marked(&frame.bytes, "to all"))
            == peers as usize - 1
    });
}

#[test]
fn ingress_drops_what_did_not_come_through_a_tunnel() {
    require_root!();
    inside(|| {
        let mut object = Object::load(0);
        object.put_settings(settings(LO));
        object.put_peer(1, peer(1, UP));
        for to in [BROADCAST, STATION] {
            let frame = packet::marked(to, packet::station(9), "from nowhere");
            assert_eq!(object.run(ProgramName::INGRESS, &frame, LO), Verdict::Shot);
        }
        assert_eq!(object.drops(DropReason::NoTunnelKey), 2);
    });
}

#[test]
fn everything_is_dropped_until_the_daemon_has_written_the_settings() {
    require_root!();
    inside(|| {
        let mut object = Object::load(0);
        let frame = packet::marked(BROADCAST, packet::station(9), "too early");

        let ingress = object.run(ProgramName::INGRESS, &frame, LO);
        let egress = object.run(ProgramName::EGRESS, &frame, LO);

        assert_eq!((ingress, egress), (Verdict::Shot, Verdict::Shot));
        assert_eq!(object.drops(DropReason::NoSettings), 2);
    });
}

#[test]
fn frames_of_every_length_and_any_content_get_a_verdict() {
    require_root!();
    inside(|| {
        let mut object = Object::load(0);
        object.put_settings(settings(LO));
        object.put_peer(1, peer(1, UP));
        put_flood(&mut object, &[1]);
        // 14 bytes is the least that a test run takes.
        for length in (14..200).chain([1450, 1500, 3000]) {
            for fill in [0, 0x55, 0xff] {
                let frame = vec![fill; length];
                assert_eq!(object.run(ProgramName::EGRESS, &frame, LO), Verdict::Next);
                assert_eq!(object.run(ProgramName::INGRESS, &frame, LO), Verdict::Shot);
            }
        }
    });
}

#[test]
fn a_station_that_sends_from_here_is_no_longer_behind_a_peer() {
    require_root!();
    inside(|| {
        for (without, here) in [(0, true), (WITHOUT_MOVES, false)] {
            let mut object = Object::load_without(without);
            object.put_settings(settings(LO));
            object.put_peer(2, peer(2, UP));
            put_flood(&mut object, &[2]);
            let key = MacKey::new(VNI, MacAddr(packet::station(9)));
            object.put_mac(key, MacEntry { peer: 2, generation: GENERATION, ..NOWHERE });
            let frame = packet::marked(BROADCAST, packet::station(9), "I am here now");

            object.run(ProgramName::EGRESS, &frame, LO);

            let entry = object.mac(key).expect("it is remembered where the station was");
            assert_eq!(entry.peer == 0 && entry.moved_from == 2, here, "{entry:?}");
        }
    });
}

#[test]
fn without_generations_a_stale_stamp_is_sent_to_the_wrong_peer() {
    require_root!();
    inside(|| {
        for (without, sent) in [(0, 0), (WITHOUT_GENERATIONS, 1)] {
            let mut object = Object::load_without(without);
            object.put_settings(settings(ELSEWHERE));
            object.put_peer(2, peer(2, UP));
            let key = MacKey::new(VNI, MacAddr(STATION));
            object.put_mac(key, MacEntry { peer: 2, generation: GENERATION - 1, ..NOWHERE });
            let frame = packet::marked(STATION, packet::station(9), "to a former tenant");

            object.run(ProgramName::EGRESS, &frame, LO);

            assert_eq!(object.sent(2).0, sent);
        }
    });
}

/// In a namespace of its own: copies really are sent.
fn inside(work: impl FnOnce() + Send) {
    let sandbox = Sandbox::open(Duration::from_mins(1));
    sandbox.namespace("programs").inside(work);
}

fn settings(vxlan_ifindex: u32) -> Settings {
    Settings::new(Vni::new(VNI).expect("it has 24 bits"), vtep(0), 1, vxlan_ifindex, GENERATION)
}

fn vtep(number: u32) -> IpAddr {
    IpAddr::from([192, 0, 2, u8::try_from(number).expect("few peers")])
}

fn peer(index: u32, state: PeerState) -> PeerEntry {
    PeerEntry {
        vtep: VtepKey::new(vtep(index)).vtep,
        generation: GENERATION,
        path_mtu: 1450,
        state: state as u8,
        flags: 0,
        data_plane: u64::from(index),
    }
}

fn put_flood(object: &mut Object, list: &[u32]) {
    for (position, peers) in (0..).zip(list.chunks(FLOOD_CHUNK)) {
        let mut chunk = FloodChunk { peers: [0; FLOOD_CHUNK] };
        chunk.peers[..peers.len()].copy_from_slice(peers);
        object.put_flood(position, chunk);
    }
}

fn expect_drops(object: &mut Object, name: &str, expected: Option<DropReason>) {
    for reason in DropReason::ALL {
        let count = u64::from(expected == Some(reason));
        assert_eq!(object.drops(reason), count, "{name}: {}", reason.label());
    }
}
