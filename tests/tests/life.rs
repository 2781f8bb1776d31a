//! The daemon may go, in any way: the data plane forwards on, and the next start takes it over.

use std::{collections::BTreeMap, os::unix::net::UnixStream, time::Duration};

use marengo_tests::{
    Container, HostState, Mesh, Node, Probe,
    bpf::{self, Maps},
    exec, http,
    node::{BRIDGE, DEVICE},
    probe::Outcome,
    require_root, requirements,
};
use nix::sys::signal::Signal;

const MAPS: [&str; 7] = ["settings", "peers", "vteps", "macs", "flood", "stats", "drops"];
const LINKS: [&str; 3] = ["device_ingress", "device_egress", "bridge_egress"];

/// What must be the same object, and not only of the same content, before and after.
fn objects(node: &Node) -> Vec<u64> {
    let maps = MAPS.map(|map| bpf::id("map", &node.pins().join(map)));
    let links = LINKS.map(|link| bpf::id("link", &node.pins().join(link)));
    let device = node.namespace.ifindex(DEVICE).map(u64::from);
    maps.into_iter().chain(links).chain(device).collect()
}

/// The sizes of the attached programs as the verifier left them, by name.
fn sizes(node: &Node) -> BTreeMap<String, u64> {
    let size = |id: u32| {
        let mut command = exec::command("bpftool");
        let text = exec::capture(command.args(["--json", "prog", "show", "id", &id.to_string()]));
        let program: serde_json::Value = serde_json::from_str(&text).expect("bpftool prints JSON");
        program["bytes_xlated"].as_u64().expect("a program has a size")
    };
    let attached = bpf::attachments(&node.namespace).into_iter();
    attached.map(|attached| (attached.program, size(attached.program_id))).collect()
}

/// Two nodes with a container each, and what is needed to look at a probe between them.
struct Pair {
    mesh: Mesh,
    from: Container,
    to: Container,
}

impl Pair {
    fn running(args: &[&str]) -> Self {
        let mesh = Mesh::within(2, Duration::from_mins(8));
        mesh.start_all(args);
        let (from, to) = (mesh.node(1).container(1), mesh.node(2).container(1));
        assert!(from.namespace.pings(&to.address().to_string(), 2));
        Self { mesh, from, to }
    }

    fn one(&self) -> &Node {
        self.mesh.node(1)
    }

    /// Starts node 1 again, as an operator would, and waits until all is well.
    fn start_again(&self, args: &[&str]) {
        let seed = self.mesh.node(2).seed();
        self.one().start(&[&["-j", &seed], args].concat());
        self.mesh.wait_converged();
    }

    fn probe(&self) -> Probe {
        Probe::start(&self.from.namespace, &self.to.namespace, self.to.address())
    }
}

fn expect_no_loss(outcome: &Outcome) {
    assert_eq!((outcome.lost, outcome.duplicates), (0, 0), "{outcome:?}");
}

#[test]
fn kept_data_plane_forwards_until_the_next_start_takes_it_over() {
    require_root!();
    let pair = Pair::running(&["--on-exit", "keep"]);
    let one = pair.one();
    let (before, slots) = (objects(one), Maps::open(one).slots());

    // Told so once by a flag, and once by the signal of `systemctl restart`.
    for (signal, next) in [(Signal::SIGTERM, "remove"), (Signal::SIGUSR2, "keep")] {
        let probe = pair.probe();
        std::thread::sleep(Duration::from_millis(300));
        one.signal(signal);
        assert_eq!(one.wait_ended(Duration::from_secs(5)).code(), Some(0), "{signal}");
        assert_eq!(bpf::attachments(&one.namespace).len(), 3, "the programs stay");
        assert_eq!(objects(one), before, "so do maps, links and device");
        assert!(!one.socket().exists(), "the socket is gone: nobody answers there");
        std::thread::sleep(Duration::from_millis(700));
        pair.start_again(&["--on-exit", next]);
        std::thread::sleep(Duration::from_millis(500));
        expect_no_loss(&probe.finish());
        assert_eq!(objects(one), before);
        assert_eq!(Maps::open(one).slots(), slots, "the peers have the slots that they had");
    }

    // What was kept once is removed by whoever is told to.
    one.signal(Signal::SIGUSR2);
    one.wait_ended(Duration::from_secs(5));
    pair.start_again(&[]);
    assert_eq!(one.stop().code(), Some(0));
    assert_eq!(one.namespace.link(DEVICE), None);
    assert_eq!(bpf::attachments(&one.namespace), []);
    assert!(!one.pins().exists());
}

/// The control: the same probe across the same restart, without what keeps the data plane.
#[test]
fn restart_that_removes_the_data_plane_loses_packets() {
    require_root!();
    let pair = Pair::running(&[]);
    let before = objects(pair.one());

    let probe = pair.probe();
    pair.one().stop();
    pair.start_again(&[]);
    std::thread::sleep(Duration::from_millis(500));

    let outcome = probe.finish();
    assert!(outcome.lost > 50, "{outcome:?}");
    assert_ne!(objects(pair.one()), before);
}

/// Node 1 goes with the word that it is back soon, and stays away for longer than a dead node is kept.
/// Returns what a probe from node 2 to its container lost meanwhile, and whether node 2 took it for
/// failed.
fn away_for_a_while(without: &[&str]) -> (Outcome, bool) {
    let pair = Pair::running(without);
    let probe = Probe::start(&pair.to.namespace, &pair.from.namespace, pair.from.address());
    pair.one().signal(Signal::SIGUSR2);
    pair.one().wait_ended(Duration::from_secs(5));
    std::thread::sleep(Duration::from_secs(8));
    let log = pair.mesh.node(2).log();
    let failed = log.lines().any(|line| line.contains("member-down") && line.contains("node-1"));
    (probe.finish(), failed)
}

#[test]
fn others_keep_a_node_whose_daemon_is_back_soon() {
    require_root!();
    let (outcome, failed) = away_for_a_while(&[]);

    expect_no_loss(&outcome);
    assert!(!failed, "node 2 declared it down");
}

/// The controls: without its word it is taken for failed, though the tunnel is heard; and without
/// that as well it is taken off the maps.
#[test]
fn without_a_word_it_is_taken_for_failed_and_unheard_off_the_maps() {
    require_root!();
    let (outcome, failed) = away_for_a_while(&["--without", "tell-restart"]);
    expect_no_loss(&outcome);
    assert!(failed, "node 2 did not declare it down");

    let (outcome, failed) = away_for_a_while(&["--without", "tell-restart,witness"]);
    assert!(failed && outcome.lost > 1000, "{outcome:?}");
}

#[test]
fn remove_takes_away_what_a_daemon_left_and_refuses_while_one_runs() {
    require_root!();
    for attach in ["tcx", "clsact"] {
        let args = ["--attach", attach, "--on-exit", "keep"];
        let pair = Pair::running(&args);
        let one = pair.one();
        let pins = one.pins().display().to_string();
        let remove = |more: &[&str]| {
            let mut command = one.namespace.command(requirements::daemon());
            command.env_clear().env("MARENGO_CONFIG", "/dev/null").arg("remove").args(more);
            let output = exec::capture_any(&mut command, Duration::from_secs(20));
            let text = |bytes| String::from_utf8(bytes).unwrap();
            (output.status.code(), text(output.stdout), text(output.stderr))
        };
        let before = HostState::of(one);

        let (code, _, complaint) = remove(&["--pin-dir", &pins]);
        assert_eq!(code, Some(12), "{complaint}");
        assert!(complaint.contains("another daemon"), "{complaint}");
        before.expect_unchanged(one);

        let probe = pair.probe();
        one.stop();
        std::thread::sleep(Duration::from_millis(300));
        expect_no_loss(&probe.finish());

        // The directory is found on the device itself.
        let (code, said, complaint) = remove(&[]);
        assert_eq!(code, Some(0), "{complaint}");
        assert!(said.contains(DEVICE) && said.contains(&pins), "{said}");
        assert_eq!(one.namespace.link(DEVICE), None);
        assert!(one.namespace.link(BRIDGE).is_some(), "the bridge is its users'");
        assert_eq!(bpf::attachments(&one.namespace), []);
        let filters = one.namespace.run(&format!("tc filter show dev {BRIDGE} egress"));
        assert_eq!(filters.trim(), "");
        assert!(!one.pins().exists());

        let (code, said, _) = remove(&["--json"]);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!((code, said["device"].clone()), (Some(0), serde_json::Value::Null));

        // Not ours, though it has the name.
        one.namespace.ip(&format!("link add {DEVICE} type bridge"));
        let (code, _, complaint) = remove(&[]);
        assert_eq!(code, Some(11), "{complaint}");
        assert!(one.namespace.link(DEVICE).is_some());
    }
}

#[test]
fn panic_in_any_task_ends_the_daemon_and_costs_no_packet() {
    require_root!();
    // A seed by name: the task that looks names up again and again stays.
    // `-D`: the task that reads the programs' log is there.
    let with_faults = ["--faults", "-D", "-j", "localhost:1"];
    let pair = Pair::running(&with_faults);
    let one = pair.one();
    let before = objects(one);

    let tasks = [
        "gossip",
        "converge",
        "control",
        "node",
        "connection",
        "seeds",
        "monitor",
        "memory",
        "address",
        "address-monitor",
        "program-log",
    ];
    for task in tasks {
        let probe = pair.probe();
        std::thread::sleep(Duration::from_millis(200));
        // A connection that waits for its request: the task that serves one.
        let waiting = UnixStream::connect(one.socket()).unwrap();
        let request = format!(
            "POST /v1/panic/{task} HTTP/1.1\r\nhost: marengo\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        http::raw_unix(one.socket(), request.as_bytes());
        let ended = one.wait_ended(Duration::from_secs(3));
        drop(waiting);
        assert_eq!(ended.code(), Some(1), "{task}");
        let log = one.log();
        let told = |line: &&str| {
            line.contains("a task panicked; the data plane goes on without the daemon")
                && line.contains(&format!("task={task}"))
        };
        assert!(log.lines().any(|line| told(&line)), "{task}: {log}");
        assert_eq!(bpf::attachments(&one.namespace).len(), 3, "{task}: the programs stay");
        std::thread::sleep(Duration::from_millis(200));
        pair.start_again(&with_faults);
        std::thread::sleep(Duration::from_millis(200));
        expect_no_loss(&probe.finish());
        assert_eq!(objects(one), before, "{task}");
    }
}

/// Kills node 1 and starts it again while no daemon answers it. What it does not take over it does not
/// have.
fn start_among_the_silent(args: &[&str]) -> (Outcome, bool) {
    let pair = Pair::running(&[]);
    let (one, two) = (pair.one(), pair.mesh.node(2));
    let before = objects(one);
    let probe = pair.probe();
    std::thread::sleep(Duration::from_millis(200));
    two.signal(Signal::SIGSTOP);
    one.kill();
    one.start(&[&["-j", &two.seed()], args].concat());
    std::thread::sleep(Duration::from_millis(300));
    two.signal(Signal::SIGCONT);
    pair.mesh.wait_converged();
    (probe.finish(), objects(one) == before)
}

#[test]
fn start_that_nobody_answers_forwards_to_those_it_takes_over() {
    require_root!();
    let (outcome, same) = start_among_the_silent(&[]);

    expect_no_loss(&outcome);
    assert!(same, "maps, links or device are others");
}

/// The control.
#[test]
fn without_adoption_it_loses_packets() {
    require_root!();
    let (outcome, same) = start_among_the_silent(&["--without", "adoption"]);

    assert!(outcome.lost > 100, "{outcome:?}");
    assert!(!same);
}

#[test]
fn maps_of_another_size_need_nobody_to_answer() {
    require_root!();
    let (outcome, same) = start_among_the_silent(&["--max-peers", "2000"]);

    expect_no_loss(&outcome);
    assert!(!same, "the maps are new ones");
}

/// The control.
#[test]
fn without_carry_over_they_cost_packets() {
    require_root!();
    let args = ["--max-peers", "2000", "--without", "carry-over"];
    let (outcome, _) = start_among_the_silent(&args);

    assert!(outcome.lost > 100, "{outcome:?}");
}

#[test]
fn faults_are_not_to_be_had_without_the_flag() {
    require_root!();
    let mesh = Mesh::running(1);
    let request = b"POST /v1/panic/gossip HTTP/1.1\r\nhost: marengo\r\ncontent-length: 0\r\n\r\n";

    let answer = http::raw_unix(mesh.node(1).socket(), request).unwrap();

    assert_eq!(answer.status, 404);
    assert!(mesh.node(1).is_running());
}

/// `-D` makes other programs of the same object, with a log in them: what an upgrade to a build with
/// changed programs does.
#[test]
fn kill_and_change_of_programs_and_back_cost_no_packet() {
    require_root!();
    let pair = Pair::running(&[]);
    let one = pair.one();
    let (before, slots) = (objects(one), Maps::open(one).slots());
    let plain = sizes(one);
    assert_eq!(plain.len(), 2, "{plain:?}");

    for run in 0..requirements::runs(2) {
        let probe = pair.probe();
        std::thread::sleep(Duration::from_millis(100));
        one.kill();
        std::thread::sleep(Duration::from_millis(100));
        pair.start_again(&["-D"]);
        let other = sizes(one);
        assert!(plain.iter().all(|(name, size)| other[name] != *size), "{plain:?} {other:?}");
        std::thread::sleep(Duration::from_millis(100));
        one.kill();
        pair.start_again(&[]);
        assert_eq!(sizes(one), plain);
        std::thread::sleep(Duration::from_millis(100));
        let outcome = probe.finish();
        eprintln!("run {run}: {} packets, {} lost", outcome.sent, outcome.lost);
        expect_no_loss(&outcome);
        assert_eq!(objects(one), before);
        assert_eq!(Maps::open(one).slots(), slots);
    }
}
