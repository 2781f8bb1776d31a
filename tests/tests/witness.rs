//! Gossip alone takes no path out: what the tunnel says counts as well.

#![expect(clippy::unwrap_used, reason = "a test ends with a panic")]

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use marengo_common::{MapName, Settings};
use marengo_tests::{
    Mesh, Node, Probe, bpf::Maps, cpu_quota::CpuQuota, require_root, requirements::long, tell, wait,
};
use nix::sys::signal::Signal;

/// What happens to the control plane, and to nothing else.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    /// No gossip and no exchange to or from node 2.
    GossipBlocked,
    /// The daemon of node 2 is stopped.
    Stopped,
    /// The daemon of node 2 gets one hundredth of a processor.
    Starved,
    /// Of all gossip datagrams 40 % are lost.
    Lossy,
}

impl Fault {
    const ALL: [Self; 4] = [Self::GossipBlocked, Self::Stopped, Self::Starved, Self::Lossy];

    /// Whether gossip cannot but lose node 2.
    fn loses_gossip(self) -> bool {
        matches!(self, Self::GossipBlocked | Self::Stopped)
    }

    fn lasting(self) -> Duration {
        match (self, long()) {
            (Self::Stopped, true) => Duration::from_mins(1),
            (_, true) => Duration::from_mins(5),
            (_, false) => Duration::from_secs(14),
        }
    }
}

#[test]
fn no_fault_of_the_control_plane_costs_a_packet() {
    require_root!();
    thread::scope(|scope| {
        let all: Vec<_> = Fault::ALL.map(|fault| scope.spawn(move || endure(fault))).into();
        for (fault, one) in Fault::ALL.iter().zip(all) {
            assert!(one.join().is_ok(), "{fault:?}");
        }
    });
}

/// Runs three nodes under probes between all of them, with the fault in the middle.
fn endure(fault: Fault) {
    let mesh = Mesh::within(3, fault.lasting() + Duration::from_mins(2));
    mesh.start_all(&[]);
    let (one, two, three) = (mesh.node(1), mesh.node(2), mesh.node(3));
    let pairs = [(one, two), (two, one), (two, three), (three, two), (one, three), (three, one)];
    for (from, to) in pairs {
        assert!(from.namespace.pings(&to.overlay().to_string(), 1));
    }
    let before: Vec<_> = mesh.nodes().map(|node| Maps::open(node).content()).collect();
    let probes = pairs.map(|(from, to)| {
        let limit = fault.lasting() + Duration::from_mins(1);
        // Four meshes at once on few processors: the pair that matters most gets 1,000 a second.
        let apart = if to.name() == two.name() && from.name() == one.name() { 1 } else { 5 };
        let apart = Duration::from_millis(apart);
        Probe::paced(&from.namespace, &to.namespace, to.overlay(), apart, limit)
    });

    let end = begin(fault, &mesh);
    let started = Instant::now();
    if fault.loses_gossip() {
        for node in [one, three] {
            node.wait_until("node 2 is held", Duration::from_secs(12), |view| {
                view.peer("node-2").is_some_and(|peer| peer["state"] == "held")
            });
        }
    }
    while started.elapsed() < fault.lasting() {
        thread::sleep(Duration::from_millis(500));
        // A third pair: nothing of this concerns it.
        for (node, other) in [(one, "node-3"), (three, "node-1")] {
            let peer = node.view().peer(other).unwrap();
            assert_eq!(peer["state"], "forwarding", "{fault:?}: {other} at {}", node.name());
        }
    }
    if fault.loses_gossip() {
        assert_eq!(one.view().state_of("node-2").as_deref(), Some("down"));
        let status = one.view().status();
        assert_eq!((&status["held"], &status["holds"]), (&1.into(), &1.into()));
        let why = one.view().peer("node-2").unwrap()["held"].as_str().unwrap().to_owned();
        assert!(why.contains("its data plane answers"), "{why}");
        for command in ["peers", "status"] {
            let said = one.cli(&[command]).stdout;
            assert!(said.contains("node-2") && said.contains("its data plane answers"), "{said}");
        }
        assert_eq!(one.log().matches("holding a peer").count(), 1, "told once");
    }
    end();
    mesh.wait_converged();
    for node in mesh.nodes() {
        wait::until("nobody is held", Duration::from_secs(10), || {
            node.view().peers().iter().all(|peer| peer["state"] == "forwarding")
        });
    }
    for (probe, (from, to)) in probes.into_iter().zip(pairs) {
        let outcome = probe.finish();
        let path = format!("{fault:?}: {} to {}", from.name(), to.name());
        assert_eq!((outcome.lost, outcome.duplicates), (0, 0), "{path}: {outcome:?}");
    }
    let after: Vec<_> = mesh.nodes().map(|node| Maps::open(node).content()).collect();
    assert_eq!(after, before, "{fault:?}: no entry of any map is another one");
}

/// Begins a fault; what it returns ends it, and fails if nothing was felt of it.
fn begin<'a>(fault: Fault, mesh: &'a Mesh) -> Box<dyn FnOnce() + 'a> {
    let two = mesh.node(2);
    match fault {
        Fault::GossipBlocked => {
            block_gossip(two);
            Box::new(|| two.namespace.nft("delete table inet gossip"))
        }
        Fault::Stopped => {
            two.signal(Signal::SIGSTOP);
            Box::new(|| two.signal(Signal::SIGCONT))
        }
        Fault::Starved => {
            let quota = CpuQuota::limit(two.pid(), 1);
            Box::new(move || {
                let throttled = quota.throttled();
                assert!(throttled > 20, "it had to wait {throttled} times alone");
            })
        }
        Fault::Lossy => {
            mesh.router.nft(
                "table inet gossip {
                     chain forward {
                         type filter hook forward priority 0;
                         udp dport 7946 numgen random mod 100 < 40 counter drop
                     }
                 }",
            );
            Box::new(|| {
                let dropped = dropped(&mesh.router.run("nft list table inet gossip"));
                assert!(dropped > 20, "only {dropped} datagrams were lost");
                mesh.router.nft("delete table inet gossip");
            })
        }
    }
}

/// What the counter of a rule says.
fn dropped(table: &str) -> u64 {
    let count = table.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    count.and_then(|count| count.parse().ok()).unwrap_or_default()
}

/// Drops what daemons say to each other, and nothing else.
fn block_gossip(node: &Node) {
    node.namespace.nft(
        "table inet gossip {
             chain in { type filter hook input priority 0; udp dport 7946 drop; tcp dport 8080 drop; }
             chain out { type filter hook output priority 0; udp dport 7946 drop; tcp dport 8080 drop; }
         }",
    );
}

#[test]
fn without_the_second_witness_a_fault_of_gossip_costs_packets() {
    require_root!();
    for fault in [Fault::GossipBlocked, Fault::Stopped] {
        let mesh = Mesh::new(3);
        mesh.start_all(&["--without", "witness"]);
        let (one, two) = (mesh.node(1), mesh.node(2));
        let probe = Probe::start(&one.namespace, &two.namespace, two.overlay());
        thread::sleep(Duration::from_secs(1));

        let end = begin(fault, &mesh);
        wait::until("node 2 is off the maps", Duration::from_secs(10), || {
            Maps::open(one).lacks(IpAddr::V4(two.underlay()))
        });
        thread::sleep(Duration::from_secs(1));
        end();

        assert!(probe.finish().lost > 100, "{fault:?}: the path was torn down");
    }
}

#[test]
fn a_link_that_is_cut_while_its_peer_is_held_is_off_the_maps_in_time() {
    require_root!();
    for (args, limit) in [(&[][..], 6), (&["--profile", "fast"], 1)] {
        let mesh = Mesh::new(3);
        mesh.start_all(args);
        let (one, two) = (mesh.node(1), mesh.node(2));
        block_gossip(two);
        one.wait_until("node 2 is held", Duration::from_secs(12), |view| {
            view.peer("node-2").is_some_and(|peer| peer["state"] == "held")
        });
        let maps = Maps::open(one);

        two.cut_link();
        let took = wait::until("the cut link is off the maps", Duration::from_secs(limit), || {
            maps.lacks(IpAddr::V4(two.underlay()))
        });

        tell(format_args!("cut while held {args:?}: off the maps after {took:.2?}"));
        assert_eq!(maps.flood_list().len(), 1);
        assert!(one.log().contains("neither gossip nor the tunnel hears a peer"));
    }
}

#[test]
fn a_link_that_is_cut_is_off_the_maps_in_time() {
    require_root!();
    for (args, limit) in [(&[][..], 6), (&["--profile", "fast"], 1)] {
        let mesh = Mesh::new(4);
        mesh.start_all(args);
        let others: Vec<_> = mesh.nodes().filter(|node| node.name() != "node-2").collect();
        let maps: Vec<Maps> = others.iter().map(|node| Maps::open(node)).collect();
        let two = mesh.node(2);
        let mut all = Vec::new();
        for _ in 0..3 {
            two.cut_link();
            let took = wait::until("it is off all maps", Duration::from_secs(limit + 5), || {
                maps.iter().all(|maps| maps.lacks(IpAddr::V4(two.underlay())))
            });
            tell(format_args!("cut {args:?}: off the maps after {took:.2?}"));
            all.push(took);
            two.restore_link();
            mesh.wait_converged();
        }
        assert!(all.iter().all(|took| *took <= Duration::from_secs(limit)), "{args:?}: {all:?}");
    }
}

/// Another machine at a dead one's address sends and answers from there, and is no witness for it.
#[test]
fn another_data_plane_at_the_same_address_does_not_keep_the_dead_one() {
    require_root!();
    assert!(taken_out_for_a_stranger(&[]));
}

#[test]
fn without_strangers_it_does() {
    require_root!();
    assert!(!taken_out_for_a_stranger(&["--without", "strangers"]));
}

/// Whether a peer whose daemon does not run is taken out when another data plane answers in its place.
fn taken_out_for_a_stranger(args: &[&str]) -> bool {
    let mesh = Mesh::new(3);
    mesh.start_all(args);
    let (one, two) = (mesh.node(1), mesh.node(2));
    assert!(one.namespace.pings(&two.overlay().to_string(), 1));
    let probe = Probe::start(&two.namespace, &one.namespace, one.overlay());
    two.signal(Signal::SIGSTOP);
    one.wait_until("node 2 is held", Duration::from_secs(12), |view| {
        view.peer("node-2").is_some_and(|peer| peer["state"] == "held")
    });

    // Everything is as before, but for the identity with which its programs answer.
    let settings = MapData::from_pin(two.pins().join(MapName::SETTINGS.pin)).unwrap();
    let mut settings: Array<_, Settings> =
        Map::from_map_data(settings).unwrap().try_into().unwrap();
    let own = settings.get(&0, 0).unwrap();
    let stranger = Settings { data_plane: own.data_plane ^ 1, ..own };
    settings.set(0, stranger, 0).unwrap();

    let is_off = || Maps::open(one).lacks(IpAddr::V4(two.underlay()));
    let start = Instant::now();
    while !is_off() && start.elapsed() < Duration::from_secs(6) {
        thread::sleep(Duration::from_millis(50));
    }
    let is_off = is_off();
    assert!(probe.sent() > 0, "it sent all the time");
    two.signal(Signal::SIGCONT);
    mesh.wait_converged();
    is_off
}

#[test]
fn nobody_is_asked_while_gossip_vouches_for_all() {
    require_root!();
    let mesh = Mesh::running(3);
    let asked = marengo_tests::Capture::start(&mesh.router, &mesh.node(2).cable());

    thread::sleep(Duration::from_secs(10));

    let questions = asked.count(|frame| frame.bytes.windows(4).any(|bytes| bytes == b"MRGO"));
    assert_eq!(questions, 0);
}
