//! The harness itself: what it promises to tests must hold, or they prove nothing.

use std::{
    net::Ipv4Addr,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use marengo_tests::{
    Capture, Mesh, Probe,
    link_events::LinkEvents,
    packet::{self, BROADCAST},
    packet_socket::PacketSocket,
    require_root, wait,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[test]
fn underlay_routes_both_families_between_nodes_and_a_cut_cable_cuts_one_node() {
    require_root!();
    let mesh = Mesh::new(3);
    let (one, two, three) = (mesh.node(1), mesh.node(2), mesh.node(3));

    assert!(one.namespace.pings(&two.underlay().to_string(), 1));
    assert!(one.namespace.pings(&two.underlay6().to_string(), 1));

    let whole = Probe::start(&one.namespace, &two.namespace, two.underlay());
    let cut = Probe::start(&one.namespace, &three.namespace, three.underlay());
    thread::sleep(Duration::from_millis(400));
    three.cut_link();
    thread::sleep(Duration::from_millis(400));
    three.restore_link();
    let (whole, cut) = (whole.finish(), cut.finish());

    assert!(whole.sent >= 700 && whole.lost == 0 && whole.duplicates == 0, "{whole:?}");
    let (first, _) = cut.lost_between.unwrap();
    assert!(cut.lost >= 200 && first >= Duration::from_millis(300), "{cut:?}");
    assert!(one.namespace.pings(&three.underlay6().to_string(), 1));
}

#[test]
fn cap_holds_what_a_node_sends() {
    require_root!();
    let mesh = Mesh::new(2);
    let (from, to) = (mesh.node(1), mesh.node(2));
    let socket = from.namespace.inside(|| {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.connect((to.underlay(), 9)).unwrap();
        socket
    });
    let bytes = |device: &str| {
        let text = mesh.router.run(&format!("ip -json -s link show dev {device}"));
        let links: serde_json::Value = serde_json::from_str(&text).unwrap();
        links[0]["stats64"]["rx"]["bytes"].as_u64().unwrap()
    };

    let (before, start) = (bytes(&from.cable()), Instant::now());
    while start.elapsed() < Duration::from_millis(600) {
        socket.send(&[0; 1400]).ok();
    }
    let bits = u128::from(bytes(&from.cable()) - before) * 8;
    let megabits = bits * 1000 / start.elapsed().as_nanos();

    assert!((10..450).contains(&megabits), "{megabits} Mbit/s");
}

#[test]
fn capture_and_link_events_see_what_passes_and_what_changes() {
    require_root!();
    let mesh = Mesh::new(1);
    let node = mesh.node(1);
    let events = LinkEvents::listen(&node.namespace);
    assert_eq!(events.during(Duration::from_millis(100)), []);

    node.namespace.ip("link add marengo type bridge\nlink set marengo up");
    let container = node.container(1);
    let events = events.during(Duration::from_millis(100));
    assert!(events.iter().any(|event| event.is_up("marengo")), "{events:?}");

    let on_bridge = Capture::start(&node.namespace, "marengo");
    let frame = packet::marked(BROADCAST, packet::station(1), "hello");
    PacketSocket::open(&container.namespace, "eth0").send(&frame);
    on_bridge.wait_for("the frame", Duration::from_secs(2), |frame| {
        packet::is_marked(&frame.bytes, "hello")
    });
    assert_eq!(on_bridge.received("hello"), 1);
}

/// Set for the child of the next test, which makes something and waits for its end.
const CHILD: &str = "MARENGO_TESTS_CHILD";

#[test]
fn nothing_is_left_when_the_test_process_is_interrupted_or_killed() {
    require_root!();
    if std::env::var_os(CHILD).is_some() {
        let mesh = Mesh::new(1);
        mesh.node(1).namespace.command("sleep").arg("60").status().unwrap();
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--test-threads=1"])
            .arg("nothing_is_left_when_the_test_process_is_interrupted_or_killed")
            .env(CHILD, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        wait::until("the child's namespaces", Duration::from_secs(10), || {
            left_of(pid).iter().any(|name| name.ends_with("-1-1"))
        });
        thread::sleep(Duration::from_millis(300));

        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
        child.wait().unwrap();

        wait::until("its end", Duration::from_secs(10), || left_of(pid).is_empty());
    }
}

#[test]
fn nothing_is_left_when_a_mesh_is_dropped_or_a_test_panics() {
    require_root!();
    let namespaces = || -> Vec<String> {
        let names = left_of(std::process::id()).into_iter();
        names.filter(|name| name.starts_with("mgo-")).collect()
    };

    let mesh = Mesh::new(1);
    assert_eq!(namespaces().len(), 2);
    let mut sleeper = mesh.node(1).namespace.command("sleep").arg("1000").spawn().unwrap();
    drop(mesh);
    assert_eq!(namespaces(), Vec::<String>::new());
    assert!(!sleeper.wait().unwrap().success());

    let panicked = thread::spawn(|| {
        let _mesh = Mesh::new(1);
        panic!("on purpose: what follows in the output is the harness's own test");
    });
    assert!(panicked.join().is_err());
    assert_eq!(namespaces(), Vec::<String>::new());
}

/// Namespaces and folders of a test process.
fn left_of(pid: u32) -> Vec<String> {
    let folders = ["/run/netns", "/run", "/sys/fs/bpf"];
    let entries = folders.into_iter().filter_map(|folder| std::fs::read_dir(folder).ok());
    let names =
        entries.flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| {
            name.starts_with(&format!("mgo-t{pid}-")) || *name == format!("marengo-t{pid}")
        })
        .collect()
}
