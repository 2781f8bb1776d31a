//! Hosts on which the daemon cannot run: one sentence, its own exit code, nothing created.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
};

use marengo_tests::{
    HostState, Mesh, Node,
    node::{BRIDGE, DEVICE},
    require_root,
};

#[test]
fn missing_rights_are_named() {
    require_root!();
    let mesh = Mesh::new(1);
    let node = mesh.node(1);
    let nobody =
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all"];
    refuse(node, &nobody, &[], 77, &["CAP_NET_ADMIN", "CAP_BPF", "root"]);
    let without = |capability: &'static str| {
        [
            "setpriv".to_owned(),
            format!("--inh-caps=-sys_admin,-{capability}"),
            format!("--bounding-set=-sys_admin,-{capability}"),
        ]
    };
    for (capability, name) in
        [("net_admin", "CAP_NET_ADMIN"), ("bpf", "CAP_BPF"), ("perfmon", "CAP_PERFMON")]
    {
        let wrapper = without(capability);
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        let complaint = refuse(node, &wrapper, &[], 77, &[name]);
        for (_, other) in [("", "CAP_NET_ADMIN"), ("", "CAP_BPF"), ("", "CAP_PERFMON")]
            .iter()
            .filter(|o| o.1 != name)
        {
            assert!(!complaint.contains(other), "{other} is there: {complaint}");
        }
    }
}

#[test]
fn held_ports_are_named_with_who_holds_them() {
    require_root!();
    let mesh = Mesh::new(1);
    let node = mesh.node(1);
    let pid = std::process::id().to_string();

    let gossip = node.namespace.inside(|| UdpSocket::bind("0.0.0.0:7946").unwrap());
    refuse(node, &[], &[], 10, &["7946", &pid, "--bind-addr"]);
    drop(gossip);
    let listen = node.namespace.inside(|| TcpListener::bind("0.0.0.0:8080").unwrap());
    refuse(node, &[], &[], 10, &["8080", &pid, "--listen-addr"]);
    drop(listen);
    let vxlan = node.namespace.inside(|| UdpSocket::bind("0.0.0.0:4789").unwrap());
    refuse(node, &[], &[], 10, &["4789", &pid, "--vxlan-port"]);
    drop(vxlan);
    let vxlan6 = node.namespace.inside(|| UdpSocket::bind("[::]:4789").unwrap());
    refuse(node, &[], &[], 10, &["4789", "--vxlan-port"]);
    drop(vxlan6);
    // By another VXLAN device, as flannel's.
    node.namespace.ip("link add flannel.1 type vxlan id 1 dstport 4789\nlink set flannel.1 up");
    refuse(node, &[], &[], 10, &["4789", "flannel.1"]);
    node.namespace.ip("link del flannel.1");

    node.start(&[]);
}

#[test]
fn control_socket_is_taken_over_from_the_dead_alone() {
    require_root!();
    let mesh = Mesh::new(1);
    let node = mesh.node(1);
    let pid = std::process::id().to_string();

    let held = UnixListener::bind(node.socket()).unwrap();
    refuse(node, &[], &[], 10, &[&node.socket().display().to_string(), &pid, "--socket"]);
    assert!(node.socket().exists(), "somebody else's socket was removed");
    drop(held);

    // The file is still there, and nobody listens: it is replaced.
    assert!(node.socket().exists());
    node.start(&[]);
    let mode = fs::metadata(node.socket()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o660, "{mode:o}");
    node.kill();
    assert!(node.socket().exists());
    node.start(&[]);
    node.stop();

    fs::write(node.socket(), "a file of somebody").unwrap();
    refuse(node, &[], &[], 10, &[&node.socket().display().to_string()]);
    assert_eq!(fs::read_to_string(node.socket()).unwrap(), "a file of somebody");
    fs::remove_file(node.socket()).unwrap();
}

#[test]
fn links_and_pins_of_somebody_else_are_not_touched() {
    require_root!();
    let mesh = Mesh::new(1);
    let node = mesh.node(1);

    for kind in ["bridge", "vxlan id 7 dstport 4790", "vxlan external dstport 4789"] {
        node.namespace.ip(&format!("link add {DEVICE} type {kind}\nlink set {DEVICE} up"));
        refuse(node, &[], &[], 11, &[DEVICE, "ip link del"]);
        node.namespace.ip(&format!("link del {DEVICE}"));
    }
    node.namespace.ip(&format!("link add {BRIDGE} type veth peer name other"));
    refuse(node, &[], &[], 11, &[BRIDGE, "--bridge"]);
    node.namespace.ip(&format!("link del {BRIDGE}"));

    // A pin directory with somebody else's map in it.
    fs::create_dir_all(node.pins()).unwrap();
    let pin = node.pins().join("theirs");
    let line = format!(
        "bpftool map create {} type array key 4 value 4 entries 1 name theirs",
        pin.display()
    );
    node.namespace.run(&line);
    refuse(node, &[], &[], 11, &[&node.pins().display().to_string(), "--pin-dir"]);
    assert!(pin.exists());
    fs::remove_file(&pin).unwrap();
    // One that is not on the BPF file system.
    let folder = node.folder().join("no-bpffs");
    let ended = node.run_to_end(&[], &["--pin-dir", &folder.display().to_string()]);
    assert_ne!(ended.code, Some(0));
    assert_sentence(&ended.stderr, &[&folder.display().to_string()]);
    assert!(!folder.exists(), "a folder was left behind");
    assert_eq!(node.namespace.link(BRIDGE), None);

    // A bridge of the users is taken as it is.
    node.namespace.ip(&format!("link add {BRIDGE} type bridge\naddr add 10.9.0.1/24 dev {BRIDGE}"));
    let index = node.namespace.ifindex(BRIDGE);
    node.start(&[]);
    assert_eq!(node.namespace.ifindex(BRIDGE), index);
    assert!(node.namespace.run(&format!("ip -br address show dev {BRIDGE}")).contains("10.9.0.1"));
}

#[test]
fn second_daemon_is_refused_and_the_first_goes_on() {
    require_root!();
    let mesh = Mesh::running(2);
    let node = mesh.node(1);
    let pid = node.pid().to_string();
    let others = ["--socket", "/run/marengo-no-such-socket", "--bind-addr", "0.0.0.0:7000"];
    let pins = node.pins().with_file_name("second").display().to_string();
    let ports = ["--listen-addr", "0.0.0.0:8081", "--vxlan-port", "4800"];

    let on_bridge = [&others[..], &ports, &["--pin-dir", &pins]].concat();
    refuse(node, &[], &on_bridge, 12, &[BRIDGE, &pid]);
    let on_pins = [&others[..], &ports, &["--bridge", "blue"]].concat();
    refuse(node, &[], &on_pins, 12, &[&node.pins().display().to_string(), "--pin-dir"]);

    assert!(node.is_running() && node.view().is_converged());
    assert!(node.namespace.pings(&mesh.node(2).overlay().to_string(), 1));
    assert_eq!(node.view().repairs(), 0);
}

#[test]
fn addresses_that_are_not_this_hosts_are_named() {
    require_root!();
    let mesh = Mesh::new(1);
    let node = mesh.node(1);
    for flag in ["--advertise-addr", "--bind-addr", "--listen-addr"] {
        refuse(node, &[], &[flag, "203.0.113.9"], 13, &[flag, "203.0.113.9"]);
        refuse(node, &[], &[flag, "[2001:db8:f::9]:8000"], 13, &[flag, "2001:db8:f::9"]);
    }
    refuse(node, &[], &["--advertise-addr", "0.0.0.0"], 13, &["--advertise-addr"]);
    refuse(node, &[], &["--advertise-addr", "224.0.0.1"], 13, &["--advertise-addr"]);
    // A host without any address.
    node.namespace.ip("addr flush dev eth0\nlink set eth0 down");
    refuse(node, &[], &[], 13, &["--advertise-addr"]);
}

#[test]
fn malformed_flags_and_files_are_named_with_what_was_expected() {
    require_root!();
    let mesh = Mesh::new(1);
    let node = mesh.node(1);
    for (flag, value) in [
        ("--join", "nowhere"),
        ("--join", "1.2.3.4:99999"),
        ("--bind-addr", "1.2.3"),
        ("--advertise-addr", "::1::"),
        ("--listen-addr", ":"),
        ("--node-timeout", "3"),
        ("--node-timeout", "-1s"),
        ("--converge-interval", "soon"),
        ("--converge-interval", "0s"),
        ("--vni", "0"),
        ("--vni", "16777216"),
        ("--vni", "x"),
        ("--mtu", "10"),
        ("--vxlan-port", "65536"),
        ("--bridge", "a name with spaces"),
        ("--bridge", "far-too-long-a-name"),
        ("--node-name", ""),
        ("--log-format", "xml"),
        ("--socket", ""),
    ] {
        let before = HostState::of(node);
        let ended = node.run_to_end(&[], &[&format!("{flag}={value}")]);
        assert_eq!(ended.code, Some(2), "{flag} {value:?}: {ended:?}");
        assert!(ended.stderr.contains(flag), "{flag} {value:?}: {}", ended.stderr);
        assert!(ended.stderr.lines().count() <= 6, "{flag} {value:?}: {}", ended.stderr);
        before.expect_unchanged(node);
    }
    assert_eq!(node.run_to_end(&[], &["--no-such-flag"]).code, Some(2));

    let file = node.folder().join("config.toml");
    let path = file.display().to_string();
    for (text, words) in [
        ("vni = 7\n\nvin = 8\n", &["line 3", "vin"][..]),
        ("mtu = \"big\"\n", &["line 1"]),
        ("\nnode-timeout = \"3\"\n", &["line 2"]),
        ("join = [\"nowhere\"]\n", &["line 1"]),
        ("vni = [\n", &["line"]),
        ("\u{0}", &["line 1"]),
    ] {
        fs::write(&file, text).unwrap();
        let before = HostState::of(node);
        let ended = node.run_to_end(&[], &["--config", &path]);
        assert_eq!(ended.code, Some(78), "{text:?}: {ended:?}");
        for word in words.iter().chain([&path.as_str()]) {
            assert!(ended.stderr.contains(word), "no {word} in {}", ended.stderr);
        }
        before.expect_unchanged(node);
    }
    refuse(node, &[], &["--config", "/no/such/file"], 78, &["/no/such/file"]);

    // And a good one is obeyed, below the environment and the command line.
    let text =
        "vni = 7\nmtu = 1400\ncluster = \"from-file\"\nconverge-interval = \"1s\"\ndebug = true\n";
    fs::write(&file, text).unwrap();
    let mut command = node.server(&[], &["--config", &path, "--mtu", "1399"]);
    command.env("MARENGO_VNI", "8").env("MARENGO_DEBUG", "0");
    for unset in ["MARENGO_JOIN", "MARENGO_CLUSTER", "MARENGO_NODE_TIMEOUT", "MARENGO_ON_EXIT"] {
        command.env(unset, "");
    }
    node.launch_command(&mut command);
    node.wait_answers();
    let status = node.view().status();
    assert_eq!(status["vni"], 8, "the environment wins over the file");
    assert_eq!(status["mtu"], 1399, "the command line wins over the file");
    assert_eq!(status["cluster"], "from-file", "a variable that is set to nothing is not set");
    assert!(!node.log().contains("DEBU["), "the file's debug = true is overridden: {}", node.log());
}

#[test]
fn kernel_without_bpf_or_vxlan_is_told_so() {
    require_root!();
    let mesh = Mesh::new(1);
    let node = mesh.node(1);
    let inject = |what: &str| -> Vec<String> {
        ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "signal=none", "-e", what]
            .map(str::to_owned)
            .to_vec()
    };
    for (fault, code) in [("ENOSYS", 14), ("EPERM", 77)] {
        let wrapper = inject(&format!("inject=bpf:error={fault}"));
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        refuse(node, &wrapper, &[], code, &["bpf"]);
    }
    node.start(&[]);
}

/// Runs a daemon that must refuse to run, and returns what it says.
fn refuse(node: &Node, wrapper: &[&str], args: &[&str], code: i32, words: &[&str]) -> String {
    let before = HostState::of(node);
    let ended = node.run_to_end(wrapper, args);
    assert_eq!(ended.code, Some(code), "{wrapper:?} {args:?}: {ended:?}");
    assert_sentence(&ended.stderr, words);
    before.expect_unchanged(node);
    ended.stderr
}

/// One line, which names the things.
fn assert_sentence(stderr: &str, words: &[&str]) {
    let lines: Vec<&str> =
        stderr.lines().filter(|line| !line.starts_with("INFO") && !line.is_empty()).collect();
    assert_eq!(lines.len(), 1, "not one sentence: {stderr}");
    for word in words {
        assert!(lines[0].to_lowercase().contains(&word.to_lowercase()), "no {word:?} in: {stderr}");
    }
}
