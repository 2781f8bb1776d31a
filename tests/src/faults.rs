//! Faults between a daemon and the kernel: see [`Saboteur`].

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{node::Node, wait};

/// A process that traces a daemon, sees all that it writes to the kernel, and kills it at one of these
/// writes or lets some fail. Dropped, it leaves the daemon alone.
#[derive(Debug)]
pub struct Saboteur {
    process: Child,
    orders: Option<ChildStdin>,
    said: Arc<Mutex<Vec<String>>>,
}

impl Saboteur {
    /// Starts a daemon under observation, its first system call included.
    pub fn launch(program: &str, node: &Node, args: &[&str], order: Option<&str>) -> Self {
        // It stops itself before it becomes the daemon.
        node.launch(&["sh", "-c", "kill -STOP $$; exec \"$0\" \"$@\""], args);
        let pid = node.pid();
        wait::until("the process waits", Duration::from_secs(5), || state(pid) == Some('T'));
        let mut saboteur = Self::attach(program, pid);
        if let Some(order) = order {
            saboteur.order(order);
            assert!(saboteur.count("ordered") > 0, "the saboteur does not take an order");
        }
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT).expect("a child can be signalled");
        saboteur
    }

    /// Observes a daemon that runs. `program` is the binary: `env!("CARGO_BIN_EXE_saboteur")`.
    pub fn attach(program: &str, pid: u32) -> Self {
        let mut process = Command::new(Path::new(program))
            .arg(pid.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the saboteur is built with the tests");
        let said = Arc::new(Mutex::new(Vec::new()));
        let (heard, output) = (Arc::clone(&said), process.stdout.take().expect("it is piped"));
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let orders = process.stdin.take();
        let saboteur = Self { process, orders, said };
        wait::until("the saboteur is there", Duration::from_secs(5), || {
            saboteur.count("ready") > 0
        });
        saboteur
    }

    /// Gives an order (see its program) and waits until it is taken.
    pub fn order(&mut self, order: &str) {
        let before = self.count("ordered");
        let orders = self.orders.as_mut().expect("it takes orders until it is dropped");
        // It ends with the daemon.
        if writeln!(orders, "{order}").is_ok() {
            let start = Instant::now();
            while self.count("ordered") == before && start.elapsed() < Duration::from_secs(5) {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// All writes so far, those that failed and the one at which it was killed included.
    pub fn writes(&self) -> Vec<String> {
        let prefixes = ["write ", "failed ", "killed "];
        let write = |line: &String| {
            prefixes.iter().find_map(|prefix| line.strip_prefix(prefix)).map(str::to_owned)
        };
        self.said().iter().filter_map(write).collect()
    }

    /// How many writes failed by its hand.
    pub fn failures(&self) -> usize {
        self.said().iter().filter(|line| line.starts_with("failed ")).count()
    }

    /// The write at which the daemon was killed.
    pub fn killed_at(&self) -> Option<String> {
        self.said().iter().find_map(|line| line.strip_prefix("killed ").map(str::to_owned))
    }

    fn count(&self, line: &str) -> usize {
        self.said().iter().filter(|said| *said == line).count()
    }

    fn said(&self) -> Vec<String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Saboteur {
    fn drop(&mut self) {
        drop(self.orders.take());
        // It goes by itself at the end of its input.
        if crate::exec::wait_for_exit(&mut self.process, Duration::from_secs(2)).is_none() {
            self.process.kill().ok();
            self.process.wait().ok();
        }
    }
}

/// The letter that stands for what a process does.
fn state(pid: u32) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(") ")?.1.chars().next()
}
