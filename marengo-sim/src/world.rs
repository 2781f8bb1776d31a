//! A world of machines: who is there, what time it is, and what happens next.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use marengo_core::{
    identity::Identity,
    members::MemberState,
    membership::{Membership, MembershipEvent},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use self::step::Event;
use crate::{ms, network::Network, node::Node, queue::Queue};

mod accidents;
mod goals;
mod invariants;
mod overlay;
mod show;
mod step;
mod trouble;

pub use self::{
    goals::Missing,
    overlay::{Delivery, Frames, Home},
    trouble::Meddling,
};

/// An event and when which node reported it.
#[derive(Clone, Debug)]
pub struct Logged {
    /// When.
    pub at: Instant,
    /// Which node.
    pub node: usize,
    /// What.
    pub event: MembershipEvent,
}

/// What a world keeps and checks beside running.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "switches, each for itself")]
pub struct Options {
    /// Keep the events of all nodes.
    pub log: bool,
    /// After each event about a member, compare what the node told with what it shows. Takes time
    /// that grows with the square of the nodes.
    pub strict: bool,
    /// Count the bytes of the exchanges too.
    pub weigh_exchanges: bool,
    /// The machines have kernels, and daemons that care for data planes.
    pub data_planes: bool,
    /// Print what happens.
    pub trace: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { log: true, strict: true, weigh_exchanges: false, data_planes: false, trace: false }
    }
}

/// What was sent, all nodes together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Datagrams.
    pub datagrams: u64,
    /// Their bytes, UDP and IP headers not counted.
    pub bytes: u64,
    /// Bytes of the exchanges' JSON, both ways.
    pub exchanged: u64,
}

/// One node took another for failed.
#[derive(Clone, Copy, Debug)]
pub struct Down {
    /// When.
    pub at: Instant,
    /// Who thinks so.
    pub observer: usize,
    /// Whose gossip address.
    pub addr: SocketAddr,
}

/// Machines, the network between them, and a clock.
#[derive(Debug)]
pub struct World {
    /// The present.
    pub now: Instant,
    /// The network.
    pub network: Network,
    /// The machines.
    pub nodes: Vec<Node>,
    /// What the nodes reported.
    pub log: Vec<Logged>,
    /// Who was taken for failed.
    pub downs: Vec<Down>,
    /// What was sent.
    pub traffic: Traffic,
    /// Decides everything.
    pub rng: StdRng,
    /// Where the stations are.
    pub stations: Vec<Home>,
    /// What became of the stations' frames.
    pub frames: Frames,
    /// Every frame that was let in, while this is wanted.
    deliveries: Option<Vec<Delivery>>,
    options: Options,
    /// Addresses that were given to machines.
    addresses: usize,
    /// Until when a path was last cut.
    disturbed: HashMap<(usize, usize), Instant>,
    /// When the network as a whole last lost much.
    network_changed: Option<Instant>,
    start: Instant,
    queue: Queue<Event>,
    /// Which machine has an address.
    at_ip: HashMap<IpAddr, usize>,
    aliases: BTreeMap<SocketAddr, usize>,
}

impl World {
    /// Machines without daemons.
    pub fn new(seed: u64, nodes: usize) -> Self {
        Self::with(seed, nodes, Options::default())
    }

    /// As [`World::new`], with options.
    pub fn with(seed: u64, nodes: usize, options: Options) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a world needs some instant to begin with")]
        let start = Instant::now();
        let mut world = Self {
            now: start,
            network: Network::default(),
            nodes: (0..nodes).map(Node::new).collect(),
            log: Vec::new(),
            downs: Vec::new(),
            traffic: Traffic::default(),
            rng: StdRng::seed_from_u64(seed),
            stations: Vec::new(),
            frames: Frames::default(),
            deliveries: None,
            options,
            addresses: nodes,
            disturbed: HashMap::new(),
            network_changed: None,
            start,
            queue: Queue::default(),
            at_ip: HashMap::new(),
            aliases: BTreeMap::new(),
        };
        if options.data_planes {
            for node in 0..nodes {
                world.power_on(node);
            }
        }
        world
    }

    /// A cluster whose nodes know each other. Node 0 is the seed of all.
    pub fn cluster(seed: u64, nodes: usize) -> Self {
        let mut world = Self::new(seed, nodes);
        for index in 0..nodes {
            world.start(index, &[0]);
        }
        world.run_until("all know all", Duration::from_secs(15), Self::all_know_all);
        // To some moment that has nothing to do with when they started.
        let more = world.rng.random_range(2000..4000);
        world.run_for(ms(more));
        world
    }

    /// How long this world has run.
    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Where a node gossips.
    pub fn addr(&self, node: usize) -> SocketAddr {
        self.nodes[node].addr
    }

    /// Gives a machine another address that it can be reached at.
    pub fn add_alias(&mut self, node: usize, alias: &str) -> SocketAddr {
        let alias = alias.parse().expect("an address");
        self.aliases.insert(alias, node);
        alias
    }

    /// The membership of a node that runs.
    pub fn membership(&self, index: usize) -> &Membership {
        self.nodes[index].membership.as_ref().expect("the node runs")
    }

    /// The membership of a node that runs.
    pub fn membership_mut(&mut self, index: usize) -> &mut Membership {
        self.nodes[index].membership.as_mut().expect("the node runs")
    }

    /// The nodes whose daemons run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&index| self.nodes[index].membership.is_some()).collect()
    }

    /// How `observer` sees the node at the address of `node`.
    pub fn state(&self, observer: usize, node: usize) -> Option<MemberState> {
        let addr = self.addr(node);
        let members = self.membership(observer).members();
        members.iter().find(|member| member.identity.addr == addr).map(|member| member.state)
    }

    /// How many peers a node has that are not lost.
    pub fn live(&self, node: usize) -> usize {
        self.membership(node).peers().live().count()
    }

    /// Whether every running node has all others as peers.
    pub fn all_know_all(&self) -> bool {
        let running = self.running();
        running.iter().all(|&node| self.live(node) == running.len() - 1)
    }

    /// Whether every other running node has this start of `node` among its peers, and it them.
    pub fn is_back(&self, node: usize) -> bool {
        let own = self.membership(node).identity();
        let others = self.running().len() - 1;
        self.live(node) == others
            && self.running().into_iter().filter(|&other| other != node).all(|other| {
                self.membership(other).peers().get(own.addr).map(|peer| peer.identity.generation)
                    == Some(own.generation)
            })
    }

    /// What was reported since `since` about who is there.
    pub fn reports(&self, since: Instant) -> impl Iterator<Item = &Logged> {
        self.log.iter().filter(move |logged| logged.at >= since).filter(|logged| {
            matches!(
                logged.event,
                MembershipEvent::MemberUp(_)
                    | MembershipEvent::MemberDown(_)
                    | MembershipEvent::MemberLeft(_)
                    | MembershipEvent::MemberChanged { .. }
            )
        })
    }

    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some((at, event)) = self.queue.pop_until(end) {
            self.now = at;
            self.step(event);
        }
        self.now = end;
    }

    /// Runs until `goal`, and returns how long that took; panics when it takes longer than
    /// `limit`.
    pub fn run_until(
        &mut self,
        what: &str,
        limit: Duration,
        goal: impl Fn(&Self) -> bool,
    ) -> Duration {
        let began = self.now;
        while !goal(self) {
            assert!(self.now - began < limit, "not within {limit:?}: {what}\n{self}");
            self.run_for(ms(10));
        }
        self.now - began
    }

    /// How many addresses machines ever had.
    pub fn addresses_ever(&self) -> usize {
        self.addresses
    }

    fn node_at(&self, addr: SocketAddr) -> Option<usize> {
        let by_ip = self.at_ip.get(&addr.ip()).copied();
        let node = by_ip.filter(|&node| self.nodes[node].addr == addr);
        node.or_else(|| self.aliases.get(&addr).copied())
    }

    /// What the events said and what the node shows must be the same at any time.
    fn check(&self, index: usize) {
        let membership = self.membership(index);
        let shown: BTreeMap<SocketAddr, Identity> = membership
            .members()
            .into_iter()
            .filter(|member| {
                matches!(
                    member.state,
                    MemberState::Alive | MemberState::Suspect | MemberState::Restarting
                )
            })
            .map(|member| (member.identity.addr, member.identity))
            .filter(|(addr, _)| *addr != membership.identity().addr)
            .collect();
        assert_eq!(self.nodes[index].told, shown, "node {index} told something else\n{self}");
        for peer in membership.peers().live() {
            assert!(shown.contains_key(&peer.addr), "node {index} has a peer that is not there");
        }
        let (peers, mut seen) = (membership.peers(), BTreeSet::new());
        for peer in peers.iter() {
            let is_first = seen.insert(peer.identity.data_plane);
            assert!(is_first, "node {index} has a peer twice: {}\n{self}", peer.identity);
        }
    }
}
