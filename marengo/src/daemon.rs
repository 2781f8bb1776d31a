//! The daemon: checks, starts the tasks, waits for a reason to stop, stops them in order.
//!
//! ```text
//!              .-----------. PeerTable  .------------.
//!  network <-->|  gossip   |----------->|  converge  |<--> kernel
//!              '-----------'            '------------'
//!                    ^       requests        ^
//!                    '-------[ HTTP ]--------'
//!                   control socket, listen address
//! ```

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use marengo_core::{
    control::Control,
    converge::Cause,
    identity::{DataPlaneId, Generation, Identity},
    members::PeerTable,
    membership::{MembershipConfig, Profile},
    settings::DataPlane,
    witness::WitnessConfig,
};
use nix::errno::Errno;
use tokio::{
    io::unix::AsyncFd,
    net::{TcpListener, UnixListener},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    config::{Addresses, ServerConfig},
    control::{self, Doors},
    converge::Converge,
    failure::{Failure, Kind, OrFailure as _},
    follow::Follow,
    gossip::{self, Gossip, GossipSocket},
    http,
    kernel::{
        Kernel, KernelConfig, LayoutError, PinsError, bpf::ProgramLog, bpffs, monitor, root_errno,
    },
    preflight::{self, ControlSocket, Ready, SocketFile},
    remember::Memory,
    signals::Signals,
    tasks::{self, Panics, Spawner},
    values::OnExit,
};

/// The others are told within this, or find out by themselves.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);
/// The converge task finishes the operation in hand within this.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);

/// Runs the daemon until it is told to stop.
pub(crate) async fn run(config: ServerConfig) -> Result<(), Failure> {
    let panics = tasks::watch_panics();
    let mut signals = Signals::new().or_failure(Kind::Failed)?;
    let mut ready = preflight::check(&config).await?;
    let addresses = ready.addresses;
    info!(
        version = crate::version::LONG,
        controlSocket = %config.global.socket,
        listenAddr = %addresses.listen,
        node = %config.node_name,
        advertise = %addresses.advertise,
        bridge = %config.bridge,
        device = %config.device,
        vni = %config.vni,
        "marengo"
    );
    if config.without.is_any() {
        let missing: Vec<_> =
            Control::ALL.into_iter().filter(|c| !config.without.has(*c)).collect();
        warn!(?missing, "a mechanism of safety is switched off, for a test");
    }
    let (mut converge, had_device) = open_data_plane(&config, &mut ready).await?;
    debug!(interval = ?config.converge_interval, "converge interval");
    let (spawner, faults) = if config.faults {
        let (spawner, faults) = Spawner::with_faults();
        (spawner, Some(faults))
    } else {
        (Spawner::default(), None)
    };
    if let Some(log) = converge.take_program_log() {
        spawner.spawn("program-log", follow_program_log(log));
    }
    let daemon = match Daemon::start(&config, ready, converge, &spawner, faults) {
        Ok(daemon) => daemon,
        Err(failed) => {
            let (converge, failure) = *failed;
            // An earlier run's data plane works without us.
            if !had_device {
                give_up(converge).await;
            }
            return Err(failure);
        }
    };
    daemon.run(&mut signals, panics).await
}

/// Loads the programs and runs the first round; says whether the device was there before. A start that fails leaves nothing behind, but for
/// what was there before: a data plane that an earlier run left working is left working.
async fn open_data_plane(
    config: &ServerConfig,
    ready: &mut Ready,
) -> Result<(Converge, bool), Failure> {
    let data_plane = DataPlane {
        bridge: config.bridge.clone(),
        device: config.device.clone(),
        vni: config.vni,
        port: config.vxlan_port,
        vtep: ready.addresses.advertise.ip(),
        mtu: config.mtu,
        max_peers: config.max_peers,
        // Unless an earlier run's maps say another.
        id: DataPlaneId::random(&mut rand::rng()),
    };
    let kernel = KernelConfig {
        data_plane: data_plane.clone(),
        pin_dir: config.pin_dir.clone(),
        debug: config.global.debug,
        attach: config.attach,
        without: config.without,
    };
    // Locked before it is looked into, also by one who made it a moment ago.
    bpffs::prepare(&config.pin_dir).map_err(|error| refused_programs(&error))?;
    ready.lock.hold_pin_dir(&config.pin_dir)?;
    let (kernel, adopted) = Kernel::open(kernel).map_err(|error| refused_programs(&error))?;
    if !adopted.slots.is_empty() {
        info!(peers = adopted.slots.len(), "took over the data plane of an earlier run");
    }
    let witness = match config.profile {
        Profile::Default => WitnessConfig::DEFAULT,
        Profile::Fast => WitnessConfig::FAST,
    };
    let witness = WitnessConfig { without: config.without, ..witness };
    let interval = config.converge_interval;
    let mut converge = Converge::new(kernel, adopted, data_plane, interval, witness);
    converge.do_without(config.without);
    if let Err(error) = converge.replace_misplaced().await {
        warn!(error = format!("{error:#}"), "could not replace what an earlier run left elsewhere");
    }
    let had_device = match converge.had_device().await {
        Ok(had_device) => had_device,
        // What is there may be an earlier run's, and work; nothing but maps has been made.
        Err(error) => {
            let error = error.context("cannot see what is here already; it is left as it is");
            return Err(refused_links(&error, config));
        }
    };
    match converge.round(&PeerTable::default(), Cause::Start).await {
        Err(error) if !had_device => {
            give_up(converge).await;
            Err(refused_links(&error, config))
        }
        // It works, or it is an earlier run's and worked until now: the next rounds go on trying.
        _ => Ok((converge, had_device)),
    }
}

async fn give_up(converge: Converge) {
    if let Err(error) = converge.undo().await {
        warn!(error = format!("{error:#}"), "could not clean up after the failed start");
    }
}

fn refused_programs(error: &anyhow::Error) -> Failure {
    if error.is::<PinsError>() || error.is::<LayoutError>() {
        return Failure::new(Kind::Foreign, format!("{error:#}"));
    }
    let (kind, remedy) = match root_errno(error) {
        Some(Errno::EPERM | Errno::EACCES) => (
            Kind::Permission,
            "run marengo as root, and see that neither lockdown nor a seccomp filter forbids bpf(2)",
        ),
        Some(Errno::ENOMEM) => (Kind::Failed, "raise the memory limit of the service"),
        _ => (
            Kind::Kernel,
            "Marengo needs Linux 5.19 or later with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_ACT, \
             CONFIG_NET_CLS_BPF and the BPF file system",
        ),
    };
    Failure::new(kind, format!("failed to load the programs: {error:#}; {remedy}"))
}

fn refused_links(error: &anyhow::Error, config: &ServerConfig) -> Failure {
    match root_errno(error) {
        Some(Errno::EOPNOTSUPP) => Failure::new(
            Kind::Kernel,
            format!("{error:#}; the kernel lacks bridges or VXLAN (CONFIG_BRIDGE, CONFIG_VXLAN)"),
        ),
        Some(Errno::EADDRINUSE | Errno::EEXIST) => Failure::new(
            Kind::InUse,
            format!(
                "{error:#}; something else holds UDP port {} (see `ip -d link show type vxlan` and \
                 `ss -ulpn`); stop it, or choose another port on all nodes with --vxlan-port",
                config.vxlan_port
            ),
        ),
        Some(Errno::EPERM | Errno::EACCES) => {
            Failure::new(Kind::Permission, format!("{error:#}; run marengo as root"))
        }
        Some(Errno::ENOMEM | Errno::ENOBUFS) => Failure::new(
            Kind::Failed,
            format!("{error:#}; the kernel is out of memory, or the service's limit is too low"),
        ),
        _ => {
            let message = format!("failed to set up the data plane: {error:#}; see `dmesg`");
            Failure::new(Kind::Failed, message)
        }
    }
}

/// The running tasks, and what it takes to stop them.
struct Daemon {
    gossip: JoinHandle<()>,
    gossip_requests: mpsc::Sender<gossip::Request>,
    converge: JoinHandle<Converge>,
    stop_http: CancellationToken,
    stop_converge: CancellationToken,
    on_exit: OnExit,
    _control: SocketFile,
    _lock: preflight::Lock,
}

impl Daemon {
    fn start(
        config: &ServerConfig,
        ready: Ready,
        mut converge: Converge,
        spawner: &Spawner,
        faults: Option<watch::Sender<String>>,
    ) -> Result<Self, Box<(Converge, Failure)>> {
        let Ready { addresses, gossip, http: listener, control, lock } = ready;
        let ControlSocket { listener: control_listener, file } = control;
        let opened = (|| {
            let socket = GossipSocket::new(gossip, addresses.advertise.ip())?;
            let listener = TcpListener::from_std(listener)?;
            let control_listener = UnixListener::from_std(control_listener)?;
            let monitor = monitor::spawn(spawner, config.bridge.clone(), config.device.clone())?;
            Ok::<_, anyhow::Error>((socket, listener, control_listener, monitor))
        })();
        let (socket, listener, control_listener, monitor) = match opened {
            Ok(opened) => opened,
            Err(error) => return Err(Box::new((converge, error.into()))),
        };
        let identity = match identity(config, addresses, converge.data_plane_id()) {
            Ok(identity) => identity,
            Err(failure) => return Err(Box::new((converge, failure))),
        };
        let mut membership = MembershipConfig::new(config.cluster);
        crate::version::VERSION.clone_into(&mut membership.version);
        membership.profile = config.profile;
        membership.node_timeout = config.node_timeout;
        membership.without = config.without;
        if let Some(time) = config.forget_after {
            membership.remember = time;
        }
        let memory = config
            .without
            .has(Control::Remember)
            .then(|| Memory::load(&config.state_dir, &config.bridge, config.cluster));
        let (gossip, gossip_requests, peers) = Gossip::new(
            membership,
            identity,
            socket,
            config.join.clone(),
            memory.as_ref().map(Memory::addresses).unwrap_or_default(),
            spawner.clone(),
        );
        if let Some(memory) = memory {
            let keep = memory.keep(gossip_requests.downgrade(), peers.clone());
            spawner.spawn("memory", keep);
        }
        let (converge_requests, requests) = mpsc::channel(64);

        let (stop_http, stop_converge) = (CancellationToken::new(), CancellationToken::new());
        let (problem, address_problem) = watch::channel(None);
        let doors = Doors {
            gossip: gossip_requests.clone(),
            converge: converge_requests.clone(),
            config: config.clone(),
            address_problem,
            faults,
        };
        let (control, node) = (control::control_router(doors.clone()), control::node_router(doors));
        let serve_control =
            http::serve(control_listener, control, stop_http.clone(), spawner.clone());
        spawner.spawn("control", serve_control);
        let serving = stop_http.child_token();
        let serve_node = http::serve(listener, node.clone(), serving.clone(), spawner.clone());
        spawner.spawn("node", serve_node);
        let follow = Follow {
            config: config.clone(),
            addresses,
            gossip: gossip_requests.clone(),
            converge: converge_requests,
            peers: peers.clone(),
            node,
            serving,
            stop_http: stop_http.clone(),
            spawner: spawner.clone(),
            problem,
        };
        spawner.spawn("address", follow.run());
        let gossip = spawner.spawn("gossip", gossip.run());
        let (stop, spawn) = (stop_converge.clone(), spawner.clone());
        let converge = spawner.spawn("converge", async move {
            converge.run(peers, monitor, requests, stop, spawn).await;
            converge
        });
        Ok(Self {
            gossip,
            gossip_requests,
            converge,
            stop_http,
            stop_converge,
            on_exit: config.on_exit,
            _control: file,
            _lock: lock,
        })
    }

    /// Waits for a signal, then stops in order: no more requests, tell the others, finish the
    /// operation in hand, take down what was made or leave it.
    async fn run(mut self, signals: &mut Signals, mut panics: Panics) -> Result<(), Failure> {
        notify(&[sd_notify::NotifyState::Ready]);
        let asked = tokio::select! {
            biased;
            // Before the tasks' ends: it knows the reason.
            panic = tasks::panicked(&mut panics) => return Err(Failure::new(Kind::Failed, panic)),
            asked = signals.stop() => asked,
            // The data plane goes on without us, and the service manager starts us again.
            ended = &mut self.gossip => return Err(died("gossip", ended.err())),
            ended = &mut self.converge => return Err(died("converge", ended.err())),
        };
        let on_exit = if asked.keep { OnExit::Keep } else { self.on_exit };
        info!(signal = asked.signal, dataPlane = %on_exit, "shutting down");
        notify(&[sd_notify::NotifyState::Stopping]);
        tokio::select! {
            biased;
            panic = tasks::panicked(&mut panics) => Err(Failure::new(Kind::Failed, panic)),
            stopped = self.stop(on_exit) => stopped,
            asked = signals.stop() => {
                warn!(signal = asked.signal, "asked again to stop; going at once");
                Err(Failure::new(Kind::Failed, "stopped before everything was cleaned up"))
            }
        }
    }

    async fn stop(self, on_exit: OnExit) -> Result<(), Failure> {
        self.stop_http.cancel();
        self.leave(on_exit).await;
        self.stop_converge.cancel();
        let converge = timeout(SETTLE_WITHIN, self.converge)
            .await
            .context("the data plane did not settle in time; it is left as it is")?
            .context("the converge task died; the data plane is left as it is")?;
        match on_exit {
            OnExit::Remove => {
                converge.tear_down().await?;
                info!("stopped; the bridge stays for its users");
            }
            OnExit::Keep => info!("stopped; the data plane goes on with the peers of now"),
        }
        Ok(())
    }

    async fn leave(&self, on_exit: OnExit) {
        let (left, leaving) = oneshot::channel();
        let request = match on_exit {
            OnExit::Remove => gossip::Request::Leave(left),
            // The others keep this node on their maps.
            OnExit::Keep => gossip::Request::LeaveForRestart(left),
        };
        if self.gossip_requests.send(request).await.is_ok()
            && timeout(LEAVE_WITHIN, leaving).await.is_err()
        {
            warn!("could not tell the others in time; they will find out");
        }
    }
}

fn identity(
    config: &ServerConfig,
    addresses: Addresses,
    data_plane: DataPlaneId,
) -> Result<Identity, Failure> {
    // A clock that stepped back is corrected when another node remembers a later start.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let generation = Generation(u64::try_from(now.as_millis()).unwrap_or_default());
    let listen = addresses.listen_for_others();
    let vtep = addresses.advertise.ip();
    Identity::new(config.node_name, addresses.advertise, vtep, listen, generation, data_plane)
        .or_failure(Kind::Address)
}

fn died(task: &str, error: Option<tokio::task::JoinError>) -> Failure {
    let why = error.map_or_else(|| "it ended by itself".to_owned(), |error| error.to_string());
    error!(task, error = %why, "a task died; the data plane goes on without the daemon");
    Failure::new(Kind::Failed, format!("the {task} task died: {why}"))
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "failed to tell the service manager");
    }
}

/// Hands the programs' log records to the log.
async fn follow_program_log(log: ProgramLog) {
    // SAFETY: the logger owns its ring buffer's descriptor and keeps it until it is dropped, and the
    // `AsyncFd` drops it after its own registration.
    #[expect(unsafe_code, reason = "the safe constructor does not exist yet")]
    let registered = unsafe { AsyncFd::register(log) };
    let Ok(mut log) = registered else { return };
    while let Ok(mut guard) = log.readable_mut().await {
        guard.get_inner_mut().flush();
        guard.clear_ready();
    }
}
