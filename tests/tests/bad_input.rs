//! What no honest node sends: the daemon counts it, says little, and stays as it is.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    process::{Child, Command},
    time::{Duration, Instant},
};

use marengo_tests::{
    Capture, Mesh, Node,
    bpf::Maps,
    http::{self, Answer},
    node::GOSSIP_PORT,
    packet, require_root,
    view::View,
    wait,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

const DATAGRAMS: u64 = 100_000;
/// Sent before the daemon is asked whether it keeps up: far below what its socket holds.
const BURST: u64 = 100;

#[test]
fn random_and_mutated_gossip_changes_nothing_and_is_counted() {
    require_root!();
    let mesh = Mesh::new(4);
    let target = mesh.node(1);
    let cables = [1, 2].map(|n| Capture::start(&mesh.router, &mesh.node(n).cable()));
    for number in 1..=3 {
        mesh.node(number).launch(&[], &["-j", &mesh.node(1).seed()]);
    }
    mesh.wait_converged();
    std::thread::sleep(Duration::from_secs(2));
    let mut real: Vec<Vec<u8>> = cables
        .iter()
        .flat_map(Capture::frames)
        .filter_map(|frame| packet::udp_payload(&frame.bytes, GOSSIP_PORT).map(<[u8]>::to_vec))
        .collect();
    drop(cables);
    real.sort_unstable();
    real.dedup();
    assert!(real.len() >= 8, "{} datagrams were heard", real.len());
    let seed: u64 = rand::random();
    println!("seed {seed}, {} real datagrams", real.len());
    let mut rng = StdRng::seed_from_u64(seed);
    // What an idle daemon uses, after it has answered everything once.
    target.view().status();
    let before = State::of(target);

    let stranger = Sender::new(mesh.node(4), target);
    let member = Sender::new(mesh.node(2), target);
    let start = Instant::now();
    let random = stranger.send(target, DATAGRAMS, || random(&mut rng));
    let mutated = member.send(target, DATAGRAMS, || mutated(&mut rng, &real));
    let sealed = stranger.send(target, DATAGRAMS / 10, || damaged_but_sealed(&mut rng, &real));
    let took = start.elapsed();
    println!("{took:?}: {random} random, {mutated} mutated, {sealed} sealed were refused");

    for (kind, refused, sent) in [("random", random, DATAGRAMS), ("mutated", mutated, DATAGRAMS)] {
        assert!(refused >= sent * 99 / 100, "{kind}: {refused} of {sent} were refused and counted");
    }
    assert!(sealed > 0);
    let after = State::of(target);
    assert_eq!(after.members, before.members);
    assert!(after.maps == before.maps, "{:?}\n{:?}", before.maps, after.maps);
    assert!(
        after.resident <= before.resident + 1024,
        "KiB: {} {}",
        before.resident,
        after.resident
    );
    let lines = target.log().lines().count() - before.log_lines;
    let minutes = usize::try_from(took.as_secs() / 60).unwrap();
    assert!(lines <= 2 + minutes, "{lines} log lines:\n{}", target.log());
    for node in [2, 3] {
        assert_eq!(mesh.node(node).view().alive(), ["node-1", "node-2", "node-3"]);
        assert!(!mesh.node(node).log().contains("member-down"));
    }
}

#[test]
fn malformed_requests_get_an_error_with_a_json_body() {
    require_root!();
    let mesh = Mesh::new(1);
    let node = mesh.node(1);
    node.start(&[]);
    let before = State::of(node);
    let request = |line: &str, head: &str, body: &str| {
        let length = body.len();
        format!(
            "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{head}content-length: {length}\r\n\r\n{body}"
        )
    };
    let json = "content-type: application/json\r\n";
    let nested = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    let cases = [
        ("no HTTP", "this is no HTTP at all\r\n\r\n".to_owned(), 400..=400),
        ("bytes", "\u{1}\u{2}\u{0}\u{ff}\r\n\r\n".to_owned(), 400..=400),
        ("a wrong version", "GET / HTTP/9.9\r\n\r\n".to_owned(), 400..=505),
        ("no such path", request("GET /nothing", "", ""), 404..=404),
        ("a path that climbs", request("GET /v1/../../etc/passwd", "", ""), 404..=404),
        ("a long path", request(&format!("GET /{}", "a".repeat(100_000)), "", ""), 400..=431),
        (
            "a long header",
            request("GET /v1/node", &format!("x: {}\r\n", "a".repeat(1 << 20)), ""),
            400..=431,
        ),
        ("many headers", request("GET /v1/node", &"x: y\r\n".repeat(5000), ""), 400..=431),
        ("a wrong method", request("DELETE /v1/status", "", ""), 404..=405),
        ("a wrong method", request("DELETE /v1/node", "", ""), 404..=405),
        (
            "no number",
            "POST /v1/sync HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n".to_owned(),
            400..=404,
        ),
    ];
    let sync_cases = [
        ("no JSON", request("POST /v1/sync", json, "{"), 400..=400),
        ("other JSON", request("POST /v1/sync", json, "{\"a\": 1}"), 400..=422),
        ("nested JSON", request("POST /v1/sync", json, &nested), 400..=422),
        ("no type", request("POST /v1/sync", "", "{}"), 400..=422),
        ("an empty body", request("POST /v1/sync", json, ""), 400..=422),
        ("a huge body", request("POST /v1/sync", json, &" ".repeat(6 << 20)), 413..=413),
    ];

    let expect_error =
        |what: &str, answer: Option<Answer>, codes: &std::ops::RangeInclusive<u16>| {
            let answer = answer.unwrap_or_else(|| panic!("{what}: no answer"));
            assert!(codes.contains(&answer.status), "{what}: {answer:?}");
            assert!(answer.json()["error"].is_string(), "{what}: no JSON: {answer:?}");
        };
    for (what, bytes, codes) in &cases {
        let tcp = http::raw_tcp(&node.namespace, node.listen_address(), bytes.as_bytes());
        expect_error(what, tcp, codes);
        expect_error(what, http::raw_unix(node.socket(), bytes.as_bytes()), codes);
    }
    for (what, bytes, codes) in &sync_cases {
        let tcp = http::raw_tcp(&node.namespace, node.listen_address(), bytes.as_bytes());
        expect_error(what, tcp, codes);
    }

    let after = State::of(node);
    assert_eq!(after.members, before.members);
    assert!(after.resident <= before.resident + 8 * 1024, "{} KiB", after.resident);
    assert!(after.log_lines <= before.log_lines + 5, "{}", node.log());
}

#[test]
fn idle_connections_do_not_shut_others_out() {
    require_root!();
    let mesh = Mesh::new(1);
    let node = mesh.node(1);
    node.start(&[]);
    let unix: Vec<UnixStream> = (0..100)
        .map(|_| {
            let mut stream = UnixStream::connect(node.socket()).unwrap();
            stream.write_all(b"GET /v1/sta").unwrap();
            stream
        })
        .collect();
    let tcp: Vec<TcpStream> = node.namespace.inside(|| {
        let connect = |_| TcpStream::connect(node.listen_address()).unwrap();
        (0..100).map(connect).collect()
    });

    let get = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    // The oldest of them make room at once.
    let limit = Duration::from_secs(2);
    wait::until("the listen address answers", limit, || {
        http::raw_tcp(&node.namespace, node.listen_address(), get)
            .is_some_and(|answer| answer.status == 200)
    });
    wait::until("the control socket answers", limit, || node.view().get("/v1/status").is_some());
    drop((unix, tcp));
    wait::until("it answers at once when they are gone", Duration::from_secs(2), || {
        node.view().get("/v1/status").is_some()
    });
}

#[test]
fn two_nodes_with_one_name_are_reported_on_both_and_do_not_loop() {
    require_root!();
    let mesh = Mesh::new(3);
    let seed = mesh.node(1).seed();
    mesh.node(1).start(&[]);
    let twins = [mesh.node(2), mesh.node(3)];
    for twin in twins {
        twin.start(&["--node-name", "twin", "-j", &seed]);
    }

    for twin in twins {
        wait_reported(twin.view(), "twin", "name");
        twin.wait_until("a line in the log", Duration::from_secs(2), |_| {
            twin.log().lines().any(|line| line.contains("twin") && line.contains("in common"))
        });
    }
    expect_quiet(&mesh, 5);
    // Both are members, and reachable: the name is for people.
    let maps = Maps::open(mesh.node(1));
    assert!(twins.iter().all(|twin| maps.has(twin.underlay().into())));

    twins[1].stop();
    wait::until("the conflict is over", Duration::from_secs(10), || {
        twins[0].view().status()["conflicts"].as_array().is_some_and(Vec::is_empty)
    });
}

#[test]
fn two_nodes_with_one_vtep_are_reported_on_both_and_do_not_loop() {
    require_root!();
    let mesh = Mesh::new(3);
    let seed = mesh.node(1).seed();
    mesh.node(1).start(&[]);
    let first = mesh.node(2);
    first.start(&["-j", &seed]);
    mesh.node(3).start(&["-j", &seed]);
    // A second daemon on the same host: everything is its own but the tunnel address.
    let second = Second::start(first, &["--node-name", "second", "-j", &seed]);

    wait_reported(first.view(), "second", "vtep");
    wait_reported(View::new(&second.socket), "node-2", "vtep");
    wait_reported(mesh.node(1).view(), "second", "vtep");
    for log in [first.log(), second.log()] {
        let found = log.lines().any(|line| line.contains("in common") && line.contains("vtep"));
        assert!(found, "{log}");
    }
    expect_quiet(&mesh, 5);
    // One of them has the tunnel, and the rest of the mesh works.
    let maps = Maps::open(mesh.node(1));
    assert!(maps.has(first.underlay().into()));
    assert_eq!(maps.slots().len(), 2, "{:?}", maps.slots());
    for node in mesh.nodes() {
        node.address_bridge();
    }
    assert!(mesh.node(1).namespace.pings(&mesh.node(3).overlay().to_string(), 1));
}

#[test]
fn copy_of_a_machine_with_its_very_address_disturbs_nobody_else() {
    require_root!();
    let mesh = Mesh::new(4);
    for number in 1..=3 {
        mesh.node(number).launch(&[], &["-j", &mesh.node(1).seed()]);
    }
    mesh.wait_converged();
    let (original, copy) = (mesh.node(2), mesh.node(4));
    let address = original.underlay().to_string();
    copy.namespace.ip(&format!("addr add {address}/32 dev lo"));

    copy.start(&[
        "--advertise-addr",
        &address,
        "--node-name",
        "node-2",
        "-j",
        &mesh.node(1).seed(),
    ]);

    expect_quiet(&mesh, 10);
    assert_eq!(mesh.node(1).view().alive(), ["node-1", "node-2", "node-3"]);
    assert_eq!(mesh.node(3).view().alive(), ["node-1", "node-2", "node-3"]);
}

/// What must not change.
struct State {
    members: Vec<serde_json::Value>,
    maps: String,
    resident: u64,
    log_lines: usize,
}

impl State {
    fn of(node: &Node) -> Self {
        Self {
            members: node.view().members(),
            maps: format!("{:?}", Maps::open(node).content()),
            resident: node.resident_kib(),
            log_lines: node.log().lines().count(),
        }
    }
}

struct Sender {
    socket: UdpSocket,
}

impl Sender {
    fn new(from: &Node, to: &Node) -> Self {
        let socket =
            from.namespace.inside(|| UdpSocket::bind("0.0.0.0:0").expect("any port will do"));
        socket.connect(to.gossip_address()).expect("there is a route");
        Self { socket }
    }

    /// Sends at the pace at which they are received, and returns how many were refused and counted.
    fn send(&self, to: &Node, count: u64, mut make: impl FnMut() -> Vec<u8>) -> u64 {
        let refused = refused(to);
        let mut received = datagrams_received(to);
        for number in 1..=count {
            self.socket.send(&make()).expect("the daemon listens");
            if number % BURST == 0 {
                let due = received + BURST;
                let start = Instant::now();
                // One that was lost on the way is not waited for for long.
                while start.elapsed() < Duration::from_millis(20) {
                    received = datagrams_received(to);
                    if received >= due {
                        break;
                    }
                }
            }
        }
        std::thread::sleep(Duration::from_millis(200));
        self::refused(to) - refused
    }
}

fn datagrams_received(node: &Node) -> u64 {
    node.view().status()["gossip"]["datagrams_received"].as_u64().expect("status counts them")
}

fn refused(node: &Node) -> u64 {
    let status = node.view().status();
    let reasons = status["gossip"]["rejected"].as_object().expect("status counts them");
    reasons.values().map(|count| count.as_u64().expect("a count is a number")).sum()
}

fn random(rng: &mut StdRng) -> Vec<u8> {
    let length = rng.random_range(0..1500);
    let mut datagram: Vec<u8> = (0..length).map(|_| rng.random()).collect();
    // Every second one looks a little like one of ours.
    if rng.random_bool(0.5) {
        let magic = *b"MG\x02\x01\0\0\0\0\x07marengo";
        for (byte, ours) in datagram.iter_mut().zip(&magic[..rng.random_range(0..=16)]) {
            *byte = *ours;
        }
    }
    datagram
}

fn mutated(rng: &mut StdRng, real: &[Vec<u8>]) -> Vec<u8> {
    let original = &real[rng.random_range(0..real.len())];
    loop {
        let mut datagram = original.clone();
        match rng.random_range(0..5) {
            0 => {
                for _ in 0..rng.random_range(1..8) {
                    let at = rng.random_range(0..datagram.len());
                    datagram[at] ^= 1 << rng.random_range(0..8);
                }
            }
            1 => {
                let at = rng.random_range(0..datagram.len());
                datagram[at] = rng.random();
            }
            2 => datagram.truncate(rng.random_range(0..datagram.len())),
            3 => datagram.extend((0..rng.random_range(1..300)).map(|_| rng.random::<u8>())),
            _ => {
                let other = &real[rng.random_range(0..real.len())];
                datagram.truncate(rng.random_range(0..datagram.len()));
                datagram.extend(&other[rng.random_range(0..other.len())..]);
            }
        }
        if !real.contains(&datagram) {
            return datagram;
        }
    }
}

/// Cut short somewhere behind the frame's head, with a checksum that fits: what reads the body must
/// refuse it, or find less of what it knows already.
fn damaged_but_sealed(rng: &mut StdRng, real: &[Vec<u8>]) -> Vec<u8> {
    let original = &real[rng.random_range(0..real.len())];
    let head = 8 + 1 + usize::from(original[8]);
    let mut datagram = original[..rng.random_range(head..original.len() - 4)].to_vec();
    let checksum = crc32(&datagram);
    datagram.extend(checksum.to_be_bytes());
    datagram
}

/// As in Ethernet.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 }
        })
    })
}

fn wait_reported(view: View<'_>, name: &str, kind: &str) {
    wait::until("the conflict is in the status", Duration::from_secs(10), || {
        view.status()["conflicts"].as_array().is_some_and(|conflicts| {
            conflicts
                .iter()
                .filter_map(|conflict| conflict.as_str())
                .any(|conflict| conflict.contains(name) && conflict.contains(kind))
        })
    });
}

/// Nobody has much to say for some seconds, and nobody's kernel is changed.
fn expect_quiet(mesh: &Mesh, seconds: u64) {
    let look = || -> Vec<(usize, u64, serde_json::Value)> {
        mesh.nodes()
            .map(|node| {
                let status = node.view().status();
                let sent = status["gossip"]["datagrams_sent"].as_u64().unwrap_or_default();
                (node.log().lines().count(), sent, status["repairs"].clone())
            })
            .collect()
    };
    // What the arrival itself has to be said of.
    std::thread::sleep(Duration::from_secs(2));
    let before = look();
    std::thread::sleep(Duration::from_secs(seconds));
    for (node, (before, after)) in mesh.nodes().zip(before.into_iter().zip(look())) {
        let lines = after.0 - before.0;
        assert!(lines <= 4, "{}: {lines} log lines in {seconds} s:\n{}", node.name(), node.log());
        let sent = after.1 - before.1;
        assert!(sent <= 60 * seconds, "{} has sent {sent} datagrams in {seconds} s", node.name());
        assert_eq!(before.2, after.2, "{} repairs", node.name());
    }
}

/// A second daemon in a node's namespace.
struct Second {
    child: Child,
    socket: std::path::PathBuf,
    log: std::path::PathBuf,
}

impl Second {
    fn start(node: &Node, args: &[&str]) -> Self {
        let socket = node.folder().join("second.sock");
        let log = node.folder().join("second.log");
        let pins = node.pins().with_file_name("second").display().to_string();
        let socket_flag = socket.display().to_string();
        let own = [
            ["--socket", &socket_flag],
            ["--pin-dir", &pins],
            ["--bridge", "second"],
            ["--bind-addr", "0.0.0.0:7950"],
            ["--vxlan-port", "4790"],
        ];
        let listen = SocketAddr::new(node.underlay().into(), 8081).to_string();
        let args: Vec<&str> =
            own.iter().flatten().chain(args).copied().chain(["--listen-addr", &listen]).collect();
        let mut command: Command = node.server(&[], &args);
        let file = std::fs::File::create(&log).expect("the test has a folder");
        let child = {
            let copy = file.try_clone().expect("a descriptor can be duplicated");
            command.stdout(copy).stderr(file).spawn().expect("the daemon starts")
        };
        let second = Self { child, socket, log };
        wait::until("the second daemon answers", Duration::from_secs(10), || {
            View::new(&second.socket).get("/v1/status").is_some()
        });
        second
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
