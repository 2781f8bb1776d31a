//! What the commands print and what the log says.

use std::time::Duration;

use marengo_tests::{Mesh, Node, require_root};

#[test]
fn commands_print_what_the_contract_says_and_exit_3_without_a_daemon() {
    require_root!();
    let mesh = Mesh::running(2);
    let one = mesh.node(1);

    let json = |command: &str| -> serde_json::Value {
        let ended = one.cli(&[command, "--json"]);
        assert_eq!(ended.code, Some(0), "{command}: {}", ended.stderr);
        serde_json::from_str(&ended.stdout).unwrap()
    };
    let members = json("members");
    let members = members.as_array().unwrap();
    assert_eq!(members.len(), 2);
    for (number, member) in (1..).zip(members) {
        let node: &Node = mesh.node(number);
        assert_eq!(member["name"], node.name());
        assert_eq!(member["address"], node.seed());
        assert_eq!(member["vtep"], node.underlay().to_string());
        assert_eq!(member["state"], "alive");
    }
    let peers = json("peers");
    assert_eq!(peers.as_array().unwrap().len(), 1);
    assert_eq!(peers[0]["name"], "node-2");
    assert_eq!(peers[0]["vtep"], mesh.node(2).underlay().to_string());
    for number in ["index", "generation", "tx_packets", "tx_bytes", "rx_packets", "rx_bytes"] {
        assert!(peers[0][number].is_u64(), "{number} in {peers}");
    }
    assert!(peers[0]["state"].is_string());
    let status = json("status");
    assert_eq!(status["node"], "node-1");
    assert_eq!(status["vni"], 1024);
    assert_eq!(status["mtu"], 1450);
    assert_eq!(status["converged"], true);
    assert_eq!(status["repairs"], 0, "an undisturbed start repairs nothing: {status}");
    assert!(status["version"].is_string() && status["drops"].is_object());
    assert!(json("version").to_string().contains(status["version"].as_str().unwrap()));

    // For people: one line a member under a head, columns aligned. Global flags before or after.
    let table = one.cli(&["members"]).stdout;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    let columns: Vec<Option<usize>> = lines[1..].iter().map(|line| line.find("192.0.2.")).collect();
    assert!(columns[0].is_some() && columns[0] == columns[1], "{table}");
    assert_eq!(one.cli(&["-D", "peers"]).code, Some(0));
    assert_eq!(one.cli(&["status", "-D"]).code, Some(0));
    assert!(one.cli(&["version"]).stdout.contains(status["version"].as_str().unwrap()));
    let help = one.cli(&["server", "-h"]);
    assert_eq!(help.code, Some(0));
    for flag in ["--join", "--bind-addr", "--advertise-addr", "--listen-addr", "--node-timeout"] {
        assert!(help.stdout.contains(flag), "{flag} in {}", help.stdout);
    }

    one.stop();
    for command in ["members", "peers", "status", "version"] {
        for json in [&[command][..], &[command, "--json"]] {
            let ended = one.cli(json);
            assert_eq!(ended.code, Some(3), "{command} without a daemon: {ended:?}");
            assert_eq!(ended.stderr.trim_end().lines().count(), 1, "{ended:?}");
        }
    }
}

#[test]
fn log_tells_the_events_as_text_or_json() {
    require_root!();
    let mesh = Mesh::new(2);
    let (one, two) = (mesh.node(1), mesh.node(2));
    one.start(&["-D"]);
    two.start(&["--log-format", "json", "-j", &one.seed()]);
    mesh.wait_converged();
    one.address_bridge();
    two.address_bridge();
    assert!(one.namespace.pings(&two.overlay().to_string(), 1));
    two.stop();
    one.wait_until("node 2 has left", Duration::from_secs(5), |view| {
        view.state_of("node-2").as_deref() == Some("left")
    });
    // A broadcast without anybody to send it to is dropped, and with -D the program itself says so.
    assert!(!one.namespace.pings("10.42.0.77", 1));

    let text = one.log();
    for words in [
        &["version=", "marengo"][..],
        &["cluster event", "event=member-up", "node=node-2", "vtep=192.0.2.5"],
        &["event=member-left", "node=node-2"],
        &["current peers", "peers=node-2"],
        &["converged", "peers=node-2", "tunnels=ol-marengo"],
        &["dropped: no_peers"],
    ] {
        let found = text.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "no line with {words:?} in\n{text}");
    }
    let mut events = 0;
    for line in two.log().lines() {
        let line: serde_json::Value = serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("a line that is no JSON ({error}): {line}"));
        events += usize::from(line.to_string().contains("member-up"));
    }
    assert_eq!(events, 1, "{}", two.log());
    assert!(!two.log().contains("dropped: "), "programs are silent without -D");
}
