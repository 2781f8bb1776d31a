//! A machine of the simulation, whether a daemon runs on it or not.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use marengo_core::{
    identity::{ClusterName, DataPlaneId, Generation, Identity, NodeName},
    membership::{Membership, MembershipConfig, MembershipEvent},
};

use crate::{
    cpu::{Cpu, Waiting},
    host_kernel::HostKernel,
    shell::Shell,
};

/// What a wall clock shows when a world begins, in milliseconds.
const WALL_CLOCK: u64 = 1_700_000_000_000;

/// A machine.
#[derive(Debug)]
pub struct Node {
    /// The membership of the daemon, if one runs.
    pub membership: Option<Membership>,
    /// What the next start of the daemon is told.
    pub config: MembershipConfig,
    /// The daemon's name.
    pub name: String,
    /// Where it gossips.
    pub addr: SocketAddr,
    /// Its tunnel address.
    pub vtep: IpAddr,
    /// Where it answers HTTP.
    pub listen: SocketAddr,
    /// The data plane that the next start of the daemon takes over, if there is one.
    pub data_plane: Option<DataPlaneId>,
    /// Added to what this machine's wall clock shows. Milliseconds.
    pub clock_error: i64,
    /// Datagrams sent to this machine.
    pub sent_to: u64,
    /// Its kernel, in a world with data planes and while it has power.
    pub kernel: Option<HostKernel>,
    /// The converge task of the daemon, if one runs.
    pub shell: Option<Shell>,
    /// When the converge task is next looked after.
    pub(crate) round_at: Option<Instant>,
    /// Counts the starts, so that nothing meant for one start reaches the next.
    pub(crate) life: u32,
    /// The deadline for which an event is in the queue.
    pub(crate) scheduled: Option<Instant>,
    pub(crate) cpu: Cpu,
    pub(crate) waiting: Waiting,
    /// Who is active, going by the events alone.
    pub(crate) told: BTreeMap<SocketAddr, Identity>,
}

impl Node {
    /// The machine of that number, without a daemon.
    pub fn new(index: usize) -> Self {
        let ip = ip_number(index + 1);
        let mut config = MembershipConfig::new(ClusterName::new("sim").expect("a name"));
        "0.1.0".clone_into(&mut config.version);
        Self {
            membership: None,
            config,
            name: format!("node{index}"),
            addr: SocketAddr::new(ip, 7946),
            vtep: ip,
            listen: SocketAddr::new(ip, 8080),
            data_plane: None,
            clock_error: 0,
            sent_to: 0,
            kernel: None,
            shell: None,
            round_at: None,
            life: 0,
            scheduled: None,
            cpu: Cpu::Full,
            waiting: Waiting::default(),
            told: BTreeMap::new(),
        }
    }

    /// Gives the machine the address of that number.
    pub(crate) fn set_address(&mut self, number: usize) {
        let ip = ip_number(number);
        self.addr.set_ip(ip);
        self.listen.set_ip(ip);
        self.vtep = ip;
    }

    /// What a daemon that starts now says about itself. `elapsed` is the age of the world in
    /// milliseconds.
    pub(crate) fn identity(&self, elapsed: u64, data_plane: DataPlaneId) -> Identity {
        let clock = (WALL_CLOCK + elapsed).checked_add_signed(self.clock_error);
        Identity::new(
            NodeName::new(&self.name).expect("a name"),
            self.addr,
            self.vtep,
            self.listen,
            Generation(clock.expect("after 1970")),
            data_plane,
        )
        .expect("an identity")
    }

    /// Forgets what was of the daemon that ended.
    pub(crate) fn clear(&mut self) {
        self.membership = None;
        self.shell = None;
        self.round_at = None;
        self.scheduled = None;
        self.cpu = Cpu::Full;
        self.waiting = Waiting::default();
        self.told.clear();
    }

    /// Follows the events. Returns whether this one was about a member.
    pub(crate) fn hear(&mut self, event: &MembershipEvent) -> bool {
        match event {
            MembershipEvent::MemberUp(member) => {
                let old = self.told.insert(member.addr, member.clone());
                assert_eq!(old, None, "{} is up twice", member.name);
            }
            MembershipEvent::MemberDown(member) => {
                let old = self.told.remove(&member.addr);
                assert_eq!(old.as_ref(), Some(member), "{} is down but was not up", member.name);
            }
            MembershipEvent::MemberLeft(member) => {
                self.told.remove(&member.addr);
            }
            MembershipEvent::MemberChanged { old, new } => {
                let before = self.told.remove(&old.addr);
                self.told.insert(new.addr, new.clone());
                assert_eq!(before.as_ref(), Some(old), "{} changed but was not up", old.name);
            }
            MembershipEvent::Joined
            | MembershipEvent::Isolated
            | MembershipEvent::SyncWanted { .. }
            | MembershipEvent::SeedRefused { .. }
            | MembershipEvent::Conflict(_)
            | MembershipEvent::ConflictResolved(_) => return false,
        }
        true
    }
}

/// The address of that number.
pub(crate) fn ip_number(number: usize) -> IpAddr {
    let number = u16::try_from(number).expect("not that many addresses");
    let [high, low] = number.to_be_bytes();
    IpAddr::from([10, 0, high, low])
}
