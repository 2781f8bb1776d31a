//! Who is a member: joining by any address, crashing, coming back, leaving.

use std::{
    fs,
    net::IpAddr,
    time::{Duration, Instant},
};

use marengo_tests::{
    Mesh, bpf::Maps, exec, http, packet::Encapsulated, require_root, requirements, stream::stream,
    view::View, wait,
};

#[test]
fn seed_is_joined_by_any_of_its_addresses_and_by_names_that_change() {
    require_root!();
    let mesh = Mesh::new(4);
    let (seed, by_other, by_name, by_port) =
        (mesh.node(1), mesh.node(2), mesh.node(3), mesh.node(4));
    let second = "198.51.100.1";
    seed.namespace.ip(&format!("addr add {second}/32 dev lo"));
    mesh.router.ip(&format!("route add {second}/32 via {}", seed.underlay()));
    // The whole folder: a bare machine has no /etc/hosts that another one could be put upon.
    let etc = seed.folder().join("etc");
    exec::capture(exec::command("cp").arg("-a").arg("/etc").arg(&etc));
    let hosts = etc.join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let bind = format!("mount --bind {} /etc && exec \"$0\" \"$@\"", etc.display());
    let own_hosts = ["unshare", "--mount", "sh", "-c", &bind];

    seed.start(&[]);
    by_other.start(&["-j", &format!("{second}:7946")]);
    by_name.launch(&own_hosts, &["-j", "seed.marengo.test:7946"]);
    // Another port, and an unreachable seed before the right one.
    by_port.start(&["--bind-addr", "0.0.0.0:7000", "-j", "203.0.113.7:7946", "-j", &seed.seed()]);

    by_other.wait_until("it joined", Duration::from_secs(5), |view| view.alive().len() >= 3);
    by_port.wait_until("it joined", Duration::from_secs(5), |view| view.alive().len() >= 3);
    by_name.wait_answers();
    assert_eq!(by_name.view().alive(), ["node-3"]);

    // The name gets an address while the daemon runs.
    fs::write(&hosts, format!("127.0.0.1 localhost\n{second} seed.marengo.test\n")).unwrap();
    wait::until("the named seed is joined", Duration::from_secs(40), || {
        by_name.view().alive().len() == 4
    });
    mesh.wait_converged();
    // Whatever it was asked by, everybody knows the seed by the address that it advertises.
    for node in [by_other, by_name, by_port] {
        assert_eq!(member(node.view(), "node-1")["address"], seed.seed());
    }
    assert_eq!(member(seed.view(), "node-4")["address"], format!("{}:7000", by_port.underlay()));
}

#[test]
fn underlay_may_be_ipv6() {
    require_root!();
    let mesh = Mesh::new(3);
    let seed = format!("[{}]:7946", mesh.node(1).underlay6());
    for node in mesh.nodes() {
        let own = node.underlay6().to_string();
        let mut args = vec!["--advertise-addr", &own];
        if node.name() != "node-1" {
            args.extend(["-j", &seed]);
        }
        node.launch(&[], &args);
    }
    mesh.wait_converged();
    for node in mesh.nodes() {
        node.address_bridge();
        assert_eq!(node.view().status()["mtu"], 1430);
        assert_eq!(node.view().status()["vtep"], node.underlay6().to_string());
    }

    let cable = marengo_tests::Capture::start(&mesh.router, &mesh.node(1).cable());
    for node in [2, 3] {
        let (v4, v6) = (mesh.node(node).overlay(), mesh.node(node).overlay6());
        assert!(mesh.node(1).namespace.pings(&v4.to_string(), 2));
        assert!(mesh.node(1).namespace.pings(&v6.to_string(), 2));
    }
    // With checksums that somebody must fill in, and segments that somebody must cut.
    let (near, far) = (mesh.node(1).container(1), mesh.node(2).container(1));
    stream(&near.namespace, &far.namespace, far.address().into());
    stream(&far.namespace, &near.namespace, near.address6().into());
    let frames = cable.frames();
    let sent = frames.iter().filter(|frame| !frame.outgoing);
    let sources: Vec<IpAddr> =
        sent.filter_map(|frame| Some(Encapsulated::parse(&frame.bytes)?.source)).collect();
    let own = IpAddr::V6(mesh.node(1).underlay6());
    assert!(sources.len() >= 8 && sources.iter().all(|source| *source == own), "{sources:?}");
}

#[test]
fn vtep_on_the_loopback_device_and_a_wildcard_with_one_advertised_work() {
    require_root!();
    let mesh = Mesh::new(2);
    for (node, address) in mesh.nodes().zip(["198.51.100.1", "198.51.100.2"]) {
        node.namespace.ip(&format!("addr add {address}/32 dev lo"));
        mesh.router.ip(&format!("route add {address}/32 via {}", node.underlay()));
        let mut args = vec!["--bind-addr", "0.0.0.0", "--advertise-addr", address];
        if address != "198.51.100.1" {
            args.extend(["-j", "198.51.100.1:7946"]);
        }
        node.launch(&[], &args);
    }
    mesh.wait_converged();
    for (node, address) in mesh.nodes().zip(["198.51.100.1", "198.51.100.2"]) {
        assert_eq!(node.view().status()["vtep"], address);
        node.address_bridge();
    }

    assert!(mesh.node(1).namespace.pings(&mesh.node(2).overlay().to_string(), 2));
    let status = mesh.node(1).view().status();
    assert_eq!(
        status["mtu"], 1450,
        "the way to the peers counts, not the loopback device: {status}"
    );
}

#[test]
fn seed_that_is_unreachable_at_first_is_joined_when_it_is_there() {
    require_root!();
    let mesh = Mesh::new(2);
    mesh.node(2).start(&["-j", &mesh.node(1).seed()]);
    std::thread::sleep(Duration::from_secs(3));
    assert!(mesh.node(2).is_running());

    mesh.node(1).start(&[]);

    mesh.node(2).wait_until("it joined", Duration::from_secs(10), |view| {
        view.alive() == ["node-1", "node-2"]
    });
    let joined = mesh.node(2).log();
    assert!(joined.contains("event=member-up"), "{joined}");
}

#[test]
fn another_cluster_is_refused_in_a_sentence_that_names_both() {
    require_root!();
    let mesh = Mesh::new(2);
    let (one, two) = (mesh.node(1), mesh.node(2));
    one.start(&["--cluster", "blue"]);

    two.start(&["--cluster", "green", "-j", &one.seed()]);

    wait::until("a line about the refusal", Duration::from_secs(5), || {
        two.log().lines().any(|line| line.contains("blue") && line.contains("green"))
    });
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(one.view().alive(), ["node-1"]);
    assert_eq!(two.view().alive(), ["node-2"]);
    let lines = two.log().lines().filter(|line| line.contains("green")).count();
    assert!(lines <= 4, "the same refusal again and again: {}", two.log());

    // The exchange over HTTP tells it apart as well.
    let answer = http::raw_tcp(
        &two.namespace,
        one.listen_address(),
        b"GET /v1/node HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )
    .unwrap();
    assert_eq!(answer.json()["cluster"], "blue", "{}", answer.body);
}

#[test]
fn crashed_node_is_off_every_map_in_6_s_and_back_in_3_s_of_its_start() {
    require_root!();
    let mesh = Mesh::within(3, Duration::from_mins(10));
    mesh.start_all(&[]);
    let (one, two, three) = (mesh.node(1), mesh.node(2), mesh.node(3));
    let others = [Maps::open(one), Maps::open(two)];
    let vtep = IpAddr::V4(three.underlay());

    for run in 1..=requirements::runs(2) {
        three.kill();
        three.cut_link();
        let off = wait::until("node 3 is off every map", Duration::from_secs(10), || {
            others.iter().all(|maps| maps.lacks(vtep))
        });
        assert!(off <= Duration::from_secs(6), "run {run}: off after {off:?}");
        assert_eq!(one.view().state_of("node-3").as_deref(), Some("down"));
        assert!(one.view().peer("node-3").is_none());
        assert_eq!(others[0].flood_list().len(), 1);

        three.restore_link();
        // The same address, and no -j: it is the others who know it.
        let join = if run % 2 == 0 { vec![] } else { vec!["-j".to_owned(), one.seed()] };
        let join: Vec<&str> = join.iter().map(String::as_str).collect();
        let start = Instant::now();
        three.launch(&[], &join);
        wait::until("node 3 is back in every map", Duration::from_secs(20), || {
            others.iter().all(|maps| maps.has(vtep)) && three.pins().join("vteps").exists() && {
                let its = Maps::open(three);
                [one, two].iter().all(|node| its.has(IpAddr::V4(node.underlay())))
            }
        });
        let back = start.elapsed();
        println!("run {run}: off after {off:?}, back after {back:?}");
        // Without a seed it waits until the others try it again.
        let limit = if join.is_empty() { 10 } else { 3 };
        assert!(back <= Duration::from_secs(limit), "run {run}: back after {back:?}");
        assert!(one.namespace.pings(&three.overlay().to_string(), 1));
    }
}

#[test]
fn departure_is_known_everywhere_in_500_ms_and_arrival_is_in_the_maps_at_once() {
    require_root!();
    let mesh = Mesh::running(3);
    let (one, two, three) = (mesh.node(1), mesh.node(2), mesh.node(3));
    let others = [Maps::open(one), Maps::open(two)];
    let vtep = IpAddr::V4(three.underlay());
    for run in 1..=requirements::runs(3) {
        let start = Instant::now();
        three.signal(nix::sys::signal::Signal::SIGTERM);
        wait::until("node 3 is off every map", Duration::from_secs(5), || {
            others.iter().all(|maps| maps.lacks(vtep))
        });
        let left = start.elapsed();
        for node in [one, two] {
            assert_eq!(node.view().state_of("node-3").as_deref(), Some("left"));
        }
        assert!(left <= Duration::from_millis(500), "run {run}: left after {left:?}");
        assert!(three.wait_ended(Duration::from_secs(10)).success());

        three.launch(&[], &["-j", &one.seed()]);
        let mut event = None;
        let mut mapped = None;
        wait::until("node 3 is in the map", Duration::from_secs(5), || {
            if event.is_none() && one.view().state_of("node-3").as_deref() == Some("alive") {
                event = Some(Instant::now());
            }
            if mapped.is_none() && others[0].has(vtep) {
                mapped = Some(Instant::now());
            }
            event.is_some() && mapped.is_some()
        });
        let late = mapped.unwrap().saturating_duration_since(event.unwrap());
        println!("run {run}: left after {left:?}, mapped {late:?} after the event");
        assert!(late <= Duration::from_millis(500), "run {run}: mapped {late:?} after the event");
        mesh.wait_converged();
    }
}

#[test]
fn isolated_nodes_find_each_other_again_without_a_restart() {
    require_root!();
    let mesh = Mesh::running(3);
    let (one, three) = (mesh.node(1), mesh.node(3));
    // The seed itself is cut off: it was told of nobody, and must look for those it knew.
    one.cut_link();
    one.wait_until("it is alone", Duration::from_secs(15), |view| view.alive() == ["node-1"]);
    for node in [mesh.node(2), three] {
        node.wait_until("the others go on", Duration::from_secs(15), |view| {
            view.alive() == ["node-2", "node-3"] && view.peer("node-1").is_none()
        });
    }
    assert!(mesh.node(2).namespace.pings(&three.overlay().to_string(), 1));
    std::thread::sleep(Duration::from_secs(5));

    one.restore_link();

    let healed = wait::until("the split is healed", Duration::from_secs(15), || {
        mesh.nodes().all(|node| node.view().alive().len() == 3)
    });
    println!("healed after {healed:?}");
    mesh.wait_converged();
    assert!(one.namespace.pings(&three.overlay().to_string(), 1));
}

#[test]
fn daemon_that_is_paused_for_a_moment_or_loses_its_link_for_one_is_not_declared_down() {
    require_root!();
    let mesh = Mesh::running(3);
    let three = mesh.node(3);

    three.signal(nix::sys::signal::Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(1500));
    three.signal(nix::sys::signal::Signal::SIGCONT);
    std::thread::sleep(Duration::from_secs(2));
    three.cut_link();
    std::thread::sleep(Duration::from_millis(1500));
    three.restore_link();
    std::thread::sleep(Duration::from_secs(4));

    for node in mesh.nodes() {
        assert!(!node.log().contains("member-down"), "{}", node.log());
        assert_eq!(node.view().alive().len(), 3);
    }
    assert!(mesh.node(1).namespace.pings(&three.overlay().to_string(), 1));
}

#[test]
fn node_timeout_sets_how_soon_a_dead_node_is_off_the_maps() {
    require_root!();
    let mesh = Mesh::new(2);
    mesh.start_all(&["--node-timeout", "500ms"]);
    let maps = Maps::open(mesh.node(1));
    mesh.node(2).kill();
    mesh.node(2).cut_link();

    let off = wait::until("node 2 is off the map", Duration::from_secs(8), || {
        maps.lacks(mesh.node(2).underlay().into())
    });

    assert!(off <= Duration::from_secs(3), "off after {off:?}");
}

#[test]
fn whole_membership_is_exchanged_over_http_on_join_and_what_does_not_fit_is_named() {
    require_root!();
    let mesh = Mesh::new(2);
    let (one, two) = (mesh.node(1), mesh.node(2));
    let cable = marengo_tests::Capture::start(&mesh.router, &one.cable());
    one.start(&[]);
    two.start(&["-j", &one.seed()]);
    wait::until("an exchange on join", Duration::from_secs(3), || connections(&cable) >= 1);

    // What does not fit is refused with an answer that says what differs.
    let member = format!(
        r#"{{"name":"x","addr":"{0}:7946","vtep":"{0}","listen":"{0}:8080","generation":1,"data_plane":7,"incarnation":0,"state":"alive"}}"#,
        two.underlay()
    );
    let body = |protocol: u32, cluster: &str, from: &str| {
        format!(
            r#"{{"protocol":{protocol},"version":"9","cluster":"{cluster}","from":{from},"members":[]}}"#
        )
    };
    let unlike = [
        (body(2, "green", &member), ["marengo", "green"]),
        (body(99, "marengo", &member), ["protocol 2", "protocol 99"]),
        // One that speaks another protocol may describe its members in another way.
        (body(99, "marengo", "\"somebody\""), ["protocol 2", "protocol 99"]),
    ];
    for (body, words) in unlike {
        let request = format!(
            "POST /v1/sync HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer =
            http::raw_tcp(&two.namespace, one.listen_address(), request.as_bytes()).unwrap();
        assert_eq!(answer.status, 409, "{answer:?}");
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    assert_eq!(one.view().alive(), ["node-1", "node-2"]);
}

#[test]
fn whole_membership_is_exchanged_every_30_s() {
    require_root!();
    let mesh = Mesh::running(2);
    let cable = marengo_tests::Capture::start(&mesh.router, &mesh.node(1).cable());
    // Those of the join itself.
    std::thread::sleep(Duration::from_secs(4));
    cable.clear();

    let periodic =
        wait::until("a periodic exchange", Duration::from_secs(40), || connections(&cable) > 0);

    println!("the exchange came after {periodic:?}");
    assert_eq!(mesh.node(1).view().alive(), ["node-1", "node-2"]);
}

#[test]
fn peers_beyond_the_maps_room_are_named_and_enter_when_there_is_room() {
    require_root!();
    let mesh = Mesh::new(3);
    let (one, two, three) = (mesh.node(1), mesh.node(2), mesh.node(3));
    one.start(&["--max-peers", "1"]);
    two.start(&["-j", &one.seed()]);
    one.wait_until("node 2 is in", Duration::from_secs(5), |view| view.peer_names() == ["node-2"]);

    three.start(&["-j", &one.seed()]);

    one.wait_until("node 3 is named as one without a slot", Duration::from_secs(5), |view| {
        view.status()["peers_without_slot"] == serde_json::json!(["node-3"])
    });
    assert_eq!(one.view().peer_names(), ["node-2"]);
    two.stop();
    one.wait_until("node 3 has the slot", Duration::from_secs(5), |view| {
        view.peer_names() == ["node-3"]
            && view.status()["peers_without_slot"] == serde_json::json!([])
    });
}

fn member(view: View<'_>, name: &str) -> serde_json::Value {
    let members = view.members();
    let member = members.iter().find(|member| member["name"] == name).cloned();
    member.unwrap_or_else(|| panic!("no {name} in {members:?}"))
}

/// TCP connections to a node's HTTP service that were begun.
fn connections(cable: &marengo_tests::Capture) -> usize {
    cable.count(|frame| {
        let tcp = frame.bytes.get(34..).unwrap_or_default();
        frame.bytes.get(12..14) == Some(&[0x08, 0x00])
            && frame.bytes.get(23) == Some(&6)
            && tcp.get(2..4) == Some(&8080_u16.to_be_bytes())
            // The first packet: SYN, and no ACK.
            && tcp.get(13).is_some_and(|flags| flags & 0x12 == 0x02)
    })
}
