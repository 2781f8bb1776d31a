//! Everything that one needs when a test has failed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{exec, http, netns::Namespace};

/// Something to print: a node, or a namespace without a daemon.
#[derive(Clone, Debug)]
pub struct Subject {
    pub name: String,
    pub namespace: Namespace,
    /// What a node has besides its namespace.
    pub node: Option<NodeFiles>,
}

/// Where a node's daemon keeps its things.
#[derive(Clone, Debug)]
pub struct NodeFiles {
    pub log: PathBuf,
    pub pins: PathBuf,
    pub socket: PathBuf,
}

/// Lines of a log that are printed.
const TAIL: usize = 60;

/// Prints the state of all of them. Never panics.
pub fn print(subjects: &[Subject]) {
    for subject in subjects {
        eprintln!("\n######## {} ({})", subject.name, subject.namespace.name());
        let lines: &[&str] = if subject.node.is_some() {
            &[
                "ip -d -s link",
                "ip address",
                "ip route",
                "ip -6 route",
                "ip neighbour",
                "bridge fdb",
                "bpftool net",
            ]
        } else {
            &["ip address", "ip route", "ip -6 route", "ip neighbour"]
        };
        for line in lines {
            print_output(line, subject.namespace.command("sh").args(["-c", line]));
        }
        if let Some(node) = &subject.node {
            print_node(node);
        }
    }
    if subjects.iter().any(|subject| subject.node.is_some()) {
        print_output("bpftool link", exec::command("bpftool").arg("link"));
    }
}

fn print_node(node: &NodeFiles) {
    for map in ["settings", "peers", "vteps", "macs", "flood", "stats", "drops"] {
        let pin = node.pins.join(map);
        if pin.exists() {
            let mut command = exec::command("bpftool");
            print_output(map, command.args(["map", "dump", "pinned"]).arg(pin));
        }
    }
    for path in ["/v1/members", "/v1/peers", "/v1/status"] {
        match http::get_unix(&node.socket, path) {
            Some(answer) => eprintln!("---- {path}: {} {}", answer.status, answer.body),
            None => eprintln!("---- {path}: no answer"),
        }
    }
    print_log(&node.log);
}

fn print_log(path: &Path) {
    let log = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    eprintln!("---- log, the last {TAIL} of {} lines", lines.len());
    for line in &lines[lines.len().saturating_sub(TAIL)..] {
        eprintln!("{line}");
    }
}

fn print_output(title: &str, command: &mut Command) {
    let run = std::panic::AssertUnwindSafe(|| exec::capture_any(command, Duration::from_secs(10)));
    let Ok(output) = std::panic::catch_unwind(run) else { return };
    eprintln!("---- {title}");
    eprint!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
}
