//! What a subcommand needs from the system, and how it gets there: the distribution's packages.
//!
//! Nothing is asked of the package manager while nothing is missing, so an offline machine that has
//! everything works. Every installation is announced, with its reason, before it starts.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{exec, workspace};

/// A command that a subcommand runs, and the package of Debian and Ubuntu that has it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Tool {
    command: &'static str,
    package: &'static str,
}

const fn tool(command: &'static str, package: &'static str) -> Tool {
    Tool { command, package }
}

pub(crate) const IP: Tool = tool("ip", "iproute2");
pub(crate) const TC: Tool = tool("tc", "iproute2");
pub(crate) const BPFTOOL: Tool = tool("bpftool", "bpftool");
pub(crate) const IPERF3: Tool = tool("iperf3", "iperf3");
pub(crate) const PING: Tool = tool("ping", "iputils-ping");
pub(crate) const NFT: Tool = tool("nft", "nftables");
pub(crate) const TCPDUMP: Tool = tool("tcpdump", "tcpdump");
pub(crate) const STRACE: Tool = tool("strace", "strace");
pub(crate) const NSENTER: Tool = tool("nsenter", "util-linux");
pub(crate) const SETPRIV: Tool = tool("setpriv", "util-linux");
pub(crate) const SYSCTL: Tool = tool("sysctl", "procps");

/// Makes sure that these commands exist.
pub(crate) fn tools(who: &str, needed: &[Tool]) -> Result<()> {
    let missing: Vec<Tool> =
        needed.iter().copied().filter(|tool| exec::find(tool.command).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    let commands: Vec<&str> = missing.iter().map(|tool| tool.command).collect();
    let reason = format!("{who} runs {}", commands.join(", "));
    install(&packages, &reason).with_context(|| {
        format!(
            "these commands are missing: {} (on Debian and Ubuntu in the packages {})",
            commands.join(", "),
            packages.join(", ")
        )
    })?;
    for tool in missing {
        if exec::find(tool.command).is_none() {
            bail!("the package {} is installed, but has no {}", tool.package, tool.command);
        }
    }
    Ok(())
}

/// Says why this machine cannot install packages by itself, if it cannot.
pub(crate) fn cannot_install() -> Option<&'static str> {
    if exec::find("apt-get").is_none() {
        Some("there is no apt on this machine")
    } else if !workspace::is_root() {
        Some("installing packages needs root")
    } else {
        None
    }
}

/// Whether every one of these packages can be installed from the configured sources.
pub(crate) fn available(packages: &[&str]) -> bool {
    let known = || packages.iter().all(|package| has_candidate(package));
    // The lists may be missing or old: they are fetched before a package is called unavailable.
    known() || (update().is_ok() && known())
}

fn has_candidate(package: &str) -> bool {
    exec::capture(exec::command("apt-cache").args(["policy", package]).env("LC_ALL", "C"))
        .is_ok_and(|policy| {
            policy
                .lines()
                .filter_map(|line| line.trim().strip_prefix("Candidate:"))
                .any(|candidate| candidate.trim() != "(none)")
        })
}

/// Installs packages with apt, after saying which and why.
pub(crate) fn install(packages: &[&str], reason: &str) -> Result<()> {
    if let Some(obstacle) = cannot_install() {
        bail!("{obstacle}: install {} yourself ({reason})", packages.join(" "));
    }
    println!("installing {} with apt, because {reason}", packages.join(" "));
    if !available(packages) {
        bail!("apt has no candidate for some of: {}", packages.join(" "));
    }
    // Lists that are too old name files that the mirror has no more: then once again with new ones.
    if exec::run(&mut apt_install(packages)).is_err() {
        crate::stop::check()?;
        update()?;
        exec::run(&mut apt_install(packages))?;
    }
    Ok(())
}

fn apt_install(packages: &[&str]) -> Command {
    let mut install = apt();
    // --no-remove: rustc-web conflicts with Debian's own rustc and rustup, whose removal is for the
    // machine's owner to decide.
    install.args(["install", "-y", "-q", "--no-install-recommends", "--no-remove"]).args(packages);
    install
}

fn update() -> Result<()> {
    println!("fetching apt's package lists");
    exec::run(apt().args(["update", "-q"]))
}

fn apt() -> Command {
    let mut apt = exec::command("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=120"]);
    apt
}

/// Makes sure that a BPF filesystem is mounted where pins go.
pub(crate) fn bpffs() -> Result<()> {
    let folder = Path::new("/sys/fs/bpf");
    if is_bpffs(folder)? {
        return Ok(());
    }
    println!("mounting a BPF filesystem on {}, because none is there", folder.display());
    nix::mount::mount(Some("bpf"), folder, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)
        .with_context(|| {
            format!("failed to mount bpffs on {0}: try `mount -t bpf bpf {0}`", folder.display())
        })
}

fn is_bpffs(folder: &Path) -> Result<bool> {
    let stat = nix::sys::statfs::statfs(folder).with_context(|| {
        format!("failed to look at {}: is sysfs mounted on /sys?", folder.display())
    })?;
    Ok(stat.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}
