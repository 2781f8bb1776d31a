//! No entry points at the wrong node, whatever happens.
#![allow(clippy::print_stderr, reason = "a test prints what it measured")]

use std::{collections::BTreeSet, net::IpAddr, str::FromStr, time::Duration};

use marengo_common::{MacAddr, PeerEntry};
use marengo_tests::{
    Capture, Container, Mesh, Node,
    map_writes::MapWrites,
    node::BRIDGE,
    packet::{self, BROADCAST, Encapsulated},
    packet_socket::PacketSocket,
    require_root, tell,
    truth::{self, Plan, Report, tables::Tables},
    wait,
};

/// The hosts of the runs.
const HOSTS: u8 = 8;

/// Events of a run that is expected to find something: chances are that twenty are enough.
const CONTROL_EVENTS: usize = 300;

#[test]
fn no_entry_points_at_a_wrong_or_dead_peer_whatever_happens() {
    require_root!();

    let report = run(&plan(500, &[]));

    assert!(report.violations.is_empty(), "{}", report.violations[0]);
}

#[test]
fn without_generations_entries_point_at_wrong_peers() {
    require_root!();
    // Such programs do not look at stamps, so neither may the checker.
    let plan = Plan { stamps: false, ..plan(CONTROL_EVENTS, &["--without", "generations"]) };

    let report = run(&plan);

    assert!(!report.violations.is_empty(), "the checker finds nothing without the mechanism");
}

#[test]
fn without_moves_late_frames_take_stations_back() {
    require_root!();

    // The frames tell by themselves.
    let plan = Plan { maps: false, ..plan(CONTROL_EVENTS, &["--without", "moves"]) };

    let report = run(&plan);

    assert!(!report.violations.is_empty(), "the checker finds nothing without the mechanism");
}

#[test]
fn a_container_that_moves_is_reachable_from_everywhere_after_its_first_frame() {
    require_root!();
    let mesh = Mesh::running(5);
    // One container on each node that asks, beside the node itself.
    let others: Vec<Container> = mesh.nodes().map(|node| node.container(1)).collect();
    let mac = [0x02, 0x4d, 0x54, 0x43, 0, 1];
    let address = "10.42.0.99";

    for round in 0..3 {
        for (number, node) in (2_u8..).zip(mesh.nodes()) {
            let container = node.container(number + 10 * round);
            let namespace = &container.namespace;
            namespace.ip(&format!(
                "link set eth0 down\naddr flush dev eth0\nlink set eth0 address {}\n\
                 addr add {address}/24 dev eth0\nlink set eth0 up",
                MacAddr(mac)
            ));
            wait_until_port_forwards(node, &container);
            let socket = PacketSocket::open(namespace, "eth0");
            socket.send(&packet::marked(BROADCAST, mac, "here I am"));

            // All at once: none of them is helped by the frames of another.
            std::thread::scope(|scope| {
                let asking: Vec<_> = (mesh.nodes().map(|node| &node.namespace))
                    .chain(others.iter().map(|other| &other.namespace))
                    .map(|from| scope.spawn(move || (from.name(), from.pings(address, 1))))
                    .collect();
                for asked in asking {
                    let (from, reached) = asked.join().unwrap();
                    assert!(reached, "round {round}, on {}: not from {from}", node.name());
                }
            });
            // It is gone without a word, and nowhere for longer than frames are late.
            node.namespace.ip(&format!("link del {}", container.port));
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

#[test]
fn a_hundred_thousand_macs_vanish_with_one_write() {
    require_root!();
    assert_eq!(behind_the_next_peer(100_000, &[]), 0);
}

#[test]
fn without_generations_the_next_peer_inherits_them() {
    require_root!();
    assert_eq!(behind_the_next_peer(1000, &["--without", "generations"]), 1000);
}

/// A peer with so many MACs behind it dies: by one write all are misses. Returns how many are found
/// behind the next peer that comes, which gets the dead one's index.
fn behind_the_next_peer(macs: u32, args: &[&str]) -> usize {
    let mesh = Mesh::new(4);
    let [one, two, three, four] = [1, 2, 3, 4].map(|number| mesh.node(number));
    one.launch(&[], args);
    for node in [two, three] {
        node.launch(&[], &[&["-j", &one.seed()], args].concat());
    }
    mesh.wait_converged();
    let tables = Tables::open(one.pins()).expect("it has maps");
    let listener = packet::station(1);
    let near = PacketSocket::open(&one.container(1).namespace, "eth0");
    let far = PacketSocket::open(&two.container(1).namespace, "eth0");
    // For one station, so that nobody but node 1 learns them.
    wait::until("node 2 knows the listener", Duration::from_secs(5), || {
        near.send(&packet::marked(BROADCAST, listener, "hello"));
        let there = Tables::open(two.pins()).expect("it has maps");
        there.look_up(MacAddr(listener), true).is_some()
    });
    let known = || -> BTreeSet<MacAddr> {
        tables.dump().live(true).map(|(mac, ..)| mac).filter(|mac| is_one_of_many(*mac)).collect()
    };
    // Again what the kernel did not keep: its hash evicts before it is full.
    let mut all = BTreeSet::new();
    for _ in 0..5 {
        for number in 0..macs {
            if !all.contains(&one_of_many(number)) {
                far.send(&packet::marked(listener, one_of_many(number).0, "one of many"));
            }
        }
        wait_until_quiet(&tables);
        all = known();
    }
    assert_eq!(all.len(), macs as usize);
    let behind: Vec<(MacAddr, PeerEntry)> =
        tables.dump().live(true).map(|(mac, _, peer)| (mac, *peer)).collect();
    let address = IpAddr::V4(two.underlay());
    assert!(
        behind
            .iter()
            .filter(|(mac, _)| is_one_of_many(*mac))
            .all(|(_, peer)| { peer.address(4) == address })
    );

    let index =
        tables.dump().slots().find(|(_, peer)| peer.address(4) == address).map(|(index, _)| index);
    let maps = ["peers", "vteps", "macs", "flood", "stats", "settings"];
    let writes = MapWrites::start(one.pid(), one.pins(), &maps, &mesh.sandbox().folder());
    two.kill();
    two.cut_link();
    let off = wait::until("node 2 is off the maps", Duration::from_secs(10), || {
        tables.dump().slots().all(|(_, peer)| peer.address(4) != address)
    });
    std::thread::sleep(Duration::from_secs(1));
    let writes = writes.finish();

    // The peer's counters, its address as a sender, and its place in the flood are no MAC's.
    let on = |map: &str| writes.iter().filter(|write| *write == map).count();
    eprintln!("{macs} MACs were off after {off:?}, by the writes {writes:?}");
    assert_eq!((on("peers"), on("macs"), on("settings")), (1, 0, 0), "{writes:?}");
    assert_eq!((on("flood"), on("stats"), on("vteps"), writes.len()), (1, 1, 1, 4), "{writes:?}");
    assert_eq!(known(), BTreeSet::new(), "every one of them is a miss");
    assert!(tables.macs() >= macs as usize, "and nobody has removed them");

    // A miss is flooded: to the peer that is left.
    let cable = Capture::start(&mesh.router, &one.cable());
    let stack = PacketSocket::open(&one.namespace, BRIDGE);
    for (way, socket) in [("container", &near), ("stack", &stack)] {
        for number in (0..macs).step_by(211) {
            socket.send(&packet::marked(one_of_many(number).0, listener, &format!("{way} asks")));
        }
    }
    let sample = (0..macs).step_by(211).count();
    let flooded = |text: &str| {
        cable.count(|frame| {
            Encapsulated::parse(&frame.bytes).is_some_and(|outer| {
                packet::is_marked(outer.inner, text)
                    && outer.destination == IpAddr::V4(three.underlay())
            })
        })
    };
    wait::until("the sample is flooded", Duration::from_secs(5), || {
        flooded("container asks") == sample && flooded("stack asks") == sample
    });
    assert_eq!(cable.carried("container asks") + cable.carried("stack asks"), 2 * sample);
    drop(cable);

    four.start(&[&["-j", &one.seed()], args].concat());
    mesh.wait_converged();
    let next = tables
        .dump()
        .slots()
        .find(|(_, peer)| peer.address(4) == IpAddr::V4(four.underlay()))
        .map(|(index, _)| index);
    assert_eq!(next, index, "it has the dead one's index");
    // As the programs see it.
    let stamps = args.is_empty();
    let found = tables.dump();
    found.live(stamps).filter(|(mac, ..)| is_one_of_many(*mac)).count()
}

/// moby PR#53663 had an overlay whose entries stayed wrong after some partitions in a row.
#[test]
fn three_partitions_in_a_row_leave_no_hole() {
    require_root!();
    let mesh = Mesh::within(4, Duration::from_mins(4));
    mesh.start_all(&["--node-timeout", "3s"]);
    let containers: Vec<Container> = mesh.nodes().map(|node| node.container(1)).collect();
    let alone = mesh.node(3);
    let everybody_pings = |count: u32| {
        std::thread::scope(|scope| {
            let mut asking = Vec::new();
            for from in &containers {
                for to in containers.iter().filter(|to| to.address() != from.address()) {
                    let (namespace, address) = (&from.namespace, to.address().to_string());
                    asking.push(scope.spawn(move || namespace.pings(&address, count)));
                }
            }
            asking.into_iter().filter_map(|asked| asked.join().ok()).filter(|ok| *ok).count()
        })
    };
    let pairs = containers.len() * (containers.len() - 1);
    assert_eq!(everybody_pings(1), pairs);

    for partition in 1..=3 {
        alone.cut_link();
        // Traffic all the time, on both sides and across.
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            everybody_pings(2);
        }
        alone.restore_link();
        std::thread::sleep(Duration::from_secs(1));
        eprintln!("partition {partition}: {} of {pairs} pairs after a second", everybody_pings(1));
    }

    let healed = mesh.wait_converged();
    eprintln!("everybody is everybody's peer after {healed:?}");
    assert_eq!(everybody_pings(2), pairs, "no hole stays");
    for node in mesh.nodes() {
        let tables = Tables::open(node.pins()).unwrap();
        let dump = tables.dump();
        for (container, home) in containers.iter().zip(mesh.nodes()) {
            let mac = mac_of(container);
            let found = tables.look_up(mac, true).map(|(_, peer)| dump.address(&peer));
            let expected = (home.name() != node.name()).then(|| IpAddr::V4(home.underlay()));
            assert_eq!(found, expected, "{mac} of {} in the maps of {}", home.name(), node.name());
        }
    }
}

/// Runs it, and prints its figures.
fn run(plan: &Plan) -> Report {
    // What a run takes, with room for a machine that does other things.
    let events = u32::try_from(plan.events).expect("a run is no longer than a day");
    let mesh = Mesh::within(HOSTS, Duration::from_mins(3) + plan.pace * 10 * events);
    let report = truth::run(&mesh, plan);
    tell(&report);
    report
}

/// What the environment says: `MARENGO_SEED`, `MARENGO_EVENTS`; `MARENGO_KEEP_GOING` goes on behind a
/// violation.
fn plan(events: usize, args: &[&str]) -> Plan {
    let seed = from_environment("MARENGO_SEED").unwrap_or_else(rand::random);
    tell(format_args!("MARENGO_SEED={seed}"));
    Plan {
        seed,
        events: from_environment("MARENGO_EVENTS").unwrap_or(events),
        hosts: HOSTS,
        pace: Duration::from_millis(60),
        bound: Duration::from_millis(7500),
        args: args.iter().map(ToString::to_string).collect(),
        stamps: true,
        maps: true,
        keep_going: std::env::var_os("MARENGO_KEEP_GOING").is_some(),
    }
}

fn from_environment<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")))
}

fn one_of_many(number: u32) -> MacAddr {
    let [_, a, b, c] = number.to_be_bytes();
    MacAddr([0x06, 0x4d, 0x54, a, b, c])
}

fn is_one_of_many(mac: MacAddr) -> bool {
    mac.0[..3] == one_of_many(0).0[..3]
}

/// Waits until no more MACs are learnt.
fn wait_until_quiet(tables: &Tables) {
    let mut before = 0;
    wait::until("the MACs are learnt", Duration::from_secs(30), || {
        let now = tables.macs();
        let quiet = now == before;
        before = now;
        std::thread::sleep(Duration::from_millis(50));
        quiet
    });
}

fn wait_until_port_forwards(node: &Node, container: &Container) {
    wait::until("the port forwards", Duration::from_secs(5), || {
        let link = node.namespace.link(&container.port);
        link.is_some_and(|link| link["linkinfo"]["info_slave_data"]["state"] == "forwarding")
    });
}

fn mac_of(container: &Container) -> MacAddr {
    let link = container.namespace.link("eth0").expect("a container has a device");
    let text = link["address"].as_str().expect("a device has an address");
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("ip prints bytes"))
        .collect();
    MacAddr(bytes.try_into().expect("an address has six bytes"))
}
