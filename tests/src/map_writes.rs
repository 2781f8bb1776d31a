//! Every write to a BPF map that a process makes, as strace sees it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{exec, wait};

/// A watch over one process; dropping it ends it.
#[derive(Debug)]
pub struct MapWrites {
    strace: Child,
    pid: u32,
    log: PathBuf,
    /// The pins' names by the kernel's numbers of the maps.
    names: BTreeMap<u64, String>,
}

impl MapWrites {
    /// Starts to look at a process. `pins` are its maps; the log goes to `folder`.
    pub fn start(pid: u32, pins: &Path, maps: &[&str], folder: &Path) -> Self {
        let names =
            maps.iter().map(|map| (crate::bpf::id("map", &pins.join(map)), (*map).to_owned()));
        let log = folder.join(format!("strace-{pid}"));
        let mut command = exec::command("strace");
        command.args(["-f", "-qq", "-e", "trace=bpf", "-p", &pid.to_string(), "-o"]).arg(&log);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let names = names.collect();
        let watch = Self { strace: command.spawn().expect("strace is required"), pid, log, names };
        wait::until("strace has attached", Duration::from_secs(5), || {
            fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten().all(|task| {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0\n")
            })
        });
        watch
    }

    /// The names of the maps that were written to, one for each write, in order.
    pub fn finish(mut self) -> Vec<String> {
        self.end();
        let log = fs::read_to_string(&self.log).expect("strace has written its log");
        let mut writes = Vec::new();
        for line in log.lines() {
            let is_write = ["BPF_MAP_UPDATE_ELEM", "BPF_MAP_DELETE_ELEM", "BPF_MAP_UPDATE_BATCH"]
                .iter()
                .any(|operation| line.contains(operation));
            if !is_write {
                continue;
            }
            let fd = line.split("map_fd=").nth(1).expect("strace names the map");
            let fd: String = fd.chars().take_while(char::is_ascii_digit).collect();
            let name = self.name_of(&fd);
            writes.push(name.unwrap_or_else(|| format!("descriptor {fd}")));
        }
        writes
    }

    fn name_of(&self, fd: &str) -> Option<String> {
        let info = File::open(format!("/proc/{}/fdinfo/{fd}", self.pid)).ok()?;
        let info = std::io::read_to_string(info).ok()?;
        let id = info.lines().find_map(|line| line.strip_prefix("map_id:"))?;
        self.names.get(&id.trim().parse().ok()?).cloned()
    }

    fn end(&mut self) {
        // On SIGTERM it lets go of the process, which goes on.
        kill(Pid::from_raw(self.strace.id().cast_signed()), Signal::SIGTERM).ok();
        exec::wait_for_exit(&mut self.strace, Duration::from_secs(5));
    }
}

impl Drop for MapWrites {
    fn drop(&mut self) {
        self.end();
    }
}
