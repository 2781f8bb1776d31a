//! One Ethernet segment: who reaches whom, by which way, and how often.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use marengo_tests::{
    Capture, Container, Mesh,
    bpf::{self, Attachment},
    node::{BRIDGE, DEVICE},
    packet::{self, BROADCAST, Encapsulated},
    packet_socket::PacketSocket,
    require_root,
    stream::stream,
    wait,
};

/// The group of all hosts (RFC 1112): every bridge floods it, whatever it has snooped.
const ALL_HOSTS: [u8; 6] = [0x01, 0x00, 0x5e, 0, 0, 1];
/// A group that nobody has joined.
const SOME_GROUP: [u8; 6] = [0x01, 0x00, 0x5e, 0x7f, 0, 7];
/// The group of all IPv6 nodes.
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

#[test]
fn every_host_and_container_reaches_every_other_in_both_families() {
    require_root!();
    let mesh = Mesh::running(3);
    let containers: Vec<Container> = mesh.nodes().map(|node| node.container(1)).collect();
    let mut ends: Vec<_> = mesh
        .nodes()
        .map(|node| {
            (node.name(), &node.namespace, node.overlay().to_string(), node.overlay6().to_string())
        })
        .collect();
    ends.extend(containers.iter().map(|container| {
        let name = container.namespace.name().to_owned();
        let (v4, v6) = (container.address().to_string(), container.address6().to_string());
        (name, &container.namespace, v4, v6)
    }));

    // Nobody knows anybody's MAC address yet: each first packet needs ARP, or ND.
    for (from, namespace, ..) in &ends {
        for (to, _, v4, v6) in ends.iter().filter(|(to, ..)| to != from) {
            assert!(namespace.pings(v4, 1), "{from} does not reach {to} at {v4}");
            assert!(namespace.pings(v6, 1), "{from} does not reach {to} at {v6}");
        }
    }

    // Full-size packets that nobody may cut, through the overlay's MTU and not a byte more.
    let mtu = mesh.node(1).namespace.link(BRIDGE).unwrap()["mtu"].as_u64().unwrap();
    assert_eq!(mtu, 1450);
    assert_eq!(mesh.node(1).namespace.link(DEVICE).unwrap()["mtu"], 1450);
    let largest = |size: u64| {
        let to = containers[1].address();
        let line = format!("ping -n -c 2 -i 0.2 -W 1 -M do -s {} {to}", size - 28);
        let mut command = containers[0].namespace.command("sh");
        marengo_tests::exec::capture_any(command.args(["-c", &line]), Duration::from_secs(9))
    };
    assert!(largest(mtu).status.success());
    assert!(!largest(mtu + 1).status.success());
}

#[test]
fn frames_for_everybody_reach_everybody_exactly_once_and_never_come_back() {
    require_root!();
    let mesh = Mesh::running(3);
    let containers: Vec<Container> =
        mesh.nodes().flat_map(|node| [node.container(1), node.container(2)]).collect();
    wait_until_ports_forward(&containers);
    let at_containers: Vec<Capture> =
        containers.iter().map(|c| Capture::start(&c.namespace, "eth0")).collect();
    let at_bridges: Vec<Capture> =
        mesh.nodes().map(|node| Capture::start(&node.namespace, BRIDGE)).collect();

    for (kind, destination) in [
        ("broadcast", BROADCAST),
        ("multicast", ALL_HOSTS),
        ("multicast6", ALL_NODES),
        ("group", SOME_GROUP),
        ("unknown", packet::station(99)),
    ] {
        // From a container, and from a host's own stack.
        let from_container = PacketSocket::open(&containers[0].namespace, "eth0");
        let from_host = PacketSocket::open(&mesh.node(2).namespace, BRIDGE);
        let (one, two) = (format!("{kind} one"), format!("{kind} two"));
        for _ in 0..10 {
            from_container.send(&packet::marked(destination, packet::station(1), &one));
            from_host.send(&packet::marked(destination, packet::station(2), &two));
        }

        let last = at_containers.last().unwrap();
        wait::until(kind, Duration::from_secs(3), || {
            last.received(&one) >= 10 && last.received(&two) >= 10
        });
        // Time for what should not be there.
        std::thread::sleep(Duration::from_millis(200));
        for (number, capture) in at_containers.iter().enumerate() {
            let expected = if number == 0 { 0 } else { 10 };
            assert_eq!(capture.received(&one), expected, "{one} at container {number}");
            assert_eq!(capture.received(&two), 10, "{two} at container {number}");
        }
        if kind != "unknown" {
            for (number, capture) in at_bridges.iter().enumerate() {
                let expected = if number == 1 { 0 } else { 10 };
                assert_eq!(capture.received(&one), 10, "{one} at bridge {number}");
                assert_eq!(capture.received(&two), expected, "{two} at bridge {number}");
            }
        }
    }
}

#[test]
fn known_stations_frames_go_to_their_node_alone_and_from_the_advertised_address() {
    require_root!();
    let mesh = Mesh::running(3);
    let (from, to) = (mesh.node(1).container(1), mesh.node(2).container(1));
    assert!(from.namespace.pings(&to.address().to_string(), 2));
    assert!(mesh.node(1).namespace.pings(&mesh.node(2).overlay().to_string(), 2));
    let mac = |container: &Container| -> [u8; 6] {
        let link = container.namespace.link("eth0").unwrap();
        let text = link["address"].as_str().unwrap().to_owned();
        let bytes: Vec<u8> =
            text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    };
    let cables: Vec<Capture> =
        mesh.nodes().map(|node| Capture::start(&mesh.router, &node.cable())).collect();

    let sender = PacketSocket::open(&from.namespace, "eth0");
    for _ in 0..20 {
        sender.send(&packet::marked(mac(&to), mac(&from), "unicast"));
    }
    assert!(mesh.node(1).namespace.pings(&mesh.node(2).overlay().to_string(), 3));
    sender.send(&packet::marked(BROADCAST, mac(&from), "the last"));
    wait::until("the last frame at node 3", Duration::from_secs(2), || {
        cables[2].carried("the last") == 1
    });

    assert_eq!(cables[0].carried("unicast"), 20);
    assert_eq!(cables[1].carried("unicast"), 20);
    assert_eq!(cables[2].carried("unicast"), 0, "node 3 saw frames for node 2");
    for (number, cable) in (1..).zip(&cables) {
        let own = IpAddr::V4(mesh.node(number).underlay());
        for frame in cable.frames().iter().filter(|frame| !frame.outgoing) {
            if let Some(outer) = Encapsulated::parse(&frame.bytes) {
                assert_eq!(outer.source, own, "the outer source of node {number}");
                assert_eq!(outer.vni, 1024);
            }
        }
    }
}

#[test]
fn streams_pass_whole_in_both_directions_between_hosts_and_containers() {
    require_root!();
    let mesh = Mesh::running(2);
    let (one, two) = (mesh.node(1), mesh.node(2));
    let (near, far) = (one.container(1), two.container(1));

    // Segments larger than the MTU are cut by whoever sends them on: no probe of single packets
    // sees that.
    for (from, to, address) in [
        (&near.namespace, &far.namespace, IpAddr::V4(far.address())),
        (&far.namespace, &near.namespace, IpAddr::V6(near.address6())),
        (&one.namespace, &two.namespace, IpAddr::V4(two.overlay())),
        (&two.namespace, &near.namespace, IpAddr::V4(near.address())),
        (&near.namespace, &two.namespace, IpAddr::V6(two.overlay6())),
    ] {
        let took = stream(from, to, address);
        println!("{} to {address}: {took:?}", from.name());
        assert!(took < Duration::from_secs(5), "{} to {address}: {took:?}", from.name());
    }
}

#[test]
fn station_that_moves_to_another_node_is_followed() {
    require_root!();
    let mesh = Mesh::running(3);
    let cables: Vec<Capture> =
        mesh.nodes().map(|node| Capture::start(&mesh.router, &node.cable())).collect();
    let ports: Vec<PacketSocket> =
        mesh.nodes().map(|node| PacketSocket::open(&node.container(1).namespace, "eth0")).collect();
    let (station, sender) = (packet::station(7), packet::station(8));
    let expect_at = |home: usize, text: &str| {
        ports[home].send(&packet::marked(BROADCAST, station, &format!("{text} hello")));
        wait::until("node 3 hears it", Duration::from_secs(2), || {
            cables[2].carried(&format!("{text} hello")) > 0
        });
        for _ in 0..10 {
            ports[2].send(&packet::marked(station, sender, text));
        }
        wait::until(text, Duration::from_secs(2), || cables[home].carried(text) == 10);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(cables[1 - home].carried(text), 0, "{text}: sent to its former node as well");
    };

    expect_at(0, "at node 1");
    expect_at(1, "at node 2");
    // Sooner, its frame would be taken for a late one from before the move (`moves.rs`).
    std::thread::sleep(Duration::from_millis(300));
    expect_at(0, "at node 1 again");
}

#[test]
fn stations_of_one_that_left_are_never_sent_to_its_successor_alone() {
    require_root!();
    let mesh = Mesh::new(4);
    for number in 1..=3 {
        mesh.node(number).launch(&[], &["-j", &mesh.node(1).seed()]);
    }
    mesh.wait_converged();
    let (one, leaver, heir) = (mesh.node(1), mesh.node(3), mesh.node(4));
    let near = PacketSocket::open(&one.container(1).namespace, "eth0");
    let far = PacketSocket::open(&leaver.container(1).namespace, "eth0");
    let station = packet::station(7);
    far.send(&packet::marked(BROADCAST, station, "hello"));
    let index = |name: &str| one.view().peer(name).map(|peer| peer["index"].clone());
    wait::until("the station is known", Duration::from_secs(2), || {
        !one.bpftool_dump("macs").is_empty()
    });
    let slot = index("node-3").unwrap();

    leaver.stop();
    one.wait_until("node 3 is gone", Duration::from_secs(3), |view| view.peer("node-3").is_none());
    heir.start(&["-j", &one.seed()]);
    one.wait_until("node 4 is there", Duration::from_secs(5), |view| view.peer("node-4").is_some());
    assert_eq!(index("node-4"), Some(slot), "the slot is used again");

    let cables = [2, 4].map(|n| Capture::start(&mesh.router, &mesh.node(n).cable()));
    near.send(&packet::marked(station, packet::station(8), "to whom"));
    wait::until("it is flooded", Duration::from_secs(2), || {
        cables.iter().all(|cable| cable.carried("to whom") == 1)
    });
}

#[test]
fn outer_source_is_the_advertised_address_though_the_kernel_would_choose_another() {
    require_root!();
    let mesh = Mesh::new(2);
    let (one, two) = (mesh.node(1), mesh.node(2));
    // The second address of each is the one that is advertised; routes prefer the first.
    for (node, address) in [(one, "198.51.100.1"), (two, "198.51.100.2")] {
        node.namespace.ip(&format!("addr add {address}/32 dev eth0"));
        mesh.router.ip(&format!(
            "route add {address}/32 via {} dev {}",
            node.underlay(),
            node.cable()
        ));
    }
    let cable = Capture::start(&mesh.router, &one.cable());
    one.start(&["--advertise-addr", "198.51.100.1"]);
    two.start(&["--advertise-addr", "198.51.100.2", "-j", "198.51.100.1:7946"]);
    mesh.wait_converged();
    one.address_bridge();
    two.address_bridge();

    assert!(one.namespace.pings(&two.overlay().to_string(), 2));

    let sources: Vec<IpAddr> = cable
        .frames()
        .iter()
        .filter_map(|frame| Encapsulated::parse(&frame.bytes).map(|outer| outer.source))
        .collect();
    let advertised = ["198.51.100.1", "198.51.100.2"].map(|text| text.parse().unwrap());
    assert!(sources.len() >= 4, "{sources:?}");
    assert!(sources.iter().all(|source| advertised.contains(source)), "{sources:?}");
}

#[test]
fn programs_are_visible_at_the_bridge_and_at_its_port() {
    require_root!();
    let mesh = Mesh::running(2);

    let attachments = bpf::attachments(&mesh.node(1).namespace);
    assert_eq!(
        attachments.iter().map(Attachment::names).collect::<Vec<_>>(),
        [
            (BRIDGE, "egress", "marengo_egress"),
            (DEVICE, "egress", "marengo_egress"),
            (DEVICE, "ingress", "marengo_ingress"),
        ]
    );
    let shown: serde_json::Value =
        serde_json::from_str(&mesh.node(1).namespace.run("bpftool --json link show")).unwrap();
    for attachment in &attachments {
        let links = shown.as_array().unwrap().iter();
        let links = links.filter(|link| link["prog_id"] == attachment.program_id).count();
        assert!(links > 0, "`bpftool link` does not show {attachment:?}: {shown}");
    }
    let links = mesh.node(1).namespace.link(DEVICE).unwrap();
    assert_eq!(links["linkinfo"]["info_kind"], "vxlan");
    assert_eq!(links["master"], BRIDGE);
    let devices = mesh.node(1).namespace.run("ip -json -details link show type vxlan");
    let devices: serde_json::Value = serde_json::from_str(&devices).unwrap();
    assert_eq!(devices.as_array().unwrap().len(), 1, "one device, whatever the number of peers");
}

#[test]
fn maps_are_read_by_people() {
    require_root!();
    let mesh = Mesh::running(2);
    let (one, two) = (mesh.node(1), mesh.node(2));
    assert!(one.namespace.pings(&two.overlay().to_string(), 2));

    let text = one
        .namespace
        .run(&format!("bpftool map dump pinned {}", one.pins().join("peers").display()));
    for word in ["vtep", "generation", "state", "192"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let peers = one.bpftool_dump("peers");
    let vtep: Vec<u64> = peers[0]["value"]["vtep"]
        .as_array()
        .unwrap()
        .iter()
        .take(4)
        .map(|byte| byte.as_u64().unwrap())
        .collect();
    assert_eq!(vtep, two.underlay().octets().map(u64::from));
    assert!(peers[0]["value"]["generation"].as_u64().unwrap() > 0);
    assert_eq!(peers[0]["value"]["state"], 1);
    let macs = one.bpftool_dump("macs");
    assert!(macs.iter().any(|mac| mac["key"]["vni"] == 1024), "{macs:?}");
    for (map, field) in [("vteps", "peer"), ("flood", "peers"), ("settings", "abi_version")] {
        assert!(!one.bpftool_dump(map)[0]["value"][field].is_null(), "{map} has no {field}");
    }
    for (map, field) in [("stats", "tx_packets"), ("drops", "packets")] {
        let dump = one.bpftool_dump(map);
        let values = dump[0]["values"].as_array().unwrap();
        assert!(!values[0]["value"][field].is_null(), "{map} has no {field}: {dump:?}");
    }
    // As every map has a name of its own.
    assert!(one.namespace.run("bpftool map show name marengo_peers").contains("marengo_peers"));

    let peer = one.view().peer("node-2").unwrap();
    assert!(peer["tx_packets"].as_u64().unwrap() >= 2, "{peer}");
    assert!(peer["rx_bytes"].as_u64().unwrap() >= 100, "{peer}");
}

/// A new port of a bridge forwards when its carrier was noticed.
fn wait_until_ports_forward(containers: &[Container]) {
    let start = Instant::now();
    let (first, rest) = containers.split_first().expect("there are some");
    for container in rest {
        assert!(first.namespace.pings(&container.address().to_string(), 1));
    }
    assert!(start.elapsed() < Duration::from_secs(10));
}
