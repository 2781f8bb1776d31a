//! A process that gets little of the processor.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use crate::exec;

/// Keeps a process at a share of one processor until it is dropped.
#[derive(Debug)]
pub struct CpuQuota {
    group: PathBuf,
    pid: u32,
    /// Wants all that there is: an idle daemon would do with one hundredth of a processor.
    rival: Child,
}

impl CpuQuota {
    /// Puts a process into a group with `percent` of one processor, in periods of 100 ms, which it
    /// shares with another one that never rests.
    pub fn limit(pid: u32, percent: u32) -> Self {
        let name = format!("marengo-t{}-{pid}", std::process::id());
        let (root, file, value) = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            ("/sys/fs/cgroup", "cpu.max", format!("{} 100000", percent * 1000))
        } else {
            ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", (percent * 1000).to_string())
        };
        let rival = exec::command("sh")
            .args(["-c", "while :; do :; done"])
            .stdin(Stdio::null())
            .spawn()
            .expect("there is a shell");
        let quota = Self { group: Path::new(root).join(name), pid, rival };
        fs::create_dir(&quota.group).expect("root may make a group");
        let write = |file: &str, value: &str| {
            let path = quota.group.join(file);
            fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        };
        write(file, &value);
        write("cgroup.procs", &quota.rival.id().to_string());
        write("cgroup.procs", &pid.to_string());
        quota
    }

    /// In how many periods the process has had to wait for the next one.
    pub fn throttled(&self) -> u64 {
        let text = fs::read_to_string(self.group.join("cpu.stat")).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        count.and_then(|count| count.parse().ok()).unwrap_or_default()
    }
}

impl Drop for CpuQuota {
    fn drop(&mut self) {
        self.rival.kill().ok();
        self.rival.wait().ok();
        // Back to the root; a process that has ended is out already.
        if let Some(root) = self.group.parent() {
            fs::write(root.join("cgroup.procs"), self.pid.to_string()).ok();
        }
        fs::remove_dir(&self.group).ok();
    }
}
