//! A world of nodes: who is there, what time it is, and what happens next.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::Bytes;
use marengo_core::{
    identity::{ClusterName, DataPlaneId, Generation, Identity, NodeName},
    members::MemberState,
    membership::{Membership, MembershipConfig, MembershipEvent, SyncMessage},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{ms, network::Network};

/// What a wall clock shows when a world begins, in milliseconds.
const WALL_CLOCK: u64 = 1_700_000_000_000;

#[derive(Debug)]
struct Scheduled {
    at: Instant,
    /// Breaks ties, so that a run is the same each time.
    seq: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

#[derive(Debug)]
enum Event {
    Datagram { to: usize, from: SocketAddr, data: Bytes },
    Deadline { node: usize },
    SyncRequest { from: usize, life: u32, to: usize, message: SyncMessage },
    SyncReply { to: usize, life: u32, message: SyncMessage },
}

/// A machine, whether a daemon runs on it or not.
#[derive(Debug)]
pub struct Node {
    pub membership: Option<Membership>,
    pub config: MembershipConfig,
    pub name: String,
    pub addr: SocketAddr,
    pub vtep: IpAddr,
    /// Added to what this machine's wall clock shows.
    pub clock_error: i64,
    /// Datagrams sent to this machine.
    pub sent_to: u64,
    listen: SocketAddr,
    /// Counts the starts, so that nothing meant for one start reaches the next.
    life: u32,
    scheduled: Option<Instant>,
    /// Datagrams that wait for a stopped process.
    inbox: Option<VecDeque<(SocketAddr, Bytes)>>,
    /// Who is active, going by the events alone.
    told: BTreeMap<SocketAddr, Identity>,
}

/// An event and when which node reported it.
#[derive(Clone, Debug)]
pub struct Logged {
    pub at: Instant,
    pub node: usize,
    pub event: MembershipEvent,
}

#[derive(Debug)]
pub struct World {
    pub now: Instant,
    pub network: Network,
    pub nodes: Vec<Node>,
    pub log: Vec<Logged>,
    /// Datagrams sent, all nodes together.
    pub sent: u64,
    pub rng: StdRng,
    start: Instant,
    queue: BinaryHeap<Reverse<Scheduled>>,
    seq: u64,
    aliases: BTreeMap<SocketAddr, usize>,
}

impl World {
    pub fn new(seed: u64, nodes: usize) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a world needs some instant to begin with")]
        let start = Instant::now();
        let mut world = Self {
            now: start,
            network: Network::default(),
            nodes: Vec::new(),
            log: Vec::new(),
            sent: 0,
            rng: StdRng::seed_from_u64(seed),
            start,
            queue: BinaryHeap::new(),
            seq: 0,
            aliases: BTreeMap::new(),
        };
        for index in 0..nodes {
            world.nodes.push(Node::new(index));
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

    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    pub fn addr(&self, node: usize) -> SocketAddr {
        self.nodes[node].addr
    }

    /// Gives a machine another address that it can be reached at.
    pub fn add_alias(&mut self, node: usize, alias: &str) -> SocketAddr {
        let alias = alias.parse().expect("an address");
        self.aliases.insert(alias, node);
        alias
    }

    /// Starts the daemon of a node, with the nodes that it is told to join.
    pub fn start(&mut self, node: usize, seeds: &[usize]) {
        let seeds = seeds.iter().map(|&seed| self.addr(seed)).collect();
        self.start_with(node, seeds);
    }

    pub fn start_with(&mut self, index: usize, seeds: Vec<SocketAddr>) {
        let wall_clock = WALL_CLOCK + u64::try_from(self.elapsed().as_millis()).expect("small");
        let mut rng = StdRng::from_rng(&mut self.rng);
        let node = &mut self.nodes[index];
        assert!(node.membership.is_none(), "node {index} runs already");
        let identity = Identity::new(
            NodeName::new(&node.name).expect("a name"),
            node.addr,
            node.vtep,
            node.listen,
            Generation(wall_clock.checked_add_signed(node.clock_error).expect("after 1970")),
            DataPlaneId::random(&mut rng),
        );
        let identity = identity.expect("an identity");
        let mut membership = Membership::new(self.now, node.config.clone(), identity, rng);
        membership.set_seeds(self.now, seeds);
        node.membership = Some(membership);
        node.life += 1;
        self.pump(index);
    }

    /// Power off, or SIGKILL: no goodbye.
    pub fn crash(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.membership = None;
        node.inbox = None;
        node.scheduled = None;
        node.told.clear();
    }

    /// Tells a node to leave. Its machine stays, so that it says its second goodbye.
    pub fn leave(&mut self, index: usize) {
        let now = self.now;
        self.membership_mut(index).leave(now);
        self.pump(index);
    }

    /// SIGSTOP.
    pub fn stop(&mut self, index: usize) {
        self.nodes[index].inbox = Some(VecDeque::new());
    }

    /// What came for a stopped process is lost, as on a suspended machine.
    pub fn lose_inbox(&mut self, index: usize) {
        self.nodes[index].inbox = Some(VecDeque::new());
    }

    /// SIGCONT: what the socket kept is read first, then what is due is done.
    pub fn resume(&mut self, index: usize) {
        let now = self.now;
        for (from, data) in self.nodes[index].inbox.take().into_iter().flatten() {
            let _refused = self.membership_mut(index).handle_datagram(now, from, &data);
        }
        self.membership_mut(index).handle_timeout(now);
        self.nodes[index].scheduled = None;
        self.pump(index);
    }

    pub fn membership(&self, index: usize) -> &Membership {
        self.nodes[index].membership.as_ref().expect("the node runs")
    }

    pub fn membership_mut(&mut self, index: usize) -> &mut Membership {
        self.nodes[index].membership.as_mut().expect("the node runs")
    }

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

    /// What `node` reported since `since` about who is there.
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

    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.queue.peek().is_some_and(|Reverse(next)| next.at <= end) {
            self.step();
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

    fn step(&mut self) {
        let Some(Reverse(Scheduled { at, event, .. })) = self.queue.pop() else { return };
        self.now = at;
        match event {
            Event::Datagram { to, from, data } => {
                let node = &mut self.nodes[to];
                if let Some(inbox) = &mut node.inbox {
                    inbox.push_back((from, data));
                } else if let Some(membership) = &mut node.membership {
                    let _refused = membership.handle_datagram(at, from, &data);
                    self.pump(to);
                }
            }
            Event::Deadline { node: index } => {
                let node = &mut self.nodes[index];
                if node.scheduled != Some(at) || node.inbox.is_some() {
                    return;
                }
                node.scheduled = None;
                if let Some(membership) = &mut node.membership {
                    if membership.poll_timeout().is_some_and(|deadline| deadline <= at) {
                        membership.handle_timeout(at);
                    }
                    self.pump(index);
                }
            }
            Event::SyncRequest { from, life, to, message } => {
                let node = &mut self.nodes[to];
                if node.inbox.is_some() || !self.network.reaches(from, to) {
                    return;
                }
                let Some(membership) = &mut node.membership else { return };
                if let Ok(message) = membership.handle_sync(at, &message) {
                    let at = at + self.network.delay(&mut self.rng);
                    self.schedule(at, Event::SyncReply { to: from, life, message });
                }
                self.pump(to);
            }
            Event::SyncReply { to, life, message } => {
                let node = &mut self.nodes[to];
                if node.life != life || node.inbox.is_some() {
                    return;
                }
                let Some(membership) = &mut node.membership else { return };
                membership.handle_sync_reply(at, &message).expect("a good reply");
                self.pump(to);
            }
        }
    }

    /// Carries out what a node wants done.
    fn pump(&mut self, index: usize) {
        let now = self.now;
        let from = self.addr(index);
        let mut told_members = false;
        while let Some(transmit) = self.membership_mut(index).poll_transmit() {
            assert!(transmit.data.len() <= 1260, "a datagram of {} bytes", transmit.data.len());
            self.sent += 1;
            let Some(to) = self.node_at(transmit.to) else { continue };
            self.nodes[to].sent_to += 1;
            for delay in self.network.arrivals(index, to, &mut self.rng) {
                let data = transmit.data.clone();
                self.schedule(now + delay, Event::Datagram { to, from, data });
            }
        }
        while let Some(event) = self.membership_mut(index).poll_event() {
            if let MembershipEvent::SyncWanted { with } = event {
                self.request_sync(index, with);
            } else {
                told_members |= self.nodes[index].hear(&event);
            }
            self.log.push(Logged { at: now, node: index, event });
        }
        if told_members {
            self.check(index);
        }
        let node = &mut self.nodes[index];
        let deadline = node.membership.as_ref().and_then(Membership::poll_timeout);
        if let Some(deadline) = deadline
            && node.scheduled.is_none_or(|scheduled| deadline < scheduled)
        {
            let deadline = deadline.max(now);
            node.scheduled = Some(deadline);
            self.schedule(deadline, Event::Deadline { node: index });
        }
    }

    fn request_sync(&mut self, from: usize, with: SocketAddr) {
        let Some(to) = self.nodes.iter().position(|node| node.listen == with) else { return };
        let message = self.membership(from).sync_request();
        let life = self.nodes[from].life;
        // A stream takes a round trip to open, and sends again what is lost.
        let at = self.now + 2 * self.network.delay(&mut self.rng);
        self.schedule(at, Event::SyncRequest { from, life, to, message });
    }

    fn schedule(&mut self, at: Instant, event: Event) {
        self.seq += 1;
        self.queue.push(Reverse(Scheduled { at, seq: self.seq, event }));
    }

    fn node_at(&self, addr: SocketAddr) -> Option<usize> {
        let alias = self.aliases.get(&addr).copied();
        alias.or_else(|| self.nodes.iter().position(|node| node.addr == addr))
    }

    /// What the events said and what the node shows must be the same at any time.
    fn check(&self, index: usize) {
        let membership = self.membership(index);
        let shown: BTreeMap<SocketAddr, Identity> = membership
            .members()
            .into_iter()
            .filter(|member| matches!(member.state, MemberState::Alive | MemberState::Suspect))
            .map(|member| (member.identity.addr, member.identity))
            .filter(|(addr, _)| *addr != membership.identity().addr)
            .collect();
        assert_eq!(self.nodes[index].told, shown, "node {index} told something else\n{self}");
        for peer in membership.peers().live() {
            assert!(shown.contains_key(&peer.addr), "node {index} has a peer that is not there");
        }
    }
}

impl Node {
    pub fn new(index: usize) -> Self {
        let index = u16::try_from(index).expect("not that many nodes");
        let [high, low] = (index + 1).to_be_bytes();
        let ip = IpAddr::from([10, 0, high, low]);
        let mut config = MembershipConfig::new(ClusterName::new("sim").expect("a name"));
        "0.1.0".clone_into(&mut config.version);
        Self {
            membership: None,
            config,
            name: format!("node{index}"),
            addr: SocketAddr::new(ip, 7946),
            vtep: ip,
            listen: SocketAddr::new(ip, 8080),
            clock_error: 0,
            sent_to: 0,
            life: 0,
            scheduled: None,
            inbox: None,
            told: BTreeMap::new(),
        }
    }

    /// Follows the events. Returns whether this one was about a member.
    fn hear(&mut self, event: &MembershipEvent) -> bool {
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
                let before = self.told.insert(new.addr, new.clone());
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

impl std::fmt::Display for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let skipped = self.log.len().saturating_sub(60);
        writeln!(f, "{skipped} earlier events, then:")?;
        for logged in &self.log[skipped..] {
            let text = describe(&logged.event);
            writeln!(f, "{:?} node{}: {text}", logged.at - self.start, logged.node)?;
        }
        for node in self.running() {
            write!(f, "node{node} sees")?;
            for member in self.membership(node).members() {
                let Identity { name, generation, .. } = member.identity;
                write!(f, " {name}/{}={}", generation.0 % 1_000_000_000, member.state)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn describe(event: &MembershipEvent) -> String {
    match event {
        MembershipEvent::MemberUp(member) => format!("up {member} {}", member.generation),
        MembershipEvent::MemberDown(member) => format!("down {member} {}", member.generation),
        MembershipEvent::MemberLeft(member) => format!("left {member} {}", member.generation),
        MembershipEvent::MemberChanged { old, new } => {
            format!("changed {old} from {} to {}", old.generation, new.generation)
        }
        MembershipEvent::Conflict(conflict) => format!("conflict: {conflict}"),
        MembershipEvent::ConflictResolved(conflict) => format!("resolved: {conflict}"),
        MembershipEvent::Joined
        | MembershipEvent::Isolated
        | MembershipEvent::SyncWanted { .. }
        | MembershipEvent::SeedRefused { .. } => format!("{event:?}"),
    }
}
