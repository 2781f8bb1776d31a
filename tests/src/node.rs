//! A host of the mesh: a namespace with one underlay device, and a daemon that can be started,
//! stopped, killed and asked.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    bpf,
    container::Container,
    diagnostics::{NodeFiles, Subject},
    exec,
    netns::Namespace,
    requirements,
    sandbox::Sandbox,
    view::View,
    wait,
};

/// The port of gossip.
pub const GOSSIP_PORT: u16 = 7946;
/// The port of a node's HTTP service.
pub const LISTEN_PORT: u16 = 8080;
/// The bridge.
pub const BRIDGE: &str = "marengo";
/// The VXLAN device.
pub const DEVICE: &str = "ol-marengo";

/// The first three bytes of the nodes' IPv4 addresses: of the first network, until a node is
/// renumbered.
pub const NETWORKS: [[u8; 3]; 3] = [[192, 0, 2], [198, 51, 100], [203, 0, 113]];

/// How long a daemon may take from SIGTERM to its end.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A node. Methods take `&self`: threads of a test may share it.
#[derive(Debug)]
pub struct Node {
    pub(crate) number: u8,
    /// Which of the [`NETWORKS`] its address is of.
    network: AtomicUsize,
    pub namespace: Namespace,
    router: Namespace,
    sandbox: Arc<Sandbox>,
    files: NodeFiles,
    process: Mutex<Option<Child>>,
}

/// How a daemon that did not stay has ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Node {
    /// Makes the namespace and its cable to the router, each end capped before it is up.
    pub(crate) fn plug_in(sandbox: &Arc<Sandbox>, router: &Namespace, number: u8) -> Self {
        let name = number.to_string();
        let namespace = sandbox.namespace(&name);
        let folder = sandbox.folder();
        let files = NodeFiles {
            log: folder.join(format!("{name}.log")),
            pins: sandbox.pins().join(&name),
            socket: folder.join(format!("{name}.sock")),
        };
        let node = Self {
            number,
            network: AtomicUsize::new(0),
            namespace,
            router: router.clone(),
            sandbox: Arc::clone(sandbox),
            files,
            process: Mutex::default(),
        };
        sandbox.add_subject(Subject {
            name: node.name(),
            namespace: node.namespace.clone(),
            node: Some(node.files.clone()),
        });

        node.plug();
        node
    }

    fn plug(&self) {
        let cable = self.cable();
        self.router.ip(&format!(
            "link add {cable} type veth peer name eth0 netns {}",
            self.namespace.name()
        ));
        cap(&self.router, &cable);
        cap(&self.namespace, "eth0");
        self.router.ip(&format!(
            "addr add {}/31 dev {cable}\naddr add {}/127 dev {cable} nodad\nlink set {cable} up",
            self.gateway(),
            self.gateway6(),
        ));
        self.namespace.ip(&format!(
            "addr add {}/31 dev eth0\naddr add {}/127 dev eth0 nodad\nlink set eth0 up\n{}",
            self.underlay(),
            self.underlay6(),
            self.default_routes(),
        ));
    }

    /// What `ip` is told to lead out by the router.
    pub fn default_routes(&self) -> String {
        format!(
            "route replace default via {}\nroute replace ::/0 via {} dev eth0",
            self.gateway(),
            self.gateway6()
        )
    }

    /// The name that its daemon is started with.
    pub fn name(&self) -> String {
        format!("node-{}", self.number)
    }

    /// Its address in the underlay; [`Node::renumber`] changes it.
    pub fn underlay(&self) -> Ipv4Addr {
        let [a, b, c] = NETWORKS[self.network.load(Ordering::Relaxed)];
        Ipv4Addr::new(a, b, c, 2 * self.number + 1)
    }

    pub fn underlay6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(self.number), 0, 0, 0, 3)
    }

    fn gateway(&self) -> Ipv4Addr {
        let [a, b, c] = NETWORKS[self.network.load(Ordering::Relaxed)];
        Ipv4Addr::new(a, b, c, 2 * self.number)
    }

    fn gateway6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(self.number), 0, 0, 0, 2)
    }

    /// The address of its bridge in the overlay.
    pub fn overlay(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, 0, self.number)
    }

    /// The address of its bridge in the overlay.
    pub fn overlay6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd42, 0, 0, 0, 0, 0, 0, u16::from(self.number))
    }

    /// What others join by.
    pub fn seed(&self) -> String {
        format!("{}:{GOSSIP_PORT}", self.underlay())
    }

    /// Where it gossips.
    pub fn gossip_address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.underlay()), GOSSIP_PORT)
    }

    /// Where its HTTP service listens.
    pub fn listen_address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.underlay()), LISTEN_PORT)
    }

    /// The name of the router's device that leads to this node.
    pub fn cable(&self) -> String {
        format!("to-{}", self.number)
    }

    pub fn pins(&self) -> &Path {
        &self.files.pins
    }

    pub fn socket(&self) -> &Path {
        &self.files.socket
    }

    /// Where its daemon remembers the members.
    pub fn state_dir(&self) -> PathBuf {
        self.folder().join(format!("{}.state", self.number))
    }

    /// The folder of the test, for files of its own.
    pub fn folder(&self) -> PathBuf {
        self.sandbox.folder()
    }

    /// A daemon's command line, behind a wrapper such as `setpriv`. What the arguments do not set
    /// is set so that no two daemons meet.
    pub fn server(&self, wrapper: &[&str], args: &[&str]) -> Command {
        let daemon = requirements::daemon();
        let mut command = match wrapper {
            [] => self.namespace.command(&daemon),
            [first, rest @ ..] => {
                let mut command = self.namespace.command(first);
                command.args(rest).arg(&daemon);
                command
            }
        };
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("RUST_BACKTRACE", "1").env("MARENGO_CONFIG", "/dev/null");
        command.arg("server").args(args);
        let mut default = |flag: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            let given = format!("{flag}=");
            if !args.iter().any(|arg| *arg == flag || arg.starts_with(&given)) {
                command.arg(flag).arg(value);
            }
        };
        default("--node-name", &self.name());
        default("--pin-dir", &self.files.pins);
        default("--socket", &self.files.socket);
        default("--state-dir", &self.state_dir());
        command
    }

    /// Starts the daemon, and waits until it answers.
    pub fn start(&self, args: &[&str]) {
        self.launch(&[], args);
        self.wait_answers();
    }

    /// Starts the daemon behind a wrapper, and does not wait. Its log goes on where it was.
    pub fn launch(&self, wrapper: &[&str], args: &[&str]) {
        let mut command = self.server(wrapper, args);
        self.launch_command(&mut command);
    }

    /// Starts a command line that [`Node::server`] has made.
    pub fn launch_command(&self, command: &mut Command) {
        let mut process = self.process();
        assert!(process.is_none(), "the daemon of {} runs already", self.name());
        let log = File::options().create(true).append(true).open(&self.files.log);
        let log = log.expect("a log can be opened in the test's folder");
        command.stderr(log.try_clone().expect("a descriptor can be duplicated")).stdout(log);
        let child = command.stdin(Stdio::null()).spawn();
        *process = Some(child.unwrap_or_else(|error| panic!("{}: {error}", exec::shown(command))));
    }

    /// Waits until the daemon answers on its socket.
    pub fn wait_answers(&self) {
        self.wait_until("its daemon answers", Duration::from_secs(15), |view| {
            view.get("/v1/status").is_some()
        });
    }

    /// Runs a daemon that is expected to end by itself.
    pub fn run_to_end(&self, wrapper: &[&str], args: &[&str]) -> Ended {
        Ended::from(exec::capture_any(&mut self.server(wrapper, args), Duration::from_secs(20)))
    }

    /// Runs a client subcommand against this node's daemon.
    pub fn cli(&self, args: &[&str]) -> Ended {
        let mut command = exec::command(requirements::daemon());
        command.env_clear().env("MARENGO_CONFIG", "/dev/null");
        command.args(args).arg("--socket").arg(&self.files.socket);
        Ended::from(exec::capture_any(&mut command, Duration::from_secs(20)))
    }

    /// SIGTERM, and the way it ended.
    pub fn stop(&self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_ended(STOP_LIMIT)
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
        self.wait_ended(STOP_LIMIT);
    }

    /// Waits for the daemon's end.
    pub fn wait_ended(&self, limit: Duration) -> ExitStatus {
        self.try_wait_ended(limit)
            .unwrap_or_else(|| panic!("the daemon of {} did not end in {limit:?}", self.name()))
    }

    /// Waits for the daemon's end; `None` if it still runs after `limit`.
    pub fn try_wait_ended(&self, limit: Duration) -> Option<ExitStatus> {
        let mut process = self.process();
        let child = process.as_mut().unwrap_or_else(|| panic!("{} has no daemon", self.name()));
        let status = exec::wait_for_exit(child, limit)?;
        *process = None;
        Some(status)
    }

    /// Stops the daemon if it runs; one that has ended by itself, or was never started, is none.
    pub fn end(&self) {
        if self.is_running() {
            self.signal(Signal::SIGTERM);
            // A start is not broken off, and may wait for a busy kernel.
            if self.try_wait_ended(Duration::from_secs(30)).is_none() {
                self.kill();
            }
        }
        *self.process() = None;
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("a child can be signalled");
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        let process = self.process();
        process.as_ref().unwrap_or_else(|| panic!("{} has no daemon", self.name())).id()
    }

    /// Whether the daemon runs; if it was started and has ended, how.
    pub fn is_running(&self) -> bool {
        let mut process = self.process();
        process.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// What the daemon says.
    pub fn view(&self) -> View<'_> {
        View::new(&self.files.socket)
    }

    /// Waits until it is so, and returns how long that took.
    pub fn wait_until(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(View<'_>) -> bool,
    ) -> Duration {
        wait::until(&format!("{}: {what}", self.name()), limit, || {
            let running = self.process.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            assert!(
                !running || self.is_running(),
                "{}: the daemon ended before: {what}",
                self.name()
            );
            look(self.view())
        })
    }

    /// The whole log.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.files.log).unwrap_or_default()
    }

    /// The daemon's resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let text = fs::read_to_string(path).expect("the daemon runs");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|number| number.parse().ok()).expect("a process has a VmRSS")
    }

    /// The processor time that the daemon has used.
    pub fn cpu_time(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.pid());
        let text = fs::read_to_string(path).expect("the daemon runs");
        let fields = text.rsplit_once(") ").map_or("", |(_, fields)| fields);
        // utime and stime, in hundredths of a second.
        let ticks =
            fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
        Duration::from_millis(10 * ticks.sum::<u64>())
    }

    /// Cuts the cable: nothing passes in either direction, and this end loses its carrier.
    pub fn cut_link(&self) {
        self.router.ip(&format!("link set {} down", self.cable()));
    }

    /// Mends the cable. IPv6 addresses and routes that went with it come back.
    pub fn restore_link(&self) {
        let cable = self.cable();
        self.router.ip(&format!(
            "link set {cable} up\naddr replace {}/31 dev {cable}\n\
             addr replace {}/127 dev {cable} nodad",
            self.gateway(),
            self.gateway6(),
        ));
        self.namespace.ip(&format!(
            "addr replace {}/127 dev eth0 nodad\n{}",
            self.underlay6(),
            self.default_routes()
        ));
    }

    /// Takes away all that a daemon has left, as on a machine that has never had one.
    pub fn wipe(&self) {
        for device in [DEVICE, BRIDGE] {
            if self.namespace.link(device).is_some() {
                self.namespace.ip(&format!("link delete {device}"));
            }
        }
        for folder in [self.pins(), &self.state_dir()] {
            // It may never have had any.
            fs::remove_dir_all(folder).ok();
        }
    }

    /// Gives the node an IPv4 address of another network, the n-th of [`NETWORKS`], in place of the
    /// one that it has. There is a moment in which it has none.
    pub fn renumber(&self, network: usize) {
        let (old, old_gateway, cable) = (self.underlay(), self.gateway(), self.cable());
        self.network.store(network, Ordering::Relaxed);
        let (new, new_gateway) = (self.underlay(), self.gateway());
        self.router.ip(&format!("addr add {new_gateway}/31 dev {cable}"));
        self.namespace.ip(&format!(
            "addr del {old}/31 dev eth0\naddr add {new}/31 dev eth0\n{}",
            self.default_routes()
        ));
        self.router.ip(&format!("addr del {old_gateway}/31 dev {cable}"));
    }

    /// Takes the cable out and plugs a new one in: another device, of the same name and addresses.
    pub fn replace_cable(&self) {
        self.router.ip(&format!("link del {}", self.cable()));
        self.plug();
    }

    /// Gives the bridge its addresses in the overlay.
    pub fn address_bridge(&self) {
        self.namespace.ip(&format!(
            "addr replace {}/24 brd + dev {BRIDGE}\naddr replace {}/64 dev {BRIDGE} nodad\n\
             link set {BRIDGE} up",
            self.overlay(),
            self.overlay6(),
        ));
    }

    /// Makes a container on the bridge: a namespace with a capped veth.
    pub fn container(&self, number: u8) -> Container {
        Container::attach(&self.sandbox, self, number)
    }

    /// What `bpftool` prints of a map: its entries by field name.
    pub fn bpftool_dump(&self, map: &str) -> Vec<Value> {
        bpf::dump(&self.files.pins.join(map))
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = self.process().as_mut() {
            // It may have ended by itself.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Ended {
    /// The lines of stderr that say what went wrong: all but log lines of lesser levels.
    pub fn complaint(&self) -> &str {
        self.stderr.trim_end().lines().last().unwrap_or_default()
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Bounds what a device sends: a storm then is slow enough to be ended.
pub(crate) fn cap(namespace: &Namespace, device: &str) {
    namespace
        .run(&format!("tc qdisc add dev {device} root tbf rate 400mbit burst 256k latency 50ms"));
}
