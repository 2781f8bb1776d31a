//! Owns everything that a test leaves on the machine, and removes it.
//!
//! All names carry the pid of the test process and a number: `mgo-t<pid>-<n>-<what>` for
//! namespaces, `marengo-t<pid>` for the folders of pins and in /run. Dropping the [`Sandbox`] removes
//! what one test has made. A janitor process, which lives until its input is closed, removes what
//! is left when the test process is interrupted, aborted or killed; and what a janitor could not
//! remove, because it was killed as well, the next test process does.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    diagnostics::{self, Subject},
    exec,
    netns::{self, Namespace},
    watchdog::Watchdog,
};

const JANITOR: &str = include_str!("janitor.sh");
const BPFFS: &str = "/sys/fs/bpf";

/// How long a test may run unless it asks for more.
pub const TEST_LIMIT: Duration = Duration::from_mins(2);

/// The owner of namespaces, pins and files of one test.
#[derive(Debug)]
pub struct Sandbox {
    number: u32,
    namespaces: Mutex<Vec<Namespace>>,
    subjects: Arc<Mutex<Vec<Subject>>>,
    _watchdog: Watchdog,
}

impl Sandbox {
    /// Opens a sandbox for a test that ends within `limit`.
    pub fn open(limit: Duration) -> Self {
        static PROCESS: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(1);

        PROCESS.call_once(prepare_process);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let subjects = Arc::new(Mutex::new(Vec::new()));
        let seen_last = Arc::clone(&subjects);
        let watchdog = Watchdog::start(limit, move || diagnostics::print(&locked(&seen_last)));
        let sandbox = Self { number, namespaces: Mutex::default(), subjects, _watchdog: watchdog };
        for folder in [sandbox.folder(), sandbox.pins()] {
            fs::create_dir_all(&folder)
                .unwrap_or_else(|error| panic!("failed to make {}: {error}", folder.display()));
        }
        sandbox
    }

    /// Makes a namespace.
    pub fn namespace(&self, what: &str) -> Namespace {
        let name = format!("mgo-t{}-{}-{what}", std::process::id(), self.number);
        let namespace = Namespace::add(name);
        locked(&self.namespaces).push(namespace.clone());
        namespace
    }

    /// Where sockets and logs go.
    pub fn folder(&self) -> PathBuf {
        process_folder(Path::new("/run")).join(self.number.to_string())
    }

    /// Where pins go.
    pub fn pins(&self) -> PathBuf {
        process_folder(Path::new(BPFFS)).join(self.number.to_string())
    }

    /// Adds something to what is printed when the test fails.
    pub fn add_subject(&self, subject: Subject) {
        locked(&self.subjects).push(subject);
    }

    fn remove(&self) {
        let namespaces = locked(&self.namespaces);
        for pid in namespaces.iter().flat_map(Namespace::processes) {
            // It may have ended by itself.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        for namespace in namespaces.iter() {
            exec::capture(exec::command("ip").args(["netns", "delete", namespace.name()]));
        }
        for folder in [self.folder(), self.pins()] {
            // A test may have moved its pins or sockets away.
            fs::remove_dir_all(folder).ok();
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            diagnostics::print(&locked(&self.subjects));
        }
        let removed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.remove()));
        // A second panic would abort, and hide the first.
        assert!(removed.is_ok() || failed, "the clean-up failed");
    }
}

fn process_folder(parent: &Path) -> PathBuf {
    parent.join(format!("marengo-t{}", std::process::id()))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sweeps, mounts bpffs, starts the janitor.
fn prepare_process() {
    for pid in abandoned() {
        eprintln!("removing what an earlier test process ({pid}) has left behind");
        let mut sweep = janitor(pid, Stdio::null()).expect("sh runs");
        sweep.wait().expect("a child of ours can be waited for");
    }
    mount_bpffs();
    // A static is never dropped: the write end of its input is open until this process is gone.
    static LIVES_ON: OnceLock<Child> = OnceLock::new();
    LIVES_ON.get_or_init(|| janitor(std::process::id(), Stdio::piped()).expect("sh runs"));
}

fn janitor(pid: u32, input: Stdio) -> std::io::Result<Child> {
    use std::os::unix::process::CommandExt as _;
    Command::new("sh")
        .args(["-c", JANITOR, "janitor", &pid.to_string()])
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // No Ctrl-C reaches it there.
        .process_group(0)
        .spawn()
}

fn mount_bpffs() {
    use nix::mount::{MsFlags, mount};
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS)) {
        return;
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .unwrap_or_else(|error| panic!("failed to mount bpffs at {BPFFS}: {error}"));
}

/// The pids of test processes that left something and live no more.
fn abandoned() -> Vec<u32> {
    let entries = [netns::FOLDER, "/run", BPFFS].into_iter().filter_map(|f| fs::read_dir(f).ok());
    let names =
        entries.flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut pids: Vec<u32> = names
        .filter_map(|name| {
            let rest = name.strip_prefix("mgo-t").or_else(|| name.strip_prefix("marengo-t"))?;
            rest.split('-').next()?.parse().ok()
        })
        .filter(|pid| *pid == std::process::id() || !Path::new(&format!("/proc/{pid}")).exists())
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}
