//! Hosts get other addresses while they work, and the mesh follows.

use std::{collections::BTreeMap, time::Duration};

use marengo_tests::{
    Container, Mesh, Node, Probe,
    bpf::Maps,
    node::{BRIDGE, DEVICE},
    probe::Outcome,
    require_root, tell, wait,
};
use nix::sys::signal::Signal;

/// How long frames to and from a renumbered node may be lost.
const GAP: Duration = Duration::from_secs(3);

/// Starts the daemons with a log of what they do to the kernel, and not of each frame.
fn start_all(mesh: &Mesh, args: &[&str]) {
    for node in mesh.nodes() {
        start(node, &mesh.node(1).seed(), args);
    }
    mesh.wait_converged();
    for node in mesh.nodes() {
        node.address_bridge();
    }
}

fn start(node: &Node, seed: &str, args: &[&str]) {
    let args = if node.seed() == seed { args.to_vec() } else { [&["-j", seed], args].concat() };
    let mut command = node.server(&[], &args);
    command.env("MARENGO_LOG", "info,marengo=debug");
    node.launch_command(&mut command);
    node.wait_answers();
}

/// What the daemon did to the kernel since its log was `from` bytes long.
fn done(node: &Node, from: usize) -> Vec<String> {
    let log = node.log();
    let lines = log.get(from..).unwrap_or_default().lines();
    let ops =
        lines.filter(|line| line.contains(" apply ")).filter_map(|line| line.split("op=").nth(1));
    ops.map(|op| op.trim_matches('"').to_owned()).collect()
}

/// The stations that a node knows, and all that is known of each but when it was last heard, which
/// frames change.
fn stations(node: &Node) -> BTreeMap<String, [u64; 4]> {
    let number = |value: &serde_json::Value| value.as_u64().expect("it is a number");
    let stands = ["peer", "generation", "moved_from", "moved_at"];
    let entries = node.bpftool_dump("macs").into_iter();
    entries
        .map(|entry| (entry["key"].to_string(), stands.map(|field| number(&entry["value"][field]))))
        .collect()
}

fn expect_gap(outcome: &Outcome, what: &str) {
    let gap =
        outcome.lost_between.map_or(Duration::ZERO, |(first, last)| last.saturating_sub(first));
    tell(format_args!("{what}: {} of {} lost, gap {gap:?}", outcome.lost, outcome.sent));
    assert!(gap <= GAP && outcome.lost <= 3000, "{what}: {outcome:?}");
}

fn probe(from: &Container, to: &Container) -> Probe {
    Probe::start(&from.namespace, &to.namespace, to.address())
}

#[test]
fn nodes_renumbered_one_after_the_other_cost_the_others_one_write_and_no_packet() {
    require_root!();
    let mesh = Mesh::within(5, Duration::from_mins(4));
    start_all(&mesh, &[]);
    let containers: Vec<Container> = mesh.nodes().map(|node| node.container(1)).collect();
    let silent: Vec<Container> = mesh.nodes().map(|node| node.container(2)).collect();
    let at = |index: usize| &containers[index % 5];
    // Everybody knows every station.
    for (index, from) in containers.iter().chain(&silent).enumerate() {
        for to in (1..5).map(|step| at(index + step)) {
            assert!(from.namespace.pings(&to.address().to_string(), 1));
        }
    }
    let pids: Vec<u32> = mesh.nodes().map(Node::pid).collect();

    for index in 0..5 {
        let node = mesh.node(index + 1);
        let others: Vec<&Node> = mesh.nodes().filter(|other| other.name() != node.name()).collect();
        let old = node.underlay();
        let slot = |other: &Node| {
            let found = Maps::open(other).slots().into_iter().find(|(_, peer)| {
                peer.vtep == marengo_common::VtepKey::new(node.underlay().into()).vtep
            });
            found.map(|(index, peer)| (index, peer.generation))
        };
        let before: Vec<_> = others.iter().map(|other| (slot(other), stations(other))).collect();
        let logs: Vec<usize> = others.iter().map(|other| other.log().len()).collect();
        let there = probe(at(index + 1), at(index));
        let back = probe(at(index), at(index + 2));
        let third = [probe(at(index + 1), at(index + 2)), probe(at(index + 3), at(index + 4))];
        std::thread::sleep(Duration::from_millis(500));

        node.renumber(1);

        let took = wait::until("everybody has it", Duration::from_secs(10), || {
            others.iter().all(|other| {
                let maps = Maps::open(other);
                maps.has(node.underlay().into()) && maps.lacks(old.into())
            })
        });
        std::thread::sleep(Duration::from_secs(2));
        tell(format_args!("{}: on every map after {took:?}", node.name()));
        expect_gap(&there.finish(), "to it");
        expect_gap(&back.finish(), "from it");
        for probe in third {
            let outcome = probe.finish();
            assert_eq!((outcome.lost, outcome.duplicates), (0, 0), "a third pair: {outcome:?}");
        }
        mesh.wait_converged();
        for ((other, (slot_before, stations_before)), log) in others.iter().zip(before).zip(logs) {
            let name = other.name();
            assert_eq!(slot(other), slot_before, "{name}: the slot and its stamp are the same");
            let slot = slot_before.expect("it had one").0;
            let mut writes = done(other, log);
            writes.sort();
            let expected = |op: &str| writes.iter().filter(|write| write.starts_with(op)).count();
            assert_eq!(writes.len(), 3, "{name}: {writes:?}");
            assert_eq!(expected(&format!("put peer {slot} ")), 1, "{name}: {writes:?}");
            assert_eq!(
                expected(&format!("put vtep {} ", node.underlay())),
                1,
                "{name}: {writes:?}"
            );
            assert_eq!(expected(&format!("delete vtep {old}")), 1, "{name}: {writes:?}");
            assert_eq!(stations(other), stations_before, "{name}");
        }
        let status = node.view().status();
        assert_eq!(status["vtep"], node.underlay().to_string());
        assert_eq!(status["listen"], node.listen_address().to_string());
        assert_eq!(status["repairs"], 0, "{status}");
        for node in mesh.nodes() {
            assert_eq!(node.view().status()["conflicts"], serde_json::json!([]));
            assert!(!node.log().contains("member-down"), "{}", node.log());
        }
    }
    let still: Vec<u32> = mesh.nodes().map(Node::pid).collect();
    assert_eq!(still, pids, "no daemon was started again");
    // All of them are elsewhere now; who comes new joins by a new address.
    mesh.node(5).stop();
    start(mesh.node(5), &mesh.node(2).seed(), &[]);
    mesh.wait_converged();
}

/// The control: without it the node is another one beside its former self, which is declared failed.
#[test]
fn renumbered_node_that_does_not_supersede_its_former_self_is_taken_for_two() {
    require_root!();
    let mesh = Mesh::new(3);
    start_all(&mesh, &["--without", "supersede"]);

    mesh.node(1).renumber(1);

    let other = mesh.node(2);
    wait::until("its former self is declared failed", Duration::from_secs(10), || {
        let log = other.log();
        log.lines().any(|line| line.contains("member-down") && line.contains("node=node-1"))
    });
}

#[test]
fn address_that_was_named_is_missed_aloud_and_taken_up_again() {
    require_root!();
    let mesh = Mesh::new(2);
    let (one, two) = (mesh.node(1), mesh.node(2));
    let address = one.underlay().to_string();
    one.start(&["--advertise-addr", &address]);
    two.start(&["-j", &one.seed()]);
    mesh.wait_converged();
    one.address_bridge();
    two.address_bridge();

    one.renumber(1);
    one.wait_until("its status says what is wrong", Duration::from_secs(5), |view| {
        let problem = view.status()["address_problem"].as_str().unwrap_or_default().to_owned();
        problem.contains(&address) && problem.contains("--advertise-addr")
    });
    std::thread::sleep(Duration::from_secs(3));
    let told = |what: &str| one.log().lines().filter(|line| line.contains(what)).count();
    assert_eq!(told("this node's address is gone"), 1, "{}", one.log());
    assert_eq!(one.view().status()["vtep"], address, "nobody told it to take another");
    assert!(!two.namespace.pings(&one.overlay().to_string(), 1), "nobody reaches it");
    let ended = one.cli(&["status"]);
    assert!(ended.stdout.contains("problem"), "{}", ended.stdout);

    one.renumber(0);
    one.wait_until("it is well again", Duration::from_secs(8), |view| {
        view.status()["address_problem"].is_null()
    });
    mesh.wait_converged();
    assert!(one.namespace.pings(&two.overlay().to_string(), 1));
    assert_eq!(told("this node's address is back"), 1, "{}", one.log());
}

#[test]
fn interface_is_followed_and_an_address_that_flaps_is_kept() {
    require_root!();
    let mesh = Mesh::new(2);
    start_all(&mesh, &["--advertise-addr", "eth0"]);
    let (one, two) = (mesh.node(1), mesh.node(2));
    let generation = || {
        let members = two.view().get("/v1/members").unwrap();
        let members = members.as_array().unwrap().clone();
        let one = members.iter().find(|member| member["name"] == "node-1").cloned().unwrap();
        (one["generation"].clone(), one["address"].clone())
    };
    let before = generation();

    // Taken off and put back, as a DHCP client may; and with another one beside it for a while.
    let (address, gateway) = (one.underlay(), one.default_routes());
    for _ in 0..5 {
        one.namespace.ip(&format!(
            "addr del {address}/31 dev eth0\naddr add {address}/31 dev eth0\n{gateway}"
        ));
        std::thread::sleep(Duration::from_millis(100));
    }
    one.namespace.ip("addr add 198.51.100.77/32 dev eth0");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(generation(), before, "it is kept while the host has it");
    one.namespace.ip("addr del 198.51.100.77/32 dev eth0");

    one.renumber(2);
    let took = wait::until("node 2 has it", GAP, || Maps::open(two).has(one.underlay().into()));
    tell(format_args!("followed after {took:?}"));
    mesh.wait_converged();
    assert!(two.namespace.pings(&one.overlay().to_string(), 2));
    assert_ne!(generation(), before);

    // There and back again, while the other daemon does not run.
    two.signal(Signal::SIGSTOP);
    one.renumber(1);
    std::thread::sleep(Duration::from_secs(1));
    one.renumber(0);
    std::thread::sleep(Duration::from_secs(1));
    two.signal(Signal::SIGCONT);
    wait::until("node 2 has it", Duration::from_secs(10), || {
        Maps::open(two).has(one.underlay().into())
    });
    mesh.wait_converged();
    assert!(two.namespace.pings(&one.overlay().to_string(), 2));

    let ended = two.run_to_end(&[], &["--advertise-addr", "eth7", "--bridge", "other"]);
    assert_eq!(ended.code, Some(13), "{}", ended.stderr);
    assert!(ended.stderr.contains("eth7"), "{}", ended.stderr);
}

/// Neither can tell the other, but both can tell the third.
#[test]
fn two_that_are_renumbered_at_once_find_each_other_by_a_third() {
    require_root!();
    let mesh = Mesh::running(3);
    let (one, two) = (mesh.node(1), mesh.node(2));

    one.renumber(1);
    two.renumber(2);

    let took = wait::until("they have each other's new address", Duration::from_secs(10), || {
        Maps::open(one).has(two.underlay().into()) && Maps::open(two).has(one.underlay().into())
    });
    tell(format_args!("found after {took:?}"));
    mesh.wait_converged();
    assert!(one.namespace.pings(&two.overlay().to_string(), 2));
}

/// Its data plane is the same one, so it has the slots that it had.
#[test]
fn daemon_that_was_away_while_its_host_was_renumbered_takes_its_place_again() {
    require_root!();
    let mesh = Mesh::running(3);
    let (one, two) = (mesh.node(1), mesh.node(2));
    let old = one.underlay();
    let slot = |address: std::net::Ipv4Addr| {
        let vtep = marengo_common::VtepKey::new(address.into()).vtep;
        let found = Maps::open(two).slots().into_iter().find(|(_, peer)| peer.vtep == vtep);
        found.map(|(index, peer)| (index, peer.generation))
    };
    let before = slot(old);
    assert!(before.is_some());

    for away in [Signal::SIGUSR2, Signal::SIGKILL] {
        one.signal(away);
        one.wait_ended(Duration::from_secs(5));
        one.renumber(if away == Signal::SIGUSR2 { 1 } else { 2 });
        start(one, &two.seed(), &[]);
        wait::until("node 2 has it", Duration::from_secs(5), || {
            Maps::open(two).has(one.underlay().into()) && Maps::open(two).lacks(old.into())
        });
        assert_eq!(slot(one.underlay()), before, "{away}");
        mesh.wait_converged();
        assert!(two.namespace.pings(&one.overlay().to_string(), 2));
    }
    assert_eq!(two.view().status()["conflicts"], serde_json::json!([]));
}

#[test]
fn underlay_that_changes_its_mtu_flaps_or_is_replaced_is_followed() {
    require_root!();
    let mesh = Mesh::running(3);
    let (one, two) = (mesh.node(1), mesh.node(2));
    let mtu = |link: &str| one.namespace.link(link).and_then(|link| link["mtu"].as_u64());

    for (underlay, overlay) in [(1400, 1350), (1600, 1550), (1500, 1450)] {
        mesh.router.ip(&format!("link set {} mtu {underlay}", one.cable()));
        one.namespace.ip(&format!("link set eth0 mtu {underlay}"));
        let took = wait::until("the overlay's MTU follows", Duration::from_secs(3), || {
            mtu(BRIDGE) == Some(overlay) && mtu(DEVICE) == Some(overlay)
        });
        tell(format_args!("MTU {underlay} followed after {took:?}"));
        assert_eq!(one.view().status()["mtu"], overlay);
    }

    let reach = |what: &str| {
        wait::until(what, Duration::from_secs(15), || {
            one.namespace.pings(&two.overlay().to_string(), 1)
                && two.namespace.pings(&one.overlay().to_string(), 1)
        })
    };
    for _ in 0..6 {
        one.cut_link();
        std::thread::sleep(Duration::from_millis(300));
        one.restore_link();
        std::thread::sleep(Duration::from_millis(300));
    }
    tell(format_args!("reached again {:?} after flaps", reach("node 1 is reached after flaps")));
    mesh.wait_converged();

    let before = one.namespace.ifindex("eth0");
    one.replace_cable();
    assert_ne!(one.namespace.ifindex("eth0"), before);
    tell(format_args!(
        "reached again {:?} after the new cable",
        reach("node 1 is reached by its new cable")
    ));
    mesh.wait_converged();
    // What the node knows of its underlay is the new device's.
    mesh.router.ip(&format!("link set {} mtu 1400", one.cable()));
    one.namespace.ip("link set eth0 mtu 1400");
    wait::until("the MTU of the new device counts", Duration::from_secs(3), || {
        mtu(DEVICE) == Some(1350)
    });
    assert_eq!(one.view().status()["address_problem"], serde_json::Value::Null);
}
