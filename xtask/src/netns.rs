//! Network namespaces: make, enter, remove.
//!
//! They are entered with `nsenter --net` and `setns` alone. `ip netns exec` would mount a fresh
//! /sys, in which no pin is to be seen.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::exec;

const FOLDER: &str = "/run/netns";

/// Makes a namespace; its `lo` is up.
pub(crate) fn add(name: &str) -> Result<()> {
    exec::capture(exec::command("ip").args(["netns", "add", name]))?;
    exec::capture(command(name, "ip").args(["link", "set", "lo", "up"])).map(drop)
}

/// Removes a namespace; one that is gone already is fine.
pub(crate) fn delete(name: &str) -> Result<()> {
    if !path(name).exists() {
        return Ok(());
    }
    exec::capture(exec::command("ip").args(["netns", "delete", name])).map(drop)
}

/// The file that stands for a namespace.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// The names of all namespaces that begin so.
pub(crate) fn with_prefix(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(FOLDER) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// A command that runs in a namespace, and dies with the thread that starts it.
pub(crate) fn command(name: &str, program: &str) -> Command {
    let mut command = exec::command("setpriv");
    command
        .args(["--pdeathsig", "KILL"])
        .arg(exec::find("nsenter").unwrap_or_else(|| "nsenter".into()))
        .arg(format!("--net={}", path(name).display()))
        .arg(exec::find(program).unwrap_or_else(|| program.into()));
    command
}

/// Runs lines of `ip` commands in a namespace; the first that fails ends it.
pub(crate) fn ip_batch(name: &str, lines: &str) -> Result<()> {
    feed(command(name, "ip").args(["-batch", "-"]), lines)
        // ip names the failed line by its number.
        .with_context(|| format!("in the namespace {name}: {:.300}", lines.trim_end()))
}

/// Runs a command to its end with this text as its input.
pub(crate) fn feed(command: &mut Command, text: &str) -> Result<()> {
    exec::capture(command.stdin(Stdio::from(memory_file(text)?))).map(drop)
}

/// An unnamed file with this text, read from its start.
fn memory_file(text: &str) -> Result<File> {
    use std::io::Seek as _;
    let mut file: File =
        nix::sys::memfd::memfd_create(c"input", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
            .context("failed to make a file in memory")?
            .into();
    file.write_all(text.as_bytes()).context("failed to write a file in memory")?;
    file.rewind().context("failed to rewind a file in memory")?;
    Ok(file)
}

/// Runs `work` on a thread of its own inside a namespace: sockets it opens stay there.
pub(crate) fn inside<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file =
        File::open(path(name)).with_context(|| format!("failed to open the namespace {name}"))?;
    thread::scope(|scope| {
        scope
            .spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("failed to enter the namespace {name}"))?;
                work()
            })
            .join()
            .map_err(|_panic| anyhow!("the work inside the namespace {name} panicked"))?
    })
}

/// The processes that live in a namespace.
pub(crate) fn processes(name: &str) -> Vec<i32> {
    let Ok(namespace) = path(name).metadata() else {
        return Vec::new();
    };
    let lives_there = |pid: &i32| {
        fs::metadata(format!("/proc/{pid}/ns/net"))
            .is_ok_and(|net| (net.dev(), net.ino()) == (namespace.dev(), namespace.ino()))
    };
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(lives_there)
        .collect()
}
