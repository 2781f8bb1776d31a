//! What a peer costs, held to the figures that the benchmark page promises.
#![expect(clippy::unwrap_used, reason = "a test ends with a panic")]

use std::process::Command;

use marengo_tests::{require_root, requirements};

#[test]
fn thousand_peers_take_under_10_us_and_256_bytes_of_map_each() {
    require_root!();

    let program = bench(&["bench-program", "--peers", "1000", "--json"]);

    let (seconds, bytes) = (&program["seconds"], &program["map_bytes"]);
    assert!(seconds.as_f64().unwrap() / 1000.0 < 10e-6, "{program}");
    assert!(bytes.as_u64().unwrap() / 1000 < 256, "{program}");
    assert_nothing_left();
}

#[test]
fn daemon_with_a_thousand_members_is_under_16_mib() {
    require_root!();

    let members = bench(&["bench-members", "--members", "1000", "--json"]);

    assert_eq!(members["peers"], 999, "{members}");
    assert!(members["rss_bytes"].as_u64().unwrap() < 16 << 20, "{members}");
    assert_nothing_left();
}

fn bench(args: &[&str]) -> serde_json::Value {
    let output = Command::new(requirements::daemon()).args(args).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn assert_nothing_left() {
    let left = std::fs::read_dir("/sys/fs/bpf").unwrap().filter_map(Result::ok).any(|entry| {
        let name = entry.file_name().into_string().unwrap_or_default();
        let pid = name.strip_prefix("marengo-bench-").and_then(|pid| pid.parse::<u32>().ok());
        pid.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    });
    assert!(!left, "a benchmark left its pins behind");
}
