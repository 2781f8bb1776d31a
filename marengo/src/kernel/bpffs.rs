//! The BPF file system, where maps and links outlive the daemon.

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::{
    fcntl::{OFlag, open},
    mount::{MsFlags, mount},
    sys::{
        stat::Mode,
        statfs::{BPF_FS_MAGIC, statfs},
    },
};

/// Where distributions mount it.
const ROOT: &str = "/sys/fs/bpf";

/// Makes sure that `pin_dir` can hold pins: mounts the file system at its usual place if nobody has,
/// and creates the directory. Says whether it made the directory.
pub(super) fn prepare(pin_dir: &Path) -> Result<bool> {
    if pin_dir.starts_with(ROOT) && !is_bpffs(Path::new(ROOT)) {
        mount(Some("bpf"), ROOT, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("failed to mount the BPF file system at {ROOT}"))?;
        tracing::info!(path = ROOT, "mounted the BPF file system");
    }
    if pin_dir.is_dir() {
        return Ok(false);
    }
    fs::create_dir_all(pin_dir)
        .with_context(|| format!("failed to create the pin directory {}", pin_dir.display()))?;
    if !is_bpffs(pin_dir) {
        fs::remove_dir(pin_dir).ok();
        anyhow::bail!(
            "the pin directory {} is on no BPF file system; choose one below {ROOT}",
            pin_dir.display()
        );
    }
    Ok(true)
}

/// Opens the directory, for a lock.
pub(crate) fn open_dir(dir: &Path) -> Result<OwnedFd> {
    Ok(open(dir, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn is_bpffs(path: &Path) -> bool {
    open_dir(path)
        .ok()
        .and_then(|dir| nix::sys::statfs::fstatfs(dir.as_fd()).ok())
        .or_else(|| statfs(path).ok())
        .is_some_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}
