//! Start, stop, death, return: what stays, what goes, and that the door is never open.

use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use marengo_tests::{
    HostState, Mesh, Node, Probe,
    bpf::{self, Maps},
    link_events::LinkEvents,
    node::{BRIDGE, DEVICE},
    packet::{self, BROADCAST},
    require_root, wait,
};
use nix::sys::signal::Signal;

const MAPS: [&str; 7] = ["settings", "peers", "vteps", "macs", "flood", "stats", "drops"];

#[test]
fn sigterm_removes_what_the_daemon_made_and_leaves_what_is_the_users() {
    require_root!();
    let mesh = Mesh::running(2);
    let node = mesh.node(1);
    let container = node.container(1);
    assert!(container.namespace.pings(&mesh.node(2).overlay().to_string(), 1));
    let bridge = |node: &Node| {
        let addresses = node.namespace.run(&format!("ip -br address show dev {BRIDGE}"));
        let link = node.namespace.link(BRIDGE).unwrap();
        let port = node.namespace.link(&container.port).unwrap();
        let flags = link["flags"].clone();
        (link["ifindex"].clone(), link["address"].clone(), flags, port["master"].clone(), addresses)
    };
    let before = bridge(node);

    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let devices = node.namespace.devices();
        node.signal(signal);
        assert_eq!(node.wait_ended(Duration::from_secs(5)).code(), Some(0), "{signal}");

        assert_eq!(node.namespace.link(DEVICE), None);
        assert_eq!(bpf::attachments(&node.namespace), []);
        assert!(!node.pins().exists(), "the pin directory is still there");
        assert!(!node.socket().exists(), "the socket is still there");
        assert_eq!(bridge(node), before);
        let left: Vec<String> = devices.into_iter().filter(|name| name != DEVICE).collect();
        assert_eq!(node.namespace.devices(), left);
        assert!(
            container.namespace.pings(&node.overlay().to_string(), 1),
            "the bridge still works"
        );

        node.start(&["-j", &mesh.node(2).seed()]);
        mesh.wait_converged();
        assert!(container.namespace.pings(&mesh.node(2).overlay().to_string(), 1));
    }

    let long: Vec<String> =
        node.log().lines().filter(|line| line.len() > 500).map(str::to_owned).collect();
    assert_eq!(long, Vec::<String>::new(), "log lines that nobody reads");
}

#[test]
fn sigkill_costs_no_packet_and_the_next_start_takes_over_maps_and_device() {
    require_root!();
    let mesh = Mesh::running(3);
    let (one, two) = (mesh.node(1), mesh.node(2));
    let (from, to) = (one.container(1), two.container(1));
    assert!(from.namespace.pings(&to.address().to_string(), 2));
    let ids = || MAPS.map(|map| bpf::id("map", &one.pins().join(map)));
    let (maps, device) = (ids(), one.namespace.ifindex(DEVICE));
    let slots = Maps::open(one).slots();
    let generations = |node: &Node| -> Vec<u32> {
        Maps::open(node).slots().values().map(|p| p.generation).collect()
    };
    let stamps = generations(one);

    let probe = Probe::start(&from.namespace, &to.namespace, to.address());
    std::thread::sleep(Duration::from_millis(300));
    one.kill();
    assert_eq!(bpf::attachments(&one.namespace).len(), 3, "the programs stay");
    assert_eq!(one.cli(&["status"]).code, Some(3));
    std::thread::sleep(Duration::from_millis(700));
    one.start(&["-j", &two.seed()]);
    mesh.wait_converged();
    std::thread::sleep(Duration::from_millis(500));
    let outcome = probe.finish();

    assert_eq!((outcome.lost, outcome.duplicates), (0, 0), "{outcome:?}");
    assert_eq!(ids(), maps, "the maps are the same ones");
    assert_eq!(one.namespace.ifindex(DEVICE), device, "the device is the same one");
    assert_eq!(Maps::open(one).slots(), slots, "and so are the peers' slots");
    assert_eq!(generations(one), stamps);
    assert_eq!(bpf::attachments(&one.namespace).len(), 3);
    assert!(from.namespace.pings(&to.address().to_string(), 1));
}

#[test]
fn killed_daemon_whose_peer_left_meanwhile_forgets_it_when_it_is_back() {
    require_root!();
    let mesh = Mesh::running(3);
    let (one, two, three) = (mesh.node(1), mesh.node(2), mesh.node(3));
    one.kill();
    three.stop();

    one.start(&["-j", &two.seed()]);

    let maps = Maps::open(one);
    wait::until("only node 2 is left in the maps", Duration::from_secs(20), || {
        maps.has(two.underlay().into()) && maps.lacks(three.underlay().into())
    });
    one.wait_until("it converged", Duration::from_secs(5), |view| {
        view.is_converged() && view.peer_names() == ["node-2"]
    });
}

#[test]
fn peers_arrival_and_departure_change_maps_and_nothing_else() {
    require_root!();
    let mesh = Mesh::new(4);
    let (one, two) = (mesh.node(1), mesh.node(2));
    one.start(&[]);
    two.start(&["-j", &one.seed()]);
    mesh.wait_converged();
    one.address_bridge();
    let link_ids = || {
        ["device_ingress", "device_egress", "bridge_egress"]
            .map(|pin| bpf::id("link", &one.pins().join(pin)))
    };
    let events = LinkEvents::listen(&one.namespace);
    wait::until("the kernel reports nothing", Duration::from_secs(10), || {
        events.during(Duration::from_secs(1)).is_empty()
    });
    let (attachments, links) = (bpf::attachments(&one.namespace), link_ids());
    let host = HostState::of(one);
    let maps = Maps::open(one);

    for node in [mesh.node(3), mesh.node(4)] {
        node.start(&["-j", &one.seed()]);
    }
    mesh.wait_converged();
    assert_eq!(maps.slots().len(), 3);
    assert_eq!(maps.flood_list().len(), 3);
    mesh.node(3).stop();
    mesh.node(4).kill();
    mesh.node(4).cut_link();
    wait::until("both are off the maps", Duration::from_secs(8), || maps.slots().len() == 1);

    assert_eq!(events.during(Duration::from_millis(500)), [], "what the kernel reported");
    assert_eq!(bpf::attachments(&one.namespace), attachments);
    assert_eq!(link_ids(), links);
    host.expect_unchanged(one);
    assert_eq!(one.view().repairs(), 0);
}

#[test]
fn kernels_without_tcx_get_clsact_filters() {
    require_root!();
    let mesh = Mesh::new(2);
    mesh.start_all(&["--attach", "clsact"]);
    let (one, two) = (mesh.node(1), mesh.node(2));
    let (from, to) = (one.container(1), two.container(1));
    let filters = |node: &Node| {
        [(DEVICE, "ingress"), (DEVICE, "egress"), (BRIDGE, "egress")].map(|(link, hook)| {
            let text = node.namespace.run(&format!("tc filter show dev {link} {hook}"));
            text.lines().filter(|line| line.contains("marengo_")).count()
        })
    };
    assert_eq!(filters(one), [1, 1, 1]);
    assert_eq!(bpf::attachments(&one.namespace), []);
    assert_eq!(one.view().status()["attach"], "clsact");
    let reach = || {
        assert!(from.namespace.pings(&to.address().to_string(), 1));
        assert!(one.namespace.pings(&two.overlay().to_string(), 1));
    };
    reach();

    // Adoption without a lost packet.
    let probe = Probe::start(&from.namespace, &to.namespace, to.address());
    one.kill();
    std::thread::sleep(Duration::from_millis(300));
    one.start(&["--attach", "clsact", "-j", &two.seed()]);
    mesh.wait_converged();
    std::thread::sleep(Duration::from_millis(300));
    let outcome = probe.finish();
    assert_eq!((outcome.lost, outcome.duplicates), (0, 0), "{outcome:?}");
    assert_eq!(filters(one), [1, 1, 1]);

    // Repair.
    one.namespace.run(&format!("tc filter del dev {DEVICE} ingress"));
    wait::until("the filter is back", Duration::from_millis(6500), || filters(one) == [1, 1, 1]);
    reach();

    one.stop();
    assert_eq!(one.namespace.link(DEVICE), None);
    let left = one.namespace.run(&format!("tc filter show dev {BRIDGE} egress"));
    assert_eq!(left.trim(), "");
    assert!(!one.pins().exists());
}

/// The order of the daemon's own system calls: nothing else can open the device.
#[test]
fn device_goes_up_after_the_ingress_program_is_there_and_down_before_it_goes() {
    require_root!();
    let mesh = Mesh::new(1);
    let node = mesh.node(1);
    let trace = node.folder().join("trace");
    let path = trace.display().to_string();
    let strace = ["strace", "-D", "-f", "-s", "300", "-e", "signal=none", "-o", &path, "-e"];
    let strace = [&strace[..], &["trace=bpf,sendto,sendmsg,unlink,unlinkat"]].concat();

    node.launch(&strace, &[]);
    node.wait_answers();
    node.wait_until("it converged", Duration::from_secs(10), |view| view.is_converged());
    node.stop();

    let text = fs::read_to_string(&trace).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let ours = format!("if_nametoindex(\"{DEVICE}\")");
    let at = |wanted: &dyn Fn(&str) -> bool| -> Vec<usize> {
        lines.iter().enumerate().filter(|(_, line)| wanted(line)).map(|(at, _)| at).collect()
    };
    let attached = at(&|line| {
        line.contains("BPF_LINK_CREATE")
            && (line.contains("attach_type=0x2e") || line.contains("BPF_TCX_INGRESS"))
            && !line.contains("= -1")
    });
    let made = at(&|line| line.contains("NLM_F_CREATE") && line.contains(DEVICE));
    let up = at(&|line| {
        line.contains("RTM_NEWLINK") && line.contains(&ours) && line.contains("ifi_flags=IFF_UP")
    });
    let down = at(&|line| {
        line.contains("RTM_DELLINK") && line.contains(&ours)
            || line.contains("RTM_NEWLINK")
                && line.contains(&ours)
                && line.contains("ifi_flags=0, ifi_change=0x1")
    });
    let detached = at(&|line| {
        line.contains("BPF_LINK_DETACH")
            || line.contains("unlink") && line.contains("device_ingress") && line.contains("= 0")
    });
    assert!(
        [&made, &attached, &up, &down, &detached].iter().all(|found| !found.is_empty()),
        "made {made:?}, attached {attached:?}, up {up:?}, down {down:?}, detached {detached:?}\n{text}"
    );
    assert!(made[0] < attached[0] && attached[0] < up[0], "{made:?} {attached:?} {up:?}\n{text}");
    assert!(up.last() < down.first(), "{up:?} {down:?}\n{text}");
    assert!(down[0] < detached[0], "down {down:?}, detached {detached:?}\n{text}");
    assert!(made.iter().all(|at| !lines[*at].contains("IFF_UP")), "made up at once\n{text}");
}

/// The same from outside: whenever the kernel says that the device is up, the program is there; and
/// what a stranger sends all the while is never let in.
#[test]
fn no_foreign_frame_passes_while_daemons_start_stop_and_die() {
    require_root!();
    let mesh = Mesh::new(3);
    let (node, member, stranger) = (mesh.node(1), mesh.node(2), mesh.node(3));
    member.start(&[]);
    node.start(&["-j", &member.seed()]);
    mesh.wait_converged();
    let container = node.container(1);
    let inside = [
        marengo_tests::Capture::start(&node.namespace, BRIDGE),
        marengo_tests::Capture::start(&container.namespace, "eth0"),
    ];
    let stop = AtomicBool::new(false);
    let target = (node.underlay(), packet::VXLAN_PORT);
    let frame = packet::vxlan(1024, &packet::marked(BROADCAST, packet::station(66), "foreign"));
    let mut open = BTreeSet::new();
    let mut counted = 0;

    std::thread::scope(|scope| {
        scope.spawn(|| {
            stranger.namespace.inside(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                while !stop.load(Ordering::Relaxed) {
                    // While the device is not there the port is closed.
                    socket.send_to(&frame, target).ok();
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
        });
        let watcher = scope.spawn(|| {
            let events = LinkEvents::listen(&node.namespace);
            node.namespace.inside(|| {
                let (mut ups, mut open) = (0, BTreeSet::new());
                while !stop.load(Ordering::Relaxed) {
                    for event in events.next() {
                        if event.is_up(DEVICE) {
                            ups += 1;
                        }
                    }
                    if is_up_here(DEVICE)
                        && bpf::attached_here(DEVICE, "ingress").is_empty()
                        && is_up_here(DEVICE)
                    {
                        open.insert(ups);
                    }
                }
                (ups, open)
            })
        });

        for round in 0..6 {
            counted += node.view().drops("unknown_vtep");
            if round % 2 == 0 {
                node.stop();
            } else {
                node.kill();
            }
            node.start(&["-j", &member.seed()]);
            std::thread::sleep(Duration::from_millis(200));
        }
        counted += node.view().drops("unknown_vtep");
        stop.store(true, Ordering::Relaxed);
        let (ups, seen) = watcher.join().unwrap();
        assert!(ups >= 3, "the device was up {ups} times");
        open = seen;
    });

    assert_eq!(open, BTreeSet::new(), "up without the program");
    assert!(counted > 500, "{counted} foreign frames were dropped: too few to prove anything");
    for capture in &inside {
        assert_eq!(capture.received("foreign"), 0, "foreign frames were let in");
    }
    // The door is not merely shut: the same frame from a member comes in.
    mesh.wait_converged();
    member.namespace.inside(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(&frame, target).unwrap();
    });
    wait::until("the member's frame is let in", Duration::from_secs(2), || {
        inside[1].received("foreign") == 1
    });
}

fn is_up_here(device: &str) -> bool {
    use nix::net::if_::InterfaceFlags;
    nix::ifaddrs::getifaddrs()
        .expect("addresses can be listed")
        .any(|link| link.interface_name == device && link.flags.contains(InterfaceFlags::IFF_UP))
}
