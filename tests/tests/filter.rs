//! The lock on the door: only members' frames of our network come in.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use marengo_tests::{
    Capture, Mesh, Namespace, Node,
    node::BRIDGE,
    packet::{self, BROADCAST},
    require_root, wait,
};

const COUNT: usize = 50;

#[test]
fn frames_of_strangers_and_of_other_networks_are_dropped_and_counted_by_reason() {
    require_root!();
    // Node 4 has no daemon.
    let mesh = Mesh::new(4);
    for number in 1..=3 {
        mesh.node(number).launch(&[], &["-j", &mesh.node(1).seed()]);
    }
    mesh.wait_converged();
    let (target, member, leaver, stranger) =
        (mesh.node(1), mesh.node(2), mesh.node(3), mesh.node(4));
    let container = target.container(1);
    let inside =
        [Capture::start(&target.namespace, BRIDGE), Capture::start(&container.namespace, "eth0")];
    let let_in = |text: &str| inside.iter().map(|capture| capture.received(text)).sum::<usize>();
    let drops = |reason: &str| target.view().drops(reason);
    let expect_dropped = |who: &Namespace, vni: u32, text: &str, reason: &str| {
        let before = drops(reason);
        send_vxlan(who, target.underlay(), vni, packet::station(50), text);
        wait::until(text, Duration::from_secs(3), || drops(reason) >= before + COUNT as u64);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(drops(reason), before + COUNT as u64, "{text}");
        assert_eq!(let_in(text), 0, "{text}");
        assert!(!knows(target, packet::station(50)), "{text}: learnt");
    };

    expect_dropped(&stranger.namespace, 1024, "a stranger", "unknown_vtep");
    expect_dropped(&mesh.router, 1024, "the router", "unknown_vtep");
    for vni in [0, 1, 1025, 0xff_ffff] {
        expect_dropped(&member.namespace, vni, &format!("vni {vni}"), "wrong_vni");
    }
    expect_dropped(&stranger.namespace, 1025, "a stranger with a wrong vni", "wrong_vni");
    leaver.stop();
    target.wait_until("node 3 has left", Duration::from_secs(2), |view| {
        view.peer("node-3").is_none()
    });
    expect_dropped(&leaver.namespace, 1024, "one who has left", "unknown_vtep");

    // Impossible senders: dropped by the program or by the kernel before it, never let in.
    for (text, source) in [("group", [1, 0, 0x5e, 0, 0, 9]), ("zeros", [0; 6])] {
        send_vxlan(&member.namespace, target.underlay(), 1024, source, text);
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(let_in(text), 0, "{text}");
    }

    // A member's frame comes in, is counted for that member, and teaches where the station is.
    let before = target.view().peer("node-2").unwrap()["rx_packets"].as_u64().unwrap();
    send_vxlan(&member.namespace, target.underlay(), 1024, packet::station(51), "a member");
    wait::until("a member's frames are let in", Duration::from_secs(3), || {
        inside[1].received("a member") == COUNT
    });
    let after = target.view().peer("node-2").unwrap()["rx_packets"].as_u64().unwrap();
    assert_eq!(after - before, COUNT as u64);
    assert!(knows(target, packet::station(51)));
}

#[test]
fn networks_with_other_numbers_stay_apart_on_the_same_underlay() {
    require_root!();
    let mesh = Mesh::new(4);
    for (number, cluster, vni) in
        [(1, "blue", "77"), (2, "blue", "77"), (3, "green", "78"), (4, "green", "78")]
    {
        let seed = mesh.node(if number < 3 { 1 } else { 3 }).seed();
        let args = ["--cluster", cluster, "--vni", vni, "-j", &seed];
        mesh.node(number).launch(&[], &args);
    }
    for node in mesh.nodes() {
        node.wait_until("it knows its cluster", Duration::from_secs(10), |view| {
            view.peer_names().len() == 1 && view.is_converged()
        });
        node.address_bridge();
    }
    assert_eq!(mesh.node(1).view().status()["vni"], 77);

    let reaches = |from: usize, to: usize| {
        mesh.node(from).namespace.pings(&mesh.node(to).overlay().to_string(), 1)
    };
    assert!(reaches(1, 2) && reaches(3, 4));
    assert!(!reaches(1, 3) && !reaches(4, 2));
}

#[test]
fn frames_go_by_another_vxlan_port_and_to_another_bridge_if_told_so() {
    require_root!();
    let mesh = Mesh::new(2);
    let cable = Capture::start(&mesh.router, &mesh.node(1).cable());
    for node in mesh.nodes() {
        let seed = mesh.node(1).seed();
        node.launch(&[], &["--vxlan-port", "4800", "--bridge", "blue", "-j", &seed]);
    }
    mesh.wait_converged();
    for node in mesh.nodes() {
        node.namespace.ip(&format!("addr add {}/24 dev blue", node.overlay()));
        assert!(node.namespace.link("ol-blue").is_some() && node.namespace.link(BRIDGE).is_none());
    }

    assert!(mesh.node(1).namespace.pings(&mesh.node(2).overlay().to_string(), 2));
    let on_port = |port| cable.count(|frame| packet::udp_payload(&frame.bytes, port).is_some());
    assert!(on_port(4800) >= 4 && on_port(packet::VXLAN_PORT) == 0);
}

/// Sends broadcasts of a station as somebody who speaks VXLAN.
fn send_vxlan(from: &Namespace, to: Ipv4Addr, vni: u32, source: [u8; 6], text: &str) {
    let packet = packet::vxlan(vni, &packet::marked(BROADCAST, source, text));
    from.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("any port will do");
        for _ in 0..COUNT {
            socket.send_to(&packet, (to, packet::VXLAN_PORT)).expect("there is a route");
        }
    });
}

fn knows(node: &Node, mac: [u8; 6]) -> bool {
    let bytes = mac.map(serde_json::Value::from).to_vec();
    node.bpftool_dump("macs").iter().any(|entry| entry["key"]["mac"].as_array() == Some(&bytes))
}
