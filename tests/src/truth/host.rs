//! One host of the run: its power, its addresses, its daemon, and the sockets that look at it.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    model::{HostNumber, Observer},
    tables::{Tables, own_data_plane},
    tap::Tap,
};
use crate::{
    netns::Namespace,
    node::{BRIDGE, DEVICE, GOSSIP_PORT, Node, cap},
    packet, wait,
};

/// The bridge's port that all stations of a host share, and its other end.
const PORT: &str = "tap0";
const OUTER: &str = "tap1";

/// How long a daemon may take until it answers; others may be compiling.
const START_LIMIT: Duration = Duration::from_secs(20);

/// What a host is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum State {
    /// Its daemon runs.
    Up,
    /// Its daemon has got SIGSTOP.
    Stopped,
    /// Its daemon was killed; the data plane goes on.
    Orphaned,
    /// Its daemon has said goodbye and taken the data plane away.
    Left,
    /// It has no power.
    Off,
}

/// A host.
#[derive(Debug)]
pub(crate) struct Host<'a> {
    pub(crate) number: HostNumber,
    node: &'a Node,
    router: &'a Namespace,
    pub(crate) state: State,
    /// How often its power came.
    pub(crate) boot: u32,
    /// Which machine it is: a new one has another name.
    machine: u32,
    /// Which of its two addresses it has.
    second_address: bool,
    /// When its daemon was started, counted in events.
    pub(crate) launched_at: usize,
    ready: bool,
    tended_since: Option<Instant>,
    /// Since when its daemon does nothing, or did nothing before it was started again.
    rested_since: Option<Instant>,
    adopted: bool,
    /// What comes from the bridge to the stations.
    port: Tap,
    /// What carries test frames in the underlay.
    pub(crate) underlay: Tap,
    /// Sends from its address.
    wire: UdpSocket,
    /// The bridge itself: what the host's own stack sends.
    bridge: Option<Tap>,
    pub(crate) tables: Option<Tables>,
}

impl<'a> Host<'a> {
    /// Wires a node that has no daemon yet.
    pub(crate) fn wire(number: HostNumber, node: &'a Node, router: &'a Namespace) -> Self {
        let namespace = &node.namespace;
        // The stack's own frames are of no station.
        namespace.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
        namespace.ip(&format!("link add {PORT} type veth peer name {OUTER}"));
        cap(namespace, PORT);
        cap(namespace, OUTER);
        namespace.ip(&format!("link set {PORT} up\nlink set {OUTER} up"));
        let host = Self {
            number,
            node,
            router,
            state: State::Left,
            boot: 1,
            machine: 1,
            second_address: false,
            launched_at: 0,
            ready: false,
            tended_since: None,
            rested_since: None,
            adopted: false,
            port: Tap::open(namespace, OUTER),
            underlay: Tap::underlay(namespace, "eth0"),
            wire: namespace
                .inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("any port will do")),
            bridge: None,
            tables: None,
        };
        let [_, second] = host.gateways();
        router.ip(&format!("addr add {second}/31 dev {}", node.cable()));
        host
    }

    /// Both gateways: with the first address, and with the second.
    fn gateways(&self) -> [Ipv4Addr; 2] {
        let n = self.last_byte();
        [Ipv4Addr::new(192, 0, 2, n - 1), Ipv4Addr::new(198, 51, 100, n - 1)]
    }

    fn last_byte(&self) -> u8 {
        u8::try_from(2 * self.number + 3).expect("a mesh is small")
    }

    /// Its address in the underlay.
    pub(crate) fn address(&self) -> Ipv4Addr {
        let n = self.last_byte();
        if self.second_address {
            Ipv4Addr::new(198, 51, 100, n)
        } else {
            Ipv4Addr::new(192, 0, 2, n)
        }
    }

    /// What others join by.
    pub(crate) fn seed(&self) -> String {
        format!("{}:{GOSSIP_PORT}", self.address())
    }

    /// Whether its programs forward.
    pub(crate) fn forwards(&self) -> bool {
        matches!(self.state, State::Up | State::Stopped | State::Orphaned)
    }

    /// As the model must know it.
    pub(crate) fn observer(&self) -> Observer {
        Observer {
            host: self.number,
            tended_since: self.tended_since.filter(|_| self.state == State::Up),
            adopted: self.adopted,
        }
    }

    /// Starts the daemon, and does not wait.
    pub(crate) fn launch(&mut self, seeds: &[String], args: &[String], event: usize) {
        let name = format!("{}-m{}", self.node.name(), self.machine);
        let mut line = vec!["--node-name", &name];
        for seed in seeds {
            line.extend(["-j", seed]);
        }
        line.extend(args.iter().map(String::as_str));
        self.node.launch(&[], &line);
        self.adopted = self.state == State::Orphaned;
        self.state = State::Up;
        self.launched_at = event;
        self.ready = false;
        self.tended_since = None;
    }

    /// Notices that the daemon answers, without waiting for it.
    pub(crate) fn poll_ready(&mut self) -> bool {
        if self.ready || self.state != State::Up {
            return false;
        }
        assert!(self.node.is_running(), "the daemon of {} has ended", self.node.name());
        if self.node.view().get("/v1/status").is_none() {
            return false;
        }
        self.ready = true;
        self.tended_since = Some(Instant::now());
        if self.bridge.is_none() {
            self.plug();
        }
        // The maps of an adopted data plane are the same; of a new one they are others.
        self.tables = Tables::open(self.node.pins());
        assert!(self.tables.is_some(), "{} answers and has no maps", self.node.name());
        true
    }

    /// Since when the daemon that answers now had rested.
    pub(crate) fn take_rest(&mut self) -> Option<Instant> {
        self.rested_since.take()
    }

    /// Waits until the daemon answers, if it was started.
    pub(crate) fn wait_ready(&mut self) -> bool {
        if self.ready || self.state != State::Up {
            return false;
        }
        let what = format!("the daemon of {} answers", self.node.name());
        wait::until(&what, START_LIMIT, || self.poll_ready());
        true
    }

    /// Puts the stations' port into the bridge.
    fn plug(&mut self) {
        let namespace = &self.node.namespace;
        let mtu = namespace.link(BRIDGE).and_then(|link| link["mtu"].as_u64());
        let mtu = mtu.unwrap_or_else(|| panic!("{} has no bridge", self.node.name()));
        namespace.ip(&format!(
            "link set {PORT} mtu {mtu}\nlink set {OUTER} mtu {mtu}\nlink set {BRIDGE} up\n\
             link set {PORT} master {BRIDGE}"
        ));
        self.bridge = Some(Tap::open(namespace, BRIDGE));
    }

    /// The name of its data plane, as soon as there are maps.
    pub(crate) fn data_plane_id(&self) -> Option<u64> {
        match &self.tables {
            Some(tables) => own_data_plane(&tables.settings()),
            None => own_data_plane(&Tables::open(self.node.pins())?.settings()),
        }
    }

    /// Sends a frame of a station.
    pub(crate) fn send(&self, frame: &[u8]) -> bool {
        self.port.send(frame)
    }

    /// Sends a frame as the host's own stack would.
    pub(crate) fn send_from_stack(&self, frame: &[u8]) -> bool {
        self.bridge.as_ref().is_some_and(|bridge| bridge.send(frame))
    }

    /// Sends a frame to a host inside VXLAN, past the programs: what the underlay kept for a while.
    pub(crate) fn replay(&self, to: Ipv4Addr, frame: &[u8]) {
        let Some(tables) = &self.tables else { return };
        let packet = packet::vxlan(tables.settings().vni, frame);
        // A link that is down takes nothing.
        self.wire.send_to(&packet, (to, packet::VXLAN_PORT)).ok();
    }

    /// Hands over what has come out of the bridge to the stations.
    pub(crate) fn drain_port(&self, mut each: impl FnMut(&[u8])) {
        self.port.drain(|seen| {
            if !seen.outgoing {
                each(seen.bytes);
            }
        });
    }

    /// SIGKILL for the daemon: an orphan is left.
    pub(crate) fn kill(&mut self) {
        self.node.kill();
        self.rest(State::Orphaned);
    }

    pub(crate) fn stop(&mut self) {
        self.node.signal(Signal::SIGSTOP);
        self.rest(State::Stopped);
    }

    pub(crate) fn resume(&mut self) {
        self.node.signal(Signal::SIGCONT);
        self.state = State::Up;
        self.tended_since = Some(Instant::now());
    }

    /// SIGTERM, and the end.
    pub(crate) fn leave(&mut self) {
        let status = self.node.stop();
        assert!(status.success(), "{} did not stop cleanly: {status}", self.node.name());
        self.tables = None;
        self.rest(State::Left);
    }

    /// The power fails: nothing of the daemon's or the kernel's is left.
    pub(crate) fn power_off(&mut self) {
        self.router.ip(&format!("link set {} down", self.node.cable()));
        if matches!(self.state, State::Up | State::Stopped) {
            self.node.kill();
        }
        self.bridge = None;
        self.tables = None;
        if self.forwards() {
            self.node.namespace.ip(&format!("link del {DEVICE}"));
            fs::remove_dir_all(self.node.pins()).expect("pins can be removed");
        }
        self.node.namespace.ip(&format!("link del {BRIDGE}"));
        self.rest(State::Off);
    }

    /// The power comes back; the daemon must be launched.
    pub(crate) fn power_on(&mut self) {
        self.router.ip(&format!("link set {} up", self.node.cable()));
        self.boot += 1;
        self.rest(State::Left);
    }

    /// It is another machine from now on.
    pub(crate) fn replace(&mut self) {
        self.machine += 1;
    }

    /// Changes its address in the underlay, under the daemon if there is one.
    pub(crate) fn renumber(&mut self) {
        let (old, gateways) = (self.address(), self.gateways());
        self.second_address = !self.second_address;
        let new = self.address();
        let gateway = gateways[usize::from(self.second_address)];
        self.node.namespace.ip(&format!(
            "addr add {new}/31 dev eth0\nroute replace default via {gateway}\n\
             addr del {old}/31 dev eth0"
        ));
    }

    pub(crate) fn name(&self) -> String {
        self.node.name()
    }

    pub(crate) fn view(&self) -> crate::view::View<'_> {
        self.node.view()
    }

    fn rest(&mut self, state: State) {
        self.state = state;
        self.tended_since = None;
        self.rested_since = Some(Instant::now());
        self.ready = false;
    }
}
