//! Owns everything that a demonstration or benchmark leaves on the machine, and removes it.
//!
//! A [`Lab`] names all it makes after its own process: `mgo-demo-<pid>-<what>` for namespaces,
//! `marengo-demo-<pid>` for the folder of pins and the folder in /run. So the next lab finds what a
//! killed one has left. Devices exist only inside the namespaces and go with them.

use std::{
    fs,
    os::unix::{fs::DirBuilderExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use crate::{exec, netns};

const PINS: &str = "/sys/fs/bpf";
const RUN: &str = "/run";

/// How long processes get between SIGTERM and SIGKILL.
const PATIENCE: Duration = Duration::from_secs(5);

/// The owner of namespaces, processes, pins and files; dropping it removes them.
#[derive(Debug)]
pub(crate) struct Lab {
    kind: &'static str,
    pid: u32,
    namespaces: Vec<String>,
    processes: Vec<Process>,
    closed: bool,
}

#[derive(Debug)]
struct Process {
    name: String,
    child: Child,
}

impl Lab {
    /// Removes what labs of this kind have left whose process is gone, and makes the folders.
    pub(crate) fn open(kind: &'static str) -> Result<Self> {
        for pid in abandoned(kind) {
            println!("removing what an earlier {kind} (pid {pid}) has left behind");
            let mut old =
                Self { kind, pid, namespaces: Vec::new(), processes: Vec::new(), closed: false };
            old.namespaces = netns::with_prefix(&old.namespace(""));
            old.close()?;
        }
        let pid = std::process::id();
        let lab = Self { kind, pid, namespaces: Vec::new(), processes: Vec::new(), closed: false };
        for folder in [lab.run_folder(), lab.pins()] {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&folder)
                .with_context(|| format!("failed to make {}", folder.display()))?;
        }
        Ok(lab)
    }

    /// The full name of the namespace called `what`.
    pub(crate) fn namespace(&self, what: &str) -> String {
        format!("mgo-{}-{}-{what}", self.kind, self.pid)
    }

    pub(crate) fn add_namespace(&mut self, what: &str) -> Result<String> {
        let name = self.namespace(what);
        // Known before it exists: it is removed even if the making fails half-way.
        self.namespaces.push(name.clone());
        netns::add(&name)?;
        Ok(name)
    }

    /// The folder for sockets and logs.
    pub(crate) fn run_folder(&self) -> PathBuf {
        Path::new(RUN).join(self.folder())
    }

    /// The folder for pins.
    pub(crate) fn pins(&self) -> PathBuf {
        Path::new(PINS).join(self.folder())
    }

    fn folder(&self) -> String {
        format!("marengo-{}-{}", self.kind, self.pid)
    }

    /// Starts a process that the lab ends: in a group of its own, where no Ctrl-C reaches it.
    pub(crate) fn start(&mut self, name: &str, command: &mut Command) -> Result<&mut Child> {
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("failed to start {name}: {}", exec::shown(command)))?;
        self.processes.push(Process { name: name.to_owned(), child });
        Ok(&mut self.processes.last_mut().expect("it was pushed above").child)
    }

    /// Kills a process (and its group) at once, as a power cut would.
    pub(crate) fn kill(&mut self, name: &str) -> Result<()> {
        let at = self
            .processes
            .iter()
            .position(|process| process.name == name)
            .with_context(|| format!("no process is called {name}"))?;
        let mut process = self.processes.remove(at);
        killpg(exec::pid_of(&process.child), Signal::SIGKILL)
            .with_context(|| format!("failed to kill {name}"))?;
        process.child.wait().with_context(|| format!("failed to wait for {name}")).map(drop)
    }

    /// How a process has ended, if it has.
    pub(crate) fn ended(&mut self, name: &str) -> Result<Option<ExitStatus>> {
        let process = self.processes.iter_mut().find(|process| process.name == name);
        let process = process.with_context(|| format!("no process is called {name}"))?;
        process.child.try_wait().with_context(|| format!("failed to wait for {name}"))
    }

    /// Ends all processes, removes all that is there, and fails if something is left.
    ///
    /// A signal does not interrupt it. Steps go on after one has failed.
    pub(crate) fn close(&mut self) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        self.closed = true;
        let mut problems = self.end_processes();
        problems.extend(remove_folder(&self.pins()));
        for namespace in &self.namespaces {
            if let Err(error) = netns::delete(namespace) {
                problems.push(format!("{error:#}"));
            }
        }
        problems.extend(remove_folder(&self.run_folder()));
        problems.extend(self.left_over());
        if problems.is_empty() {
            return Ok(());
        }
        bail!("the clean-up is not complete: {}", problems.join("; "))
    }

    fn end_processes(&mut self) -> Vec<String> {
        // The daemons say goodbye to one another, so all are asked before any is waited for. A
        // process that is gone already is none of the problems.
        for process in &self.processes {
            kill(exec::pid_of(&process.child), Signal::SIGTERM).ok();
        }
        let deadline = Instant::now() + PATIENCE;
        let mut problems = Vec::new();
        for Process { name, child } in &mut self.processes {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            if matches!(child.try_wait(), Ok(None)) {
                problems.push(format!(
                    "{name} did not end within {} s of SIGTERM and was killed",
                    PATIENCE.as_secs()
                ));
            }
            killpg(exec::pid_of(child), Signal::SIGKILL).ok();
            child.wait().ok();
        }
        self.processes.clear();
        // Whoever left its group still lives in a namespace of ours.
        for pid in self.strangers() {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        let deadline = Instant::now() + Duration::from_secs(1);
        while !self.strangers().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        problems
    }

    fn strangers(&self) -> Vec<i32> {
        self.namespaces.iter().flat_map(|name| netns::processes(name)).collect()
    }

    fn left_over(&self) -> Vec<String> {
        let namespaces = netns::with_prefix(&self.namespace(""))
            .into_iter()
            .map(|name| format!("the namespace {name} is still there"));
        let folders = [self.pins(), self.run_folder()]
            .into_iter()
            .filter(|folder| folder.exists())
            .map(|folder| format!("{} is still there", folder.display()));
        namespaces.chain(folders).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            eprintln!("{error:#}");
        }
    }
}

fn remove_folder(folder: &Path) -> Option<String> {
    if !folder.exists() {
        return None;
    }
    let error = fs::remove_dir_all(folder).err()?;
    Some(format!("failed to remove {}: {error}", folder.display()))
}

/// The pids of labs that left something and live no more.
fn abandoned(kind: &str) -> Vec<u32> {
    let namespaces = netns::with_prefix(&format!("mgo-{kind}-"));
    let folders = [RUN, PINS].into_iter().filter_map(|folder| fs::read_dir(folder).ok());
    let folders =
        folders.flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut pids: Vec<u32> = namespaces
        .iter()
        .filter_map(|name| pid_in(name, &format!("mgo-{kind}-")))
        .chain(folders.filter_map(|name| pid_in(&name, &format!("marengo-{kind}-"))))
        .filter(|pid| !is_xtask(*pid))
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

fn pid_in(name: &str, prefix: &str) -> Option<u32> {
    let rest = name.strip_prefix(prefix)?;
    rest.split('-').next()?.parse().ok()
}

/// Whether this pid is a running xtask other than ourselves: pids are used again.
fn is_xtask(pid: u32) -> bool {
    pid != std::process::id()
        && fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|comm| comm.starts_with("xtask"))
}

/// Whether a test may open a lab here; says so if not.
#[cfg(test)]
pub(crate) fn possible_here() -> bool {
    let tools = ["ip", "tc", "nsenter", "setpriv", "strace"];
    let possible = crate::workspace::is_root()
        && crate::setup::bpffs().is_ok()
        && tools.iter().all(|tool| exec::find(tool).is_some());
    if !possible {
        eprintln!("SKIPPED: needs root, bpffs and {}", tools.join(", "));
    }
    possible
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pid that no kernel gives out.
    const NOBODY: u32 = 999_999_999;

    #[test]
    fn pid_is_read_from_names_of_ours_alone() {
        assert_eq!(pid_in("mgo-demo-4711-router", "mgo-demo-"), Some(4711));
        assert_eq!(pid_in("marengo-demo-4711", "marengo-demo-"), Some(4711));
        assert_eq!(pid_in("mgo-demo-x-1", "mgo-demo-"), None);
        assert_eq!(pid_in("blue", "mgo-demo-"), None);
    }

    #[test]
    fn a_running_process_that_is_no_xtask_does_not_hold_a_lab() {
        assert!(!is_xtask(1));
        assert!(!is_xtask(std::process::id()), "a used-again pid of our own is swept");
    }

    #[test]
    fn lab_leaves_nothing_behind_and_sweeps_what_a_killed_one_left() {
        if !possible_here() {
            return;
        }
        let mut killed = Lab::open("test").unwrap();
        killed.pid = NOBODY;
        killed.add_namespace("old").unwrap();
        fs::create_dir(killed.run_folder()).unwrap();
        // As after a SIGKILL: nobody drops it.
        let killed = std::mem::ManuallyDrop::new(killed);
        remove_folder(&Path::new(RUN).join(format!("marengo-test-{}", std::process::id())));
        remove_folder(&Path::new(PINS).join(format!("marengo-test-{}", std::process::id())));

        let mut lab = Lab::open("test").unwrap();
        assert_eq!(netns::with_prefix(&killed.namespace("")), Vec::<String>::new());
        assert!(!killed.run_folder().exists());

        let name = lab.add_namespace("new").unwrap();
        // One that asks for no signal, and a child that leaves its group.
        let stubborn = "trap '' TERM; setsid sleep 1000 & sleep 1000; sleep 1000";
        let mut shell = netns::command(&name, "sh");
        lab.start("shell", shell.args(["-c", stubborn])).unwrap();
        let processes = crate::stop::wait_for("the shell", Duration::from_secs(5), || {
            Ok(Some(netns::processes(&name)).filter(|processes| processes.len() == 3))
        })
        .unwrap();

        let error = lab.close().expect_err("a process that had to be killed is reported");

        assert!(format!("{error:#}").contains("shell did not end"), "{error:#}");
        assert_eq!(netns::with_prefix(&lab.namespace("")), Vec::<String>::new());
        assert!(!lab.run_folder().exists() && !lab.pins().exists());
        for pid in processes {
            let ended = || {
                fs::read_to_string(format!("/proc/{pid}/stat"))
                    .map_or(true, |stat| stat.contains(") Z "))
            };
            crate::stop::wait_for("a killed process", Duration::from_secs(2), || {
                Ok(ended().then_some(()))
            })
            .unwrap();
        }
    }
}
