//! foca with defaults of its own and nothing around it but what carries its datagrams: what
//! Marengo's membership is compared with.

use std::{
    collections::HashMap,
    net::SocketAddr,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use bytes::Bytes;
use foca::{AccumulatingRuntime, Foca, NoCustomBroadcast, OwnedNotification, Timer};
use marengo_core::{
    identity::{DataPlaneId, Identity},
    membership::codec::WireCodec,
};
use rand::{SeedableRng as _, rngs::StdRng};

use super::{Cluster, Down, Traffic};
use crate::{network::Network, node::Node, queue::Queue};

/// How often a node without members asks the seed. foca leaves that to whoever uses it.
const JOIN_EVERY: Duration = Duration::from_secs(1);

/// Which of foca's defaults.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Defaults {
    /// `foca::Config::new_lan`, which takes memberlist's figures for a local network.
    Lan,
    /// `foca::Config::new_wan`, which takes those for a wide one.
    Wan,
}

impl Defaults {
    fn config(self, nodes: usize) -> foca::Config {
        let size = u32::try_from(nodes).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        match self {
            Self::Lan => foca::Config::new_lan(size),
            Self::Wan => foca::Config::new_wan(size),
        }
    }
}

type PlainFoca = Foca<Identity, WireCodec, StdRng, NoCustomBroadcast>;

enum Event {
    Datagram { to: usize, data: Bytes },
    Timer { node: usize, life: u32, timer: Box<Timer<Identity>> },
    Join { node: usize, life: u32 },
}

struct PlainNode {
    identity: Identity,
    foca: Option<PlainFoca>,
    life: u32,
}

/// Nodes that run foca alone.
pub struct PlainWorld {
    now: Instant,
    start: Instant,
    network: Network,
    defaults: Defaults,
    nodes: Vec<PlainNode>,
    by_address: HashMap<SocketAddr, usize>,
    queue: Queue<Event>,
    rng: StdRng,
    downs: Vec<Down>,
    traffic: Traffic,
}

impl std::fmt::Debug for PlainWorld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlainWorld").field("now", &self.now).finish_non_exhaustive()
    }
}

impl PlainWorld {
    /// Nodes without daemons.
    pub fn new(seed: u64, nodes: usize, loss: f64, defaults: Defaults) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a world needs some instant to begin with")]
        let start = Instant::now();
        let nodes: Vec<PlainNode> = (0..nodes)
            .map(|index| {
                let data_plane = DataPlaneId::new(index as u64 + 1).expect("not zero");
                let identity = Node::new(index).identity(0, data_plane);
                PlainNode { identity, foca: None, life: 0 }
            })
            .collect();
        let by_address =
            nodes.iter().enumerate().map(|(index, node)| (node.identity.addr, index)).collect();
        Self {
            now: start,
            start,
            network: Network::lossy(loss),
            defaults,
            nodes,
            by_address,
            queue: Queue::default(),
            rng: StdRng::seed_from_u64(seed),
            downs: Vec::new(),
            traffic: Traffic::default(),
        }
    }

    /// Calls foca and carries out what it wants.
    fn drive<E>(
        &mut self,
        index: usize,
        call: impl FnOnce(&mut PlainFoca, &mut AccumulatingRuntime<Identity>) -> Result<(), E>,
    ) {
        let mut runtime = AccumulatingRuntime::new();
        let Some(foca) = &mut self.nodes[index].foca else { return };
        // What it refuses is of no interest here.
        call(foca, &mut runtime).ok();
        let life = self.nodes[index].life;
        while let Some((to, data)) = runtime.to_send() {
            self.traffic.datagrams += 1;
            self.traffic.bytes += data.len() as u64;
            let Some(&to) = self.by_address.get(&to.addr) else { continue };
            for delay in self.network.arrivals(index, to, &mut self.rng).into_iter().flatten() {
                self.queue.push(self.now + delay, Event::Datagram { to, data: data.clone() });
            }
        }
        while let Some((after, timer)) = runtime.to_schedule() {
            let timer = Box::new(timer);
            self.queue.push(self.now + after, Event::Timer { node: index, life, timer });
        }
        while let Some(notification) = runtime.to_notify() {
            if let OwnedNotification::MemberDown(down) = notification {
                self.downs.push(Down { at: self.now, observer: index, addr: down.addr });
            }
        }
    }

    fn join(&mut self, node: usize, life: u32) {
        let current = &self.nodes[node];
        let alone = current.foca.as_ref().is_some_and(|foca| foca.num_members() == 0);
        if node == 0 || current.life != life || !alone {
            return;
        }
        let seed = self.nodes[0].identity.clone();
        self.drive(node, |foca, runtime| foca.announce(seed, runtime));
        self.queue.push(self.now + JOIN_EVERY, Event::Join { node, life });
    }
}

impl Cluster for PlainWorld {
    fn start_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.begin(node);
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some((at, event)) = self.queue.pop_until(end) {
            self.now = at;
            match event {
                Event::Datagram { to, data } => {
                    self.drive(to, |foca, runtime| foca.handle_data(&data, runtime));
                }
                Event::Timer { node, life, timer } if self.nodes[node].life == life => {
                    self.drive(node, |foca, runtime| foca.handle_timer(*timer, runtime));
                }
                Event::Timer { .. } => {}
                Event::Join { node, life } => self.join(node, life),
            }
        }
        self.now = end;
    }

    fn age(&self) -> Duration {
        self.now - self.start
    }

    fn is_whole(&self) -> bool {
        let running = self.nodes.iter().filter_map(|node| node.foca.as_ref());
        let count = running.clone().count();
        running.clone().all(|foca| foca.num_members() == count - 1)
    }

    fn end(&mut self, node: usize) {
        self.nodes[node].foca = None;
        self.nodes[node].life += 1;
    }

    fn begin(&mut self, node: usize) {
        let config = self.defaults.config(self.nodes.len());
        let rng = StdRng::from_rng(&mut self.rng);
        let current = &mut self.nodes[node];
        current.life += 1;
        let generation = marengo_core::identity::Generation(u64::from(current.life));
        current.identity = current.identity.with_generation(generation);
        current.foca = Some(Foca::new(current.identity.clone(), config, rng, WireCodec));
        self.join(node, self.nodes[node].life);
    }

    fn gossip_address(&self, node: usize) -> SocketAddr {
        self.nodes[node].identity.addr
    }

    fn split(&mut self, first_of_right: usize) {
        let left: Vec<usize> = (0..first_of_right).collect();
        let right: Vec<usize> = (first_of_right..self.nodes.len()).collect();
        self.network.cut(&left, &right);
    }

    fn heal(&mut self) {
        self.network.heal();
    }

    fn take_downs(&mut self) -> Vec<(Duration, Down)> {
        let (now, age) = (self.now, self.age());
        let aged = |down: Down| (age.saturating_sub(now - down.at), down);
        std::mem::take(&mut self.downs).into_iter().map(aged).collect()
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }
}
