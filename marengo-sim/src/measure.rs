//! Figures of a membership: how soon a crash is known, who is taken for failed wrongly, how soon a
//! split heals, and what that costs.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use crate::{
    cpu::Cpu,
    ms, secs,
    world::{Down, Options, Traffic, World},
};

mod plain;

pub use self::plain::{Defaults, PlainWorld};

/// A cluster that can be measured: Marengo's membership, or foca alone.
pub trait Cluster {
    /// Starts all daemons; number 0 is the seed of all.
    fn start_all(&mut self);
    /// Lets time pass.
    fn run(&mut self, time: Duration);
    /// How long it has run.
    fn age(&self) -> Duration;
    /// Whether every running node has all others.
    fn is_whole(&self) -> bool;
    /// Ends a daemon without a goodbye.
    fn end(&mut self, node: usize);
    /// Starts a daemon that ended.
    fn begin(&mut self, node: usize);
    /// Where a node gossips.
    fn gossip_address(&self, node: usize) -> SocketAddr;
    /// Cuts the nodes below `first_of_right` from the others.
    fn split(&mut self, first_of_right: usize);
    /// Ends the cut.
    fn heal(&mut self);
    /// Who was taken for failed since the last call, with the time as an age.
    fn take_downs(&mut self) -> Vec<(Duration, Down)>;
    /// What was sent so far.
    fn traffic(&self) -> Traffic;
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Nodes.
    pub nodes: usize,
    /// Share of datagrams that are lost.
    pub loss: f64,
    /// For how long nothing happens, so that false downs and bytes are counted.
    pub quiet: Duration,
    /// How many nodes crash, one after the other.
    pub crashes: usize,
    /// The longest that is waited for a crash to be known.
    pub known_within: Duration,
    /// The longest that is waited until all know all.
    pub whole_within: Duration,
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// From the start of all at once until all know all.
    pub join: Option<Duration>,
    /// From each crash until each other node knew it; those that never knew are not in here.
    pub detection: Vec<Duration>,
    /// Observers that did not learn of a crash in the time that they were given.
    pub undetected: usize,
    /// Nodes taken for failed that were not, while nothing happened.
    pub false_downs: usize,
    /// For how many hours of how many nodes those were counted.
    pub node_hours: f64,
    /// From the end of a split into halves until all know all.
    pub heal: Option<Duration>,
    /// Bytes that each node sent in a second while nothing happened.
    pub bytes: f64,
}

impl Figures {
    /// The time within which this share of the observers knew of a crash.
    pub fn detected_within(&self, share: f64) -> Option<Duration> {
        let mut all = self.detection.clone();
        all.sort_unstable();
        let count = all.len() + self.undetected;
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank among at most some millions"
        )]
        let rank = (count as f64 * share).ceil() as usize;
        all.get(rank.saturating_sub(1)).copied()
    }

    /// Nodes wrongly taken for failed, by any other node, per node and hour.
    pub fn false_downs_per_node_hour(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let count = self.false_downs as f64;
        count / self.node_hours
    }
}

/// Measures a cluster whose daemons have not been started.
pub fn measure(cluster: &mut impl Cluster, scale: &Scale) -> Figures {
    let mut figures = Figures::default();
    cluster.start_all();
    figures.join = until_whole(cluster, scale.whole_within);
    // Until the news of the start has been told often enough.
    cluster.run(secs(40));
    quiet(cluster, scale, &mut figures);
    for crash in 0..scale.crashes {
        detect(cluster, scale, 1 + crash % (scale.nodes - 1), &mut figures);
    }
    until_whole(cluster, scale.whole_within);
    cluster.split(scale.nodes / 2);
    cluster.run(secs(60));
    cluster.heal();
    figures.heal = until_whole(cluster, scale.whole_within);
    figures
}

fn until_whole(cluster: &mut impl Cluster, patience: Duration) -> Option<Duration> {
    let began = cluster.age();
    while !cluster.is_whole() {
        if cluster.age().saturating_sub(began) >= patience {
            return None;
        }
        cluster.run(ms(50));
    }
    Some(cluster.age().saturating_sub(began))
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn quiet(cluster: &mut impl Cluster, scale: &Scale, figures: &mut Figures) {
    cluster.take_downs();
    let before = cluster.traffic();
    cluster.run(scale.quiet);
    let after = cluster.traffic();
    let bytes = (after.bytes + after.exchanged) - (before.bytes + before.exchanged);
    figures.bytes = bytes as f64 / scale.nodes as f64 / scale.quiet.as_secs_f64();
    figures.false_downs += cluster.take_downs().len();
    figures.node_hours += scale.nodes as f64 * scale.quiet.as_secs_f64() / 3600.0;
}

/// Ends one node, waits until all others know, and starts it again.
fn detect(cluster: &mut impl Cluster, scale: &Scale, node: usize, figures: &mut Figures) {
    cluster.take_downs();
    let (began, address) = (cluster.age(), cluster.gossip_address(node));
    cluster.end(node);
    let mut knew = BTreeSet::new();
    while knew.len() < scale.nodes - 1 && cluster.age().saturating_sub(began) < scale.known_within {
        cluster.run(ms(500));
        for (at, down) in cluster.take_downs() {
            if down.addr == address && knew.insert(down.observer) {
                figures.detection.push(at.saturating_sub(began));
            }
        }
    }
    figures.undetected += scale.nodes - 1 - knew.len();
    cluster.begin(node);
    // To some moment that has nothing to do with the probes.
    cluster.run(ms(12_000 + 137 * node as u64));
}

/// Marengo's membership, to be measured.
pub fn marengo(seed: u64, nodes: usize, loss: f64) -> World {
    let options =
        Options { log: false, strict: false, weigh_exchanges: true, ..Options::default() };
    let mut world = World::with(seed, nodes, options);
    world.network.loss = loss;
    world
}

/// The false downs of a long time, in a small cluster of which one node gets 5 % of a processor.
pub fn long_run(seed: u64, time: Duration, loss: f64) -> Figures {
    let mut world = marengo(seed, 5, loss);
    world.start_all();
    until_whole(&mut world, secs(60));
    world.starve(3, Cpu::percent(5));
    world.run(secs(40));
    let mut figures = Figures::default();
    let scale = Scale {
        nodes: 5,
        loss,
        quiet: time,
        crashes: 0,
        known_within: Duration::ZERO,
        whole_within: Duration::ZERO,
    };
    quiet(&mut world, &scale, &mut figures);
    figures
}

impl Cluster for World {
    fn start_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.start(node, &[0]);
        }
    }

    fn run(&mut self, time: Duration) {
        self.run_for(time);
    }

    fn age(&self) -> Duration {
        self.elapsed()
    }

    fn is_whole(&self) -> bool {
        self.all_know_all()
    }

    fn end(&mut self, node: usize) {
        self.crash(node);
    }

    fn begin(&mut self, node: usize) {
        self.start(node, &[0]);
    }

    fn gossip_address(&self, node: usize) -> SocketAddr {
        self.addr(node)
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
        let (now, age) = (self.now, self.elapsed());
        let aged = |down: Down| (age.saturating_sub(now - down.at), down);
        std::mem::take(&mut self.downs).into_iter().map(aged).collect()
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }
}
