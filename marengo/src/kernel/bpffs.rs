//! The BPF file system, where maps and links outlive the daemon.

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::{
    fcntl::{Flock, FlockArg, OFlag, open},
    mount::{MsFlags, mount},
    sys::{
        stat::Mode,
        statfs::{BPF_FS_MAGIC, statfs},
    },
};

/// Where distributions mount it.
const ROOT: &str = "/sys/fs/bpf";
/// Where pin directories are unless somebody chose another place.
pub(super) const HOME: &str = "/sys/fs/bpf/marengo";

/// A pin directory that is on another file system.
#[derive(Debug, thiserror::Error)]
#[error("the pin directory {0} is on no BPF file system; choose one below {ROOT} with --pin-dir")]
pub(crate) struct NotBpffs(String);

/// Refuses a pin directory that is, or would come to be, on another file system. Creates nothing.
pub(crate) fn check(pin_dir: &Path) -> Result<(), NotBpffs> {
    let existing = pin_dir.ancestors().find(|dir| dir.exists()).unwrap_or(pin_dir);
    // Its usual place need not be mounted yet.
    let usual = pin_dir.starts_with(ROOT) && !is_bpffs(Path::new(ROOT));
    if usual || existing.is_dir() && is_bpffs(existing) {
        Ok(())
    } else {
        Err(NotBpffs(pin_dir.display().to_string()))
    }
}

/// Mounts the file system at its usual place if nobody has, and creates the directory.
pub(crate) fn prepare(pin_dir: &Path) -> Result<()> {
    if pin_dir.starts_with(ROOT) && !is_bpffs(Path::new(ROOT)) {
        mount(Some("bpf"), ROOT, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("failed to mount the BPF file system at {ROOT}"))?;
        tracing::info!(path = ROOT, "mounted the BPF file system");
    }
    fs::create_dir_all(pin_dir)
        .with_context(|| format!("failed to create the pin directory {}", pin_dir.display()))
}

/// Opens the directory, for a lock.
pub(crate) fn open_dir(dir: &Path) -> Result<OwnedFd> {
    Ok(open(dir, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Whether a daemon holds the directory's lock.
pub(super) fn is_locked(dir: &Path) -> bool {
    open_dir(dir).is_ok_and(|fd| Flock::lock(fd, FlockArg::LockExclusiveNonblock).is_err())
}

fn is_bpffs(path: &Path) -> bool {
    open_dir(path)
        .ok()
        .and_then(|dir| nix::sys::statfs::fstatfs(dir.as_fd()).ok())
        .or_else(|| statfs(path).ok())
        .is_some_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}
