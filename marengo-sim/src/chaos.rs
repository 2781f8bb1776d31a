//! One seed: a cluster, accidents at random, then peace, and what must have come of it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use marengo_core::{control::Without, membership::MembershipEvent, op::Hook};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    cpu::Cpu,
    host_kernel::Mood,
    ms, secs,
    world::{Logged, Meddling, Missing, Options, World},
};

mod accident;

use self::accident::{Accident, End};

/// Within this time of peace the mesh is full again.
const WHOLE_WITHIN: Duration = secs(15);
/// For so long it is then watched.
const WATCHED: Duration = secs(10);
/// The most that passes between the starts of two machines.
const BETWEEN_STARTS_MS: u64 = 1000;
/// All machines have started within so long, however many they are.
const STARTED_WITHIN_MS: u64 = 40_000;

/// What is chosen by hand for a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Machines at the beginning; by default the seed decides, mostly for few.
    pub nodes: Option<usize>,
    /// Print what happens.
    pub trace: bool,
    /// What all nodes do without.
    pub without: Without,
}

/// What a run that kept all promises can tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Machines, those that came later included.
    pub nodes: usize,
    /// Accidents.
    pub accidents: usize,
    /// Virtual time.
    pub lasted: Duration,
    /// From the beginning of peace until the mesh was full.
    pub healed: Duration,
    /// Datagrams of gossip.
    pub datagrams: u64,
    /// Frames of stations.
    pub frames: u64,
    /// Frames that were let in where their station is not.
    pub strayed: u64,
}

/// Runs one seed. Panics if a promise is broken.
pub fn run(seed: u64, settings: &Settings) -> Report {
    let mut chaos = Chaos::new(seed, settings);
    chaos.begin();
    chaos.trouble();
    chaos.peace()
}

struct Chaos {
    world: World,
    /// Decides what happens; the world's own decides how.
    script: StdRng,
    without: Without,
    /// What has begun, and when it ends.
    ends: Vec<(Instant, End)>,
    accidents: usize,
}

impl Chaos {
    fn new(seed: u64, settings: &Settings) -> Self {
        let mut script = StdRng::seed_from_u64(seed);
        let nodes = settings.nodes.unwrap_or_else(|| match script.random_range(0..1000) {
            0..600 => script.random_range(2..=5),
            600..900 => script.random_range(6..=10),
            900..985 => script.random_range(11..=25),
            985..=997 => script.random_range(26..=60),
            _ => script.random_range(61..=200),
        });
        let options = Options {
            data_planes: true,
            trace: settings.trace,
            strict: nodes <= 100,
            ..Options::default()
        };
        let mut world = World::with(script.random(), 0, options);
        for _ in 0..nodes {
            world.add_machine(settings.without);
        }
        Self { world, script, without: settings.without, ends: Vec::new(), accidents: 0 }
    }

    fn begin(&mut self) {
        let count = self.world.nodes.len();
        let most = (STARTED_WITHIN_MS / count.max(1) as u64).clamp(1, BETWEEN_STARTS_MS);
        for node in 0..count {
            if self.script.random_bool(0.5) {
                let pause = self.script.random_range(0..most);
                self.world.run_for(ms(pause));
            }
            self.start(node);
        }
        let stations = self.script.random_range(2..=count.clamp(3, 12));
        for _ in 0..stations {
            let host = self.script.random_range(0..count);
            self.world.add_station(host);
        }
        let pause = self.script.random_range(0..8000);
        self.world.run_for(ms(pause));
    }

    fn trouble(&mut self) {
        let lasts = secs(self.script.random_range(5..=40));
        // Some seeds have many accidents at once, others one after the other.
        let most = [400, 1500, 5000][self.script.random_range(0..3)];
        let until = self.world.now + lasts;
        while self.world.now < until {
            let pause = ms(self.script.random_range(20..most));
            self.run(pause);
            if let Some(accident) = Accident::choose(&mut self.script) {
                self.accidents += 1;
                self.happen(accident);
            }
        }
    }

    /// Lets time pass; what is to end meanwhile does.
    fn run(&mut self, time: Duration) {
        let until = self.world.now + time;
        loop {
            let next = self.ends.iter().map(|(at, _)| *at).min();
            let Some(at) = next.filter(|at| *at <= until) else { break };
            self.world.run_for(at.saturating_duration_since(self.world.now));
            let due = self.ends.iter().position(|(end, _)| *end == at);
            if let Some(due) = due {
                let (_, end) = self.ends.swap_remove(due);
                self.end(end);
            }
        }
        self.world.run_for(until.saturating_duration_since(self.world.now));
        self.check_bounds();
    }

    fn peace(mut self) -> Report {
        self.make_peace();
        let began = self.world.now;
        let mut healed = None;
        while let Some(missing) = self.world.missing() {
            let waited = self.world.now - began;
            let within = match missing {
                Missing::Peer(_) => WHOLE_WITHIN,
                Missing::Conflict(_, within) | Missing::Tidiness(_, within) => {
                    healed.get_or_insert(waited);
                    within
                }
            };
            assert!(
                waited < within,
                "goal: not as it should be {within:?} after the last trouble: {missing}\n{}",
                self.world
            );
            self.world.run_for(ms(100));
        }
        let healed = healed.unwrap_or(self.world.now - began);
        self.world.trace(|| format!("the mesh is full after {healed:?}"));
        self.world.check_delivery();
        let since = self.world.now;
        self.world.run_for(WATCHED);
        let running: Vec<SocketAddr> =
            self.world.running().into_iter().map(|node| self.world.addr(node)).collect();
        let is_about_running = |logged: &&Logged| match &logged.event {
            MembershipEvent::MemberUp(member)
            | MembershipEvent::MemberDown(member)
            | MembershipEvent::MemberLeft(member) => running.contains(&member.addr),
            // Whoever hears that somebody remembers a later start of its own goes above it. No map
            // changes.
            MembershipEvent::MemberChanged { old, new } => {
                running.contains(&new.addr) && old.with_generation(new.generation) != *new
            }
            MembershipEvent::Joined
            | MembershipEvent::Isolated
            | MembershipEvent::SyncWanted { .. }
            | MembershipEvent::SeedRefused { .. }
            | MembershipEvent::Conflict(_)
            | MembershipEvent::ConflictResolved(_) => false,
        };
        let news = self.world.reports(since).filter(is_about_running).count();
        assert!(news == 0, "goal: {news} changes of state in peace\n{}", self.world);
        while let Some(missing) = self.world.missing() {
            // Who has had an address before may have been heard of only after the mesh was full.
            let is_early = match missing {
                Missing::Peer(_) | Missing::Tidiness(..) => false,
                Missing::Conflict(_, within) => self.world.now - began < within,
            };
            assert!(is_early, "goal: the mesh did not stay full: {missing}\n{}", self.world);
            self.world.run_for(ms(100));
        }
        self.world.check_delivery();
        self.check_bounds();
        Report {
            nodes: self.world.nodes.len(),
            accidents: self.accidents,
            lasted: self.world.elapsed(),
            healed,
            datagrams: self.world.traffic.datagrams,
            frames: self.world.frames.sent,
            strayed: self.world.frames.strayed,
        }
    }

    /// Whatever is broken is mended, and every daemon runs but on machines that are gone for good.
    fn make_peace(&mut self) {
        self.world.trace(|| "peace".to_owned());
        self.ends.clear();
        self.world.heal_cuts();
        self.world.weather(0.0, 0.0, 0.0);
        self.world.network.gossip_loss = 0.0;
        // Goodbyes that are being said are said.
        self.world.run_for(ms(500));
        let count = self.world.nodes.len();
        let mut wanted = Vec::new();
        for node in 0..count {
            self.world.set_mood(node, Mood::default());
            // The first two are those that all are told to join.
            let is_gone = node > 1 && self.script.random_bool(0.5);
            let has_power = self.world.nodes[node].kernel.is_some();
            if !has_power && !is_gone {
                self.power_on(node);
            }
            wanted.push(has_power || !is_gone);
        }
        for node in (0..count).filter(|node| wanted[*node]) {
            if self.world.nodes[node].membership.is_some() {
                self.world.resume(node);
                let seeds = self.seeds();
                self.world.resolve(node, seeds);
            } else {
                self.start(node);
            }
        }
    }

    fn start(&mut self, node: usize) {
        let seeds = self.seeds();
        self.world.start_with(node, seeds);
    }

    /// What the names of the first two machines stand for at the moment.
    fn seeds(&self) -> Vec<SocketAddr> {
        [0, 1].map(|seed| self.world.addr(seed)).to_vec()
    }

    /// A machine whose address somebody else has by now gets another one.
    fn power_on(&mut self, node: usize) {
        self.world.make_address_free(node);
        self.world.power_on(node);
    }

    fn check_bounds(&self) {
        let machines = self.world.nodes.len();
        for node in self.world.running() {
            let membership = self.world.membership(node);
            let timers = membership.pending_timers();
            assert!(timers < 32 + 2 * machines, "invariant: {timers} timers\n{}", self.world);
            let members = membership.members().len();
            let bound = self.world.addresses_ever();
            assert!(members <= bound, "invariant: {members} members\n{}", self.world);
        }
    }
}
