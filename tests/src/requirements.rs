//! What the tests need, and what happens where it is missing.

use std::path::{Path, PathBuf};

use crate::tell;

/// Whether a test may run here. Says why if not; where skipping is forbidden
/// (`MARENGO_REQUIRE_ROOT=1`) it panics.
pub fn may_run() -> bool {
    let Some(reason) = missing() else { return true };
    assert!(
        std::env::var_os("MARENGO_REQUIRE_ROOT").is_none_or(|value| value != "1"),
        "{reason}, and MARENGO_REQUIRE_ROOT=1 forbids skipping"
    );
    eprintln!("SKIPPED: {reason}");
    false
}

/// Returns from a test that cannot run here.
#[macro_export]
macro_rules! require_root {
    () => {
        if !$crate::requirements::may_run() {
            return;
        }
    };
}

fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("network namespaces and BPF need root".to_owned());
    }
    let tools = ["bpftool", "ip", "nft", "nsenter", "ping", "setpriv", "strace", "tc"];
    let absent: Vec<&str> =
        tools.into_iter().filter(|tool| crate::exec::find(tool).is_none()).collect();
    if absent.is_empty() { None } else { Some(format!("no {} found", absent.join(", "))) }
}

/// The daemon under test: `MARENGO_BIN`, or the one that `cargo build --release` makes.
pub fn daemon() -> PathBuf {
    let path = std::env::var_os("MARENGO_BIN")
        .map_or_else(|| workspace().join("target/release/marengo"), PathBuf::from);
    assert!(
        path.is_file(),
        "there is no daemon at {}: run `cargo xtask test`, or set MARENGO_BIN",
        path.display()
    );
    path
}

/// The eBPF object under test.
pub fn bpf_object() -> PathBuf {
    let path = std::env::var_os("MARENGO_EBPF_OBJECT")
        .map_or_else(|| workspace().join("target/marengo.bpf.o"), PathBuf::from);
    assert!(
        path.is_file(),
        "there is no eBPF object at {}: run `cargo xtask build-ebpf`",
        path.display()
    );
    path
}

/// How often a test of chances repeats itself: `MARENGO_RUNS`, or `default`.
pub fn runs(default: usize) -> usize {
    std::env::var("MARENGO_RUNS").map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("MARENGO_RUNS is no number: {text:?}"))
    })
}

/// Whether the tests that take long are to run: `MARENGO_LONG=1`.
pub fn long() -> bool {
    std::env::var_os("MARENGO_LONG").is_some_and(|value| value == "1")
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace")
}

/// The seed of a test of chances: `MARENGO_SEED`, or a new one. Printed, so that a run can be
/// repeated.
pub fn seed() -> u64 {
    let seed = std::env::var("MARENGO_SEED").map_or_else(
        |_| rand::random(),
        |text| text.parse().unwrap_or_else(|_| panic!("MARENGO_SEED is no number: {text:?}")),
    );
    tell(format_args!("MARENGO_SEED={seed}"));
    seed
}
