//! Network namespaces: make, enter, ask.
//!
//! They are entered with `nsenter --net` and `setns` alone. `ip netns exec` and `ip -n` mount a
//! fresh /sys, in which no pin is to be seen.

use std::{
    ffi::OsStr,
    fs::File,
    io::{Seek as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::{self, JoinHandle},
};

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::exec;

/// The folder in which `ip netns` keeps the namespaces.
pub const FOLDER: &str = "/run/netns";

/// A network namespace. A handle: cloning and dropping it changes nothing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace; its `lo` is up.
    pub(crate) fn add(name: String) -> Self {
        exec::capture(exec::command("ip").args(["netns", "add", &name]));
        let namespace = Self { name };
        // Whoever waits for duplicate address detection resolves no neighbour for a second.
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0");
        namespace.ip("link set lo up");
        namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }

    /// A command that runs inside. The process is the program itself: `nsenter` has become it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let program = exec::command(program).get_program().to_owned();
        let mut command = exec::command("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a command line inside that must succeed, and returns what it printed. Words are
    /// separated by spaces; there is no quoting.
    pub fn run(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a command line has a program");
        exec::capture(self.command(program).args(words))
    }

    /// Runs lines of `ip` commands; the first that fails ends it.
    pub fn ip(&self, lines: &str) {
        let mut file: File = memory_file();
        file.write_all(lines.as_bytes()).expect("memory can be written to");
        file.write_all(b"\n").expect("memory can be written to");
        file.rewind().expect("memory can be rewound");
        let mut command = self.command("ip");
        command.args(["-batch", "-"]).stdin(Stdio::from(file));
        let output = exec::capture_any(&mut command, std::time::Duration::from_secs(20));
        assert!(
            output.status.success(),
            "in {}: `ip -batch` of {lines:?} failed: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Applies rules in the form of `nft -f`, all or none.
    pub fn nft(&self, rules: &str) {
        let mut file: File = memory_file();
        file.write_all(rules.as_bytes()).expect("memory can be written to");
        file.rewind().expect("memory can be rewound");
        exec::capture(self.command("nft").args(["-f", "-"]).stdin(Stdio::from(file)));
    }

    /// Writes a file below /proc/sys/net, which shows the reader's namespace.
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.inside(|| {
            std::fs::write(&path, value)
                .unwrap_or_else(|error| panic!("failed to write {value} to {path}: {error}"));
        });
    }

    /// What `ip -json -details link show` tells of a link; nothing if there is none.
    pub fn link(&self, name: &str) -> Option<Value> {
        let mut command = self.command("ip");
        command.args(["-json", "-details", "link", "show", "dev", name]);
        let output = exec::capture_any(&mut command, std::time::Duration::from_secs(20));
        if !output.status.success() {
            return None;
        }
        let links: Value = serde_json::from_slice(&output.stdout).ok()?;
        links.get(0).cloned()
    }

    /// The names of all links.
    pub fn devices(&self) -> Vec<String> {
        let links: Value =
            serde_json::from_str(&self.run("ip -json link show")).expect("ip prints JSON");
        let links = links.as_array().expect("ip prints a list").iter();
        links.filter_map(|link| link["ifname"].as_str().map(str::to_owned)).collect()
    }

    /// The index of a link; nothing if there is none.
    pub fn ifindex(&self, name: &str) -> Option<u32> {
        self.inside(|| nix::net::if_::if_nametoindex(name).ok())
    }

    /// Runs `work` on a thread of its own inside: sockets it opens stay there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let result = thread::scope(|scope| scope.spawn(|| self.entered(work)).join());
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts `work` on a thread inside.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = self.clone();
        thread::spawn(move || namespace.entered(work))
    }

    /// For a thread that does nothing else: it stays inside.
    fn entered<T>(&self, work: impl FnOnce() -> T) -> T {
        let file = File::open(self.path())
            .unwrap_or_else(|error| panic!("failed to open the namespace {}: {error}", self.name));
        setns(file, CloneFlags::CLONE_NEWNET)
            .unwrap_or_else(|error| panic!("failed to enter the namespace {}: {error}", self.name));
        work()
    }

    /// The processes that live inside.
    pub fn processes(&self) -> Vec<i32> {
        exec::capture(exec::command("ip").args(["netns", "pids", &self.name]))
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .collect()
    }

    /// Whether `count` echo requests, five a second, are all answered.
    pub fn pings(&self, address: &str, count: u32) -> bool {
        let mut command = self.command("ping");
        let count = count.to_string();
        command.args(["-n", "-i", "0.2", "-W", "2", "-c", &count, address]);
        let limit = std::time::Duration::from_secs(30);
        let output = exec::capture_any(&mut command, limit);
        output.status.success()
            && String::from_utf8_lossy(&output.stdout).contains(" 0% packet loss")
    }
}

fn memory_file() -> File {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    memfd_create(c"input", MFdFlags::MFD_CLOEXEC).expect("memory for a command's input").into()
}
