//! A process that gets little of the processor.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Keeps a process at a share of one processor until it is dropped.
#[derive(Debug)]
pub struct CpuQuota {
    group: PathBuf,
    pid: u32,
}

impl CpuQuota {
    /// Puts a process into a group of its own with `percent` of one processor, in periods of 100 ms.
    pub fn limit(pid: u32, percent: u32) -> Self {
        let name = format!("marengo-t{}-{pid}", std::process::id());
        let (root, file, value) = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            ("/sys/fs/cgroup", "cpu.max", format!("{} 100000", percent * 1000))
        } else {
            ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", (percent * 1000).to_string())
        };
        let quota = Self { group: Path::new(root).join(name), pid };
        fs::create_dir(&quota.group).expect("root may make a group");
        let write = |file: &str, value: &str| {
            let path = quota.group.join(file);
            fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        };
        write(file, &value);
        write("cgroup.procs", &pid.to_string());
        quota
    }
}

impl Drop for CpuQuota {
    fn drop(&mut self) {
        // Back to the root; a process that has ended is out already.
        if let Some(root) = self.group.parent() {
            fs::write(root.join("cgroup.procs"), self.pid.to_string()).ok();
        }
        fs::remove_dir(&self.group).ok();
    }
}
