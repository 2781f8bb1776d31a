//! Links that another hand renames, deletes, replaces or moves away: they get back what was theirs, or
//! the daemon says what stands in the way, once and without getting busy.

use std::{thread, time::Duration};

use marengo_tests::{
    HostState, Mesh, Node, Probe, bpf,
    node::{BRIDGE, DEVICE},
    require_root, wait,
};
use serde_json::Value;

/// What the kernel reports is repaired within this.
const SOON: Duration = Duration::from_secs(2);
/// After a failure that lasted, the next try is a converge interval away.
const NEXT_TRY: Duration = Duration::from_millis(7500);

#[test]
fn renamed_links_get_their_names_back_and_no_packet_is_lost() {
    require_root!();
    let mesh = Mesh::running(2);
    let (node, peer) = (mesh.node(1), mesh.node(2));
    let (from, to) = (node.container(1), peer.container(1));
    assert!(from.namespace.pings(&to.address().to_string(), 2));
    thread::sleep(Duration::from_millis(300));
    let numbers = || (node.namespace.ifindex(DEVICE), node.namespace.ifindex(BRIDGE));
    let (before, attachments) = (numbers(), bpf::attachments(&node.namespace));
    let repairs = node.view().repairs();
    let probe = Probe::start(&from.namespace, &to.namespace, to.address());

    for link in [DEVICE, BRIDGE] {
        node.namespace.ip(&format!("link set {link} name elsewhere"));
        wait::until("the name is back", SOON, || numbers() == before);
        wait::until("it is counted", SOON, || node.view().repairs() > repairs);
    }
    // Also by the next start.
    node.kill();
    node.namespace.ip(&format!("link set {DEVICE} name elsewhere"));
    node.start(&["-j", &peer.seed()]);
    wait::until("the name is back", SOON, || numbers() == before);
    mesh.wait_converged();
    let outcome = probe.finish();

    assert_eq!((outcome.lost, outcome.duplicates), (0, 0), "{outcome:?}");
    let now = bpf::attachments(&node.namespace);
    assert_eq!(now.len(), attachments.len());
    assert_eq!(node.namespace.link("elsewhere"), None);

    // And by a stop that finds one renamed.
    node.kill();
    node.namespace.ip(&format!("link set {DEVICE} name elsewhere"));
    node.start(&[]);
    assert!(node.stop().success());
    assert_eq!((node.namespace.link("elsewhere"), node.namespace.link(DEVICE)), (None, None));
    assert_eq!(bpf::attachments(&node.namespace), []);
}

#[test]
fn bridge_of_another_makes_way_for_the_one_that_has_the_name() {
    require_root!();
    let mesh = Mesh::running(2);
    let node = mesh.node(1);
    thread::sleep(Duration::from_millis(300));
    let old = node.namespace.ifindex(BRIDGE);

    node.namespace.ip("link add waiting type bridge");
    take_name(node, &format!("ip link set {BRIDGE} name old"), "waiting", BRIDGE);

    wait::until("the device is in the bridge of the name", SOON, || {
        node.namespace.link(DEVICE).is_some_and(|link| link["master"] == BRIDGE)
            && bpf::attached_at(&node.namespace, BRIDGE, "egress").len() == 1
    });
    assert_eq!(node.namespace.ifindex("old"), old, "somebody's bridge is left alone");
    // It had the addresses.
    node.namespace.ip("link set old down");
    node.address_bridge();
    expect_traffic(&mesh);

    // One that is deleted is made again.
    node.namespace.ip(&format!("link del {BRIDGE}"));
    wait::until("the bridge is back", SOON, || {
        node.namespace.link(DEVICE).is_some_and(|link| link["master"] == BRIDGE)
    });
    node.address_bridge();
    expect_traffic(&mesh);
    node.wait_until("it converged", SOON, |view| view.is_converged());
}

#[test]
fn foreign_link_in_the_place_of_ours_is_named_and_left_alone() {
    require_root!();
    let mesh = Mesh::running(2);
    let node = mesh.node(1);
    for (link, words) in [
        (BRIDGE, "the link with the bridge's name is no bridge"),
        (DEVICE, "was not made by Marengo"),
    ] {
        thread::sleep(Duration::from_millis(300));
        node.namespace.ip("link add foreign type veth peer name other");
        take_name(node, &format!("ip link del {link}"), "foreign", link);
        let index = node.namespace.ifindex(link);
        node.wait_until("it says what stands in the way", SOON, |view| {
            view.status()["error"].as_str().is_some_and(|error| error.contains(words))
        });
        expect_calm(node, words);
        assert_eq!(node.namespace.ifindex(link), index, "somebody's link was touched");
        assert!(!node.view().is_converged());

        node.namespace.ip(&format!("link del {link}"));
        node.wait_until("it converged", NEXT_TRY, |view| view.is_converged());
        node.address_bridge();
        expect_traffic(&mesh);
    }
    assert!(node.stop().success());
}

#[test]
fn device_in_another_namespace_is_named_and_followed_when_it_is_gone_or_back() {
    require_root!();
    let mesh = Mesh::running(2);
    let node = mesh.node(1);
    let words = "moved to another network namespace";
    let away = |name: &str| {
        thread::sleep(Duration::from_millis(300));
        let elsewhere = mesh.sandbox().namespace(name);
        node.namespace.ip(&format!("link set {DEVICE} netns {}", elsewhere.name()));
        node.wait_until("it says where the port is", SOON, |view| {
            view.status()["error"].as_str().is_some_and(|error| error.contains(words))
        });
        assert_eq!(node.namespace.link(DEVICE), None, "two devices on one port");
        elsewhere
    };

    let elsewhere = away("away1");
    expect_calm(node, words);
    elsewhere.ip(&format!("link del {DEVICE}"));
    node.wait_until("it converged", NEXT_TRY, |view| view.is_converged());
    expect_traffic(&mesh);

    let elsewhere = away("away2");
    elsewhere.ip(&format!("link set {DEVICE} netns {}", node.namespace.name()));
    node.wait_until("it converged", NEXT_TRY, |view| view.is_converged());
    expect_traffic(&mesh);
    assert_eq!(bpf::attachments(&node.namespace).len(), 3);

    assert!(node.stop().success());
    let left = HostState::of(node);
    assert_eq!((left.attachments, left.pins), (vec![], vec![]));
}

/// Gives a link the name that a command takes from another one. The daemon may be quicker, and give it
/// back before.
fn take_name(node: &Node, free: &str, link: &str, name: &str) {
    wait::until("the other link has the name", Duration::from_secs(5), || {
        let mut command = node.namespace.command("sh");
        let line = format!("{free}; ip link set {link} name {name}");
        let status = command.args(["-c", &line]).stderr(std::process::Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    });
}

/// What cannot be mended is tried now and then, told once, and costs next to nothing.
fn expect_calm(node: &Node, words: &str) {
    let rounds = |status: &Value| status["rounds"].as_u64().unwrap_or_default();
    let told = || node.log().lines().filter(|line| line.contains(words)).count();
    let (before, cpu, lines) = (rounds(&node.view().status()), node.cpu_time(), told());
    thread::sleep(Duration::from_secs(3));
    let made = rounds(&node.view().status()) - before;
    let used = node.cpu_time().saturating_sub(cpu);
    assert!(made <= 8, "{made} rounds in 3 s");
    assert!(used < Duration::from_millis(400), "{used:?} of processor in 3 s");
    assert_eq!(lines, 1, "{}", node.log());
    assert_eq!(told(), 1, "{}", node.log());
}

fn expect_traffic(mesh: &Mesh) {
    let (host, peer) = (mesh.node(1), mesh.node(2));
    wait::until("hosts reach each other", Duration::from_secs(5), || {
        host.namespace.pings(&peer.overlay().to_string(), 1)
    });
}
