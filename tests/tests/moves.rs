//! Stations move between nodes, and frames that are late or sent again do not take them back.

#![expect(clippy::unwrap_used, reason = "a test ends with a panic")]

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use marengo_common::{
    ASK_KIND_OFFSET, ASK_MAGIC, AskKind, MOVE_HOLD, MacAddr, MacEntry, MacKey, MapName, question,
};
use marengo_tests::{
    Capture, Container, Mesh, Node,
    packet::{self, BROADCAST, station},
    packet_socket::PacketSocket,
    require_root, wait,
};

const VNI: u32 = 1024;
const SOON: Duration = Duration::from_secs(2);

/// How long a late frame is taken for one: [`MOVE_HOLD`] in units of 2^24 ns.
fn hold() -> Duration {
    Duration::from_nanos(u64::from(MOVE_HOLD) << 24)
}

/// Three nodes, each with a port on its bridge through which any station can send.
struct Bench {
    mesh: Mesh,
    ports: Vec<(Container, PacketSocket)>,
}

impl Bench {
    fn new(args: &[&str]) -> Self {
        let mesh = Mesh::new(3);
        mesh.start_all(args);
        let ports = mesh
            .nodes()
            .map(|node| {
                let container = node.container(1);
                let socket = PacketSocket::open(&container.namespace, "eth0");
                (container, socket)
            })
            .collect();
        Self { mesh, ports }
    }

    /// A broadcast of a station that is, or was, on a node.
    fn send(&self, node: usize, from: [u8; 6], text: &str) {
        self.ports[node - 1].1.send(&packet::marked(BROADCAST, from, text));
    }

    /// Where a node believes a station to be: the number of a node, itself included.
    fn belief(&self, node: usize, mac: [u8; 6]) -> Option<usize> {
        let at = self.mesh.node(node);
        let entry = mac_entry(at, mac)?;
        if entry.peer == 0 {
            return Some(node);
        }
        let peers = at.view().peers();
        let peer = peers.iter().find(|peer| peer["index"] == entry.peer)?;
        peer["name"].as_str()?.strip_prefix("node-")?.parse().ok()
    }

    fn wait_belief(&self, node: usize, mac: [u8; 6], home: usize) {
        wait::until(&format!("node {node} sees the station on node {home}"), SOON, || {
            self.belief(node, mac) == Some(home)
        });
    }
}

fn mac_entry(node: &Node, mac: [u8; 6]) -> Option<MacEntry> {
    let data = MapData::from_pin(node.pins().join(MapName::MACS.pin)).unwrap();
    // aya has no reader of its own for an LRU map.
    let macs: HashMap<_, MacKey, MacEntry> = Map::LruHashMap(match Map::from_map_data(data) {
        Ok(Map::LruHashMap(data) | Map::HashMap(data)) => data,
        other => panic!("{other:?}"),
    })
    .try_into()
    .unwrap();
    macs.get(&MacKey::new(VNI, MacAddr(mac)), 0).ok()
}

#[test]
fn a_late_frame_does_not_take_a_station_back_to_where_it_came_from() {
    require_root!();
    for (args, moves_back) in [(&[][..], false), (&["--without", "moves"][..], true)] {
        let bench = Bench::new(args);
        let mut judged = 0;
        for number in 1..=9 {
            let mac = station(number);
            bench.send(2, mac, "old home");
            bench.wait_belief(1, mac, 2);
            // New home, and at once what was still under way from the old one.
            bench.send(3, mac, "new home");
            bench.wait_belief(1, mac, 3);
            let moved = Instant::now();
            bench.send(2, mac, "late");
            bench.send(2, mac, "later");
            thread::sleep(Duration::from_millis(50));
            let believed = bench.belief(1, mac);
            if moved.elapsed() > hold() {
                // The machine was busy: what this would see says nothing.
                continue;
            }
            let home = if moves_back { 2 } else { 3 };
            assert_eq!(believed, Some(home), "{args:?}");
            judged += 1;
        }
        assert!(judged > 0, "the machine was too busy to tell");
    }
}

#[test]
fn a_frame_that_is_sent_again_later_moves_a_station_until_it_is_next_heard() {
    require_root!();
    let bench = Bench::new(&[]);
    let mac = station(1);
    bench.send(2, mac, "old home");
    bench.wait_belief(1, mac, 2);
    bench.send(3, mac, "new home");
    bench.wait_belief(1, mac, 3);

    // This is how far the protection goes: the frame carries nothing that tells it from a new one.
    thread::sleep(hold() + Duration::from_millis(100));
    bench.send(2, mac, "replayed");
    bench.wait_belief(1, mac, 2);
    thread::sleep(hold() + Duration::from_millis(100));
    bench.send(3, mac, "here I am");

    bench.wait_belief(1, mac, 3);
}

#[test]
fn a_late_frame_is_dropped_where_its_station_has_come_to() {
    require_root!();
    let bench = Bench::new(&[]);
    let (one, mac) = (bench.mesh.node(1), station(1));
    bench.send(2, mac, "old home");
    bench.wait_belief(1, mac, 2);
    bench.send(1, mac, "new home");
    bench.wait_belief(1, mac, 1);
    let moved = Instant::now();
    let local = Capture::start(&one.namespace, "marengo");

    bench.send(2, mac, "late");
    wait::until("it is dropped", SOON, || one.view().drops("overtaken") > 0);

    assert!(moved.elapsed() < Duration::from_secs(1), "the machine was too busy to tell");
    assert_eq!(local.received("late"), 0);
    // The bridge still sends to its own port what is for the station.
    let port = &bench.ports[0].0.port;
    let fdb = one.namespace.run("bridge fdb show br marengo");
    let text: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let line = fdb.lines().find(|line| line.starts_with(&text.join(":"))).unwrap_or_default();
    assert!(line.contains(&format!("dev {port} ")), "{line}");
}

/// A station that claims that a peer is there, or that another one answers, is not let out.
#[test]
fn stations_have_no_say_in_who_is_there() {
    require_root!();
    let bench = Bench::new(&[]);
    let wire = Capture::start(&bench.mesh.router, &bench.mesh.node(2).cable());
    let mut asking = question();
    asking[..6].copy_from_slice(&BROADCAST);
    let mut answer = asking;
    answer[ASK_KIND_OFFSET] = AskKind::Answer as u8;

    for frame in [asking, answer] {
        bench.ports[1].1.send(&frame);
    }
    let two = bench.mesh.node(2);
    wait::until("both are dropped", SOON, || two.view().drops("forged") == 2);

    assert_eq!(wire.count(|frame| frame.bytes.windows(4).any(|bytes| bytes == ASK_MAGIC)), 0);
}

#[test]
fn a_container_that_moves_to_and_fro_is_found_at_once_each_time() {
    require_root!();
    let bench = Bench::new(&[]);
    let mac = station(7);
    let mut homes = BTreeSet::new();
    for home in [2, 3, 2, 1, 3, 1, 2] {
        homes.insert(home);
        bench.send(home, mac, "I am here");
        for node in 1..=3 {
            let knows = node != home || homes.len() > 1;
            if knows {
                bench.wait_belief(node, mac, home);
            }
        }
        thread::sleep(hold());
    }
}
