//! Changes by another hand are found and put right.

use std::time::{Duration, Instant};

use marengo_common::{FloodPosition, VtepKey};
use marengo_tests::{
    Container, Mesh, Node,
    bpf::{self, Maps},
    exec,
    node::{BRIDGE, DEVICE},
    require_root, wait,
};

/// What the kernel reports is repaired within this.
const REPORTED: Duration = Duration::from_secs(2);
/// What it does not is looked for each 0.7 s.
const UNREPORTED: Duration = Duration::from_secs(2);

#[test]
fn what_the_kernel_reports_is_repaired_in_2_s_and_counted() {
    require_root!();
    let (mesh, containers) = mesh();
    let node = mesh.node(1);
    type Fault = (&'static str, fn(&Node));
    let faults: [Fault; 6] = [
        ("ip link del ol-marengo", |node| node.namespace.ip(&format!("link del {DEVICE}"))),
        ("nomaster", |node| node.namespace.ip(&format!("link set {DEVICE} nomaster"))),
        ("device down", |node| node.namespace.ip(&format!("link set {DEVICE} down"))),
        ("bridge down", |node| node.namespace.ip(&format!("link set {BRIDGE} down"))),
        ("device mtu", |node| node.namespace.ip(&format!("link set {DEVICE} mtu 1300"))),
        ("bridge mtu", |node| node.namespace.ip(&format!("link set {BRIDGE} mtu 1300"))),
    ];

    for (name, fault) in faults {
        settle();
        let repairs = node.view().repairs();
        fault(node);
        let took = expect_repaired(node, name, repairs, REPORTED);
        println!("{name}: repaired after {took:?}");
        // The bridge's IPv6 addresses went with the link; its owner gives them back.
        node.address_bridge();
        expect_traffic(&mesh, &containers);
    }
}

#[test]
fn what_the_kernel_does_not_report_is_repaired_in_2_s_and_counted() {
    require_root!();
    let (mesh, containers) = mesh();
    let (node, peer) = (mesh.node(1), mesh.node(2));
    type Fault = (&'static str, fn(&Node, &Node));
    let faults: [Fault; 5] = [
        ("overwritten settings", |node, _| {
            let mut maps = Maps::open(node);
            let mut settings = maps.settings.get(&0, 0).unwrap();
            settings.vni ^= 1;
            maps.settings.set(0, settings, 0).unwrap();
        }),
        ("a deleted peer", |node, _| {
            let mut maps = Maps::open(node);
            let index = *maps.slots().keys().next().unwrap();
            maps.peers.remove(&index).unwrap();
        }),
        ("a deleted vtep", |node, peer| {
            Maps::open(node).vteps.remove(&VtepKey::new(peer.underlay().into())).unwrap();
        }),
        ("a deleted flood entry", |node, _| {
            Maps::open(node).flood.remove(&FloodPosition { position: 0 }).unwrap();
        }),
        ("a peer's slot that points elsewhere", |node, _| {
            let mut maps = Maps::open(node);
            let (index, mut entry) = maps.slots().pop_first().unwrap();
            entry.vtep[3] ^= 0x55;
            maps.peers.insert(index, entry, 0).unwrap();
        }),
    ];

    for (name, fault) in faults {
        settle();
        let before = Maps::open(node).content();
        let repairs = node.view().repairs();
        fault(node, peer);
        assert_ne!(Maps::open(node).content(), before, "{name} is no fault");
        let start = Instant::now();
        wait::until(name, UNREPORTED, || Maps::open(node).content() == before);
        println!("{name}: repaired after {:?}", start.elapsed());
        wait::until(name, Duration::from_secs(1), || node.view().repairs() > repairs);
        expect_traffic(&mesh, &containers);
    }
}

#[test]
fn without_looks_what_the_kernel_does_not_report_stays_undone() {
    require_root!();
    let mesh = Mesh::new(2);
    mesh.start_all(&["--without", "looks", "--converge-interval", "1m"]);
    let (node, peer) = (mesh.node(1), mesh.node(2));
    // Routes that come up late have a round of their own.
    std::thread::sleep(Duration::from_secs(3));

    Maps::open(node).vteps.remove(&VtepKey::new(peer.underlay().into())).unwrap();

    wait::stays("the mechanism is off", UNREPORTED, || Maps::open(node).vteps.iter().count() == 0);
}

#[test]
fn detached_programs_are_attached_again_and_the_door_stays_shut_meanwhile() {
    require_root!();
    let (mesh, containers) = mesh();
    let node = mesh.node(1);
    for pin in ["device_ingress", "device_egress", "bridge_egress"] {
        settle();
        let before = bpf::attachments(&node.namespace);
        let repairs = node.view().repairs();
        let id = bpf::id("link", &node.pins().join(pin)).to_string();
        exec::capture(exec::command("bpftool").args(["link", "detach", "id", &id]));

        // Another link: the one that was detached stays dead.
        let is_another = || {
            let path = node.pins().join(pin);
            path.exists() && bpf::id("link", &path).to_string() != id
        };
        let took = wait::until(pin, UNREPORTED, || {
            bpf::attachments(&node.namespace) == before && is_another()
        });

        println!("{pin}: attached again after {took:?}");
        wait::until(pin, Duration::from_secs(1), || node.view().repairs() > repairs);
        expect_traffic(&mesh, &containers);
    }
}

#[test]
fn mtu_follows_the_underlay_and_can_be_set() {
    require_root!();
    let mesh = Mesh::running(2);
    let node = mesh.node(1);
    settle();
    let repairs = node.view().repairs();

    for (underlay, overlay) in [(1400, 1350), (1500, 1450)] {
        node.namespace.ip(&format!("link set eth0 mtu {underlay}"));
        let took = wait::until("the overlay's MTU", REPORTED, || has_mtu(node, overlay));
        println!("underlay {underlay}: followed after {took:?}");
        node.wait_until("status shows it", REPORTED, |view| view.status()["mtu"] == overlay);
        assert!(Maps::open(node).slots().values().all(|peer| u64::from(peer.path_mtu) == overlay));
    }
    assert_eq!(node.view().repairs(), repairs, "a new underlay is no repair");
    assert!(node.namespace.pings(&mesh.node(2).overlay().to_string(), 1));

    node.stop();
    node.start(&["--mtu", "1300", "-j", &mesh.node(2).seed()]);
    mesh.wait_converged();
    assert!(has_mtu(node, 1300));
    node.namespace.ip("link set eth0 mtu 1450");
    wait::stays("--mtu holds", Duration::from_secs(2), || has_mtu(node, 1300));
}

#[test]
fn foreign_objects_are_left_alone() {
    require_root!();
    let mesh = Mesh::running(2);
    let node = mesh.node(1);
    node.namespace.ip("link add vx9 type vxlan id 9 dstport 4790 local 192.0.2.3\n\
         link add br9 type bridge\nlink set vx9 master br9\nlink set br9 mtu 1300");
    settle();
    let foreign = |node: &Node| (node.namespace.link("vx9"), node.namespace.link("br9"));
    let before = foreign(node);

    std::thread::sleep(Duration::from_secs(7));

    assert_eq!(foreign(node), before);
    assert_eq!(node.view().repairs(), 0);
    node.stop();
    assert_eq!(foreign(node), before);
}

fn mesh() -> (Mesh, [Container; 2]) {
    let mesh = Mesh::running(2);
    let containers = [mesh.node(1).container(1), mesh.node(2).container(1)];
    expect_traffic(&mesh, &containers);
    (mesh, containers)
}

/// Lets the rounds that a change has caused pass, so that a fault meets a daemon at rest.
fn settle() {
    std::thread::sleep(Duration::from_millis(300));
}

fn has_mtu(node: &Node, mtu: u64) -> bool {
    [DEVICE, BRIDGE]
        .iter()
        .all(|link| node.namespace.link(link).is_some_and(|link| link["mtu"] == mtu))
}

fn expect_repaired(node: &Node, fault: &str, repairs: u64, limit: Duration) -> Duration {
    let is_right = || {
        let (Some(device), Some(bridge)) =
            (node.namespace.link(DEVICE), node.namespace.link(BRIDGE))
        else {
            return false;
        };
        let up = |link: &serde_json::Value| {
            link["flags"].as_array().is_some_and(|flags| flags.contains(&"UP".into()))
        };
        device["master"] == BRIDGE
            && up(&device)
            && up(&bridge)
            && device["mtu"] == 1450
            && bridge["mtu"] == 1450
    };
    let start = Instant::now();
    wait::until(fault, limit, || is_right() && bpf::attachments(&node.namespace).len() == 3);
    let took = start.elapsed();
    wait::until("the repair is counted", Duration::from_secs(1), || {
        node.view().repairs() > repairs
    });
    took
}

fn expect_traffic(mesh: &Mesh, containers: &[Container; 2]) {
    let (host, peer) = (mesh.node(1), mesh.node(2));
    let reach = |limit| {
        wait::until("containers reach each other", limit, || {
            containers[0].namespace.pings(&containers[1].address().to_string(), 1)
        });
        wait::until("hosts reach each other", limit, || {
            host.namespace.pings(&peer.overlay().to_string(), 1)
        });
    };
    reach(Duration::from_secs(3));
}
