//! A run: events, one after the other, and after each the checks.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    check::{Checks, Finding, learn_ids},
    event::{self, Event},
    host::{Host, State},
    model::{DataPlane, Home, HostNumber, MOVE_HOLD, Model},
    report::{Report, Violation},
    tag::StationNumber,
    traffic::{Traffic, Way},
};
use crate::{Mesh, wait};

/// Stations that move. Each host has one more, which stays.
const MOVABLE: StationNumber = 32;

/// Everything is brought up, and every station must be reached, after so many events.
const MUSTER_EVERY: usize = 1000;

/// How long it may take until every daemon that was started again is everybody's peer.
const HEAL_LIMIT: Duration = Duration::from_mins(1);

/// No event takes so long on a machine that has time for it.
const STALL: Duration = Duration::from_millis(1500);

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub events: usize,
    pub hosts: u8,
    /// The least time between two events.
    pub pace: Duration,
    /// How long a node may send to a data plane that is gone.
    pub bound: Duration,
    /// More arguments for the daemons.
    pub args: Vec<String>,
    /// Whether the programs look at stamps.
    pub stamps: bool,
    /// Whether the maps are judged, or the frames alone.
    pub maps: bool,
    /// Whether to go on behind a violation.
    pub keep_going: bool,
}

/// A run under way.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    plan: Plan,
    hosts: Vec<Host<'a>>,
    model: Model,
    traffic: Traffic,
    checks: Checks,
    choices: StdRng,
    talk: StdRng,
    history: Vec<(Instant, Event)>,
    kinds: BTreeMap<&'static str, (usize, Duration)>,
    violations: Vec<Violation>,
    start: Instant,
    /// When everything was looked at last.
    looked_at: Option<Instant>,
}

/// Runs a plan on a mesh whose daemons do not run yet.
pub fn run(mesh: &Mesh, plan: &Plan) -> Report {
    let mut run = Run::new(mesh, plan.clone());
    run.bring_up();
    for number in 1..=plan.events {
        let due = Instant::now() + plan.pace;
        let event = event::choose(&mut run.choices, number, &run.hosts, &run.model, MOVABLE);
        run.happen(number, event);
        while run.violations.is_empty() || plan.keep_going {
            run.check();
            let now = Instant::now();
            if now >= due {
                break;
            }
            std::thread::sleep((due - now).min(Duration::from_millis(30)));
        }
        if run.is_over() {
            break;
        }
        if number % MUSTER_EVERY == 0 || number == plan.events {
            run.muster();
            eprintln!("{}", run.report());
        }
        if run.is_over() {
            break;
        }
    }
    run.report()
}

impl<'a> Run<'a> {
    fn new(mesh: &'a Mesh, plan: Plan) -> Self {
        let hosts: Vec<Host<'a>> = mesh
            .nodes()
            .enumerate()
            .map(|(number, node)| Host::wire(number, node, &mesh.router))
            .collect();
        let stations = MOVABLE + StationNumber::from(plan.hosts);
        let mut traffic = Traffic::default();
        traffic.without_stamps = !plan.stamps;
        Self {
            model: Model::new(hosts.len(), stations, plan.bound),
            hosts,
            traffic,
            checks: Checks::default(),
            choices: StdRng::seed_from_u64(plan.seed),
            talk: StdRng::seed_from_u64(!plan.seed),
            history: Vec::new(),
            kinds: BTreeMap::new(),
            violations: Vec::new(),
            start: Instant::now(),
            looked_at: None,
            plan,
        }
    }

    /// Starts all daemons, and the stations.
    fn bring_up(&mut self) {
        for host in 0..self.hosts.len() {
            self.launch(host, 0);
        }
        self.wait_healed();
        for station in 0..MOVABLE {
            let host = self.choices.random_range(0..self.hosts.len());
            self.start_station(0, station, host);
        }
    }

    /// The station of a host that never moves.
    fn resident(host: HostNumber) -> StationNumber {
        MOVABLE + StationNumber::try_from(host).expect("a mesh is small")
    }

    fn home(&self, host: HostNumber) -> Home {
        Home { host, boot: self.hosts[host].boot }
    }

    /// Makes it so.
    fn happen(&mut self, number: usize, event: Event) {
        let start = Instant::now();
        self.history.push((start, event));
        self.wait_ready_for(event);
        self.make(number, event);
        self.chat(number);
        let (count, spent) = self.kinds.entry(event.kind()).or_default();
        *count += 1;
        *spent += start.elapsed();
    }

    fn make(&mut self, number: usize, event: Event) {
        match event {
            Event::Start { station, host, silent, late } => {
                self.wait_hold(station);
                if silent {
                    let home = self.home(host);
                    self.model.station_mut(station).silent_at = Some(home);
                } else {
                    self.start_station(number, station, host);
                    if late {
                        self.traffic.late(&self.hosts, &mut self.model, station);
                        self.send_from_everywhere(number, station);
                    }
                }
            }
            Event::Speak { station } => {
                self.wait_hold(station);
                let silent = self.model.station(station).silent_at;
                if let Some(home) = silent {
                    self.start_station(number, station, home.host);
                }
            }
            Event::Remove { station } => self.model.station_mut(station).runs = false,
            Event::Talk => {}
            Event::Kill(host) => self.hosts[host].kill(),
            Event::Crash(host) => {
                self.hosts[host].kill();
                self.launch(host, number);
            }
            Event::Adopt(host) | Event::Join(host) => self.launch(host, number),
            Event::Leave(host) => self.leave(host),
            Event::Restart(host) => {
                self.leave(host);
                self.launch(host, number);
            }
            Event::PowerOff(host) => self.power_off(host),
            Event::PowerOn(host) => {
                self.hosts[host].power_on();
                self.launch(host, number);
            }
            Event::Replace(host) => {
                self.power_off(host);
                self.hosts[host].replace();
                self.hosts[host].power_on();
                self.launch(host, number);
            }
            Event::Stop(host) => self.hosts[host].stop(),
            Event::Resume(host) => self.resume(host),
            Event::Renumber(host) => {
                let began = Instant::now();
                self.hosts[host].renumber();
                let address = self.hosts[host].address();
                self.model.renumber(host, address, began, Instant::now());
            }
            Event::Readdress(host) => {
                self.leave(host);
                self.hosts[host].renumber();
                self.launch(host, number);
            }
        }
    }

    /// The daemons that an event is about must answer first.
    fn wait_ready_for(&mut self, event: Event) {
        let station = event.station().map(|station| self.model.station(station));
        let silent_at = station.and_then(|station| station.silent_at).map(|home| home.host);
        let target = if let Event::Start { host, .. } = event { Some(host) } else { None };
        for host in [event.host(), silent_at, target].into_iter().flatten() {
            if self.hosts[host].wait_ready() {
                self.is_ready(host);
            }
        }
    }

    /// A station that returns within the hold is not believed at once: nothing here moves so fast.
    fn wait_hold(&self, station: StationNumber) {
        if let Some(moved_at) = self.model.station(station).moved_at {
            std::thread::sleep(MOVE_HOLD.saturating_sub(moved_at.elapsed()));
        }
    }

    /// Starts a daemon, with three of those that run as its seeds.
    fn launch(&mut self, host: HostNumber, number: usize) {
        if self.model.plane_of(host).is_none() {
            self.model.planes.push(DataPlane {
                host,
                boot: self.hosts[host].boot,
                id: None,
                address: self.hosts[host].address(),
                took: Instant::now(),
                former: Vec::new(),
                died: None,
            });
        }
        let others: Vec<&Host<'_>> = self
            .hosts
            .iter()
            .filter(|other| other.number != host && other.state == State::Up)
            .collect();
        let seeds: Vec<String> =
            others.sample(&mut self.choices, 3).map(|other| other.seed()).collect();
        self.hosts[host].launch(&seeds, &self.plan.args, number);
    }

    fn resume(&mut self, host: HostNumber) {
        self.hosts[host].resume();
        if let Some(since) = self.hosts[host].take_rest() {
            let now = Instant::now();
            self.model.woke(since, now);
            self.model.tended_again(host, since, now);
        }
    }

    fn leave(&mut self, host: HostNumber) {
        self.hosts[host].leave();
        self.model.end_plane(host, Instant::now());
    }

    fn power_off(&mut self, host: HostNumber) {
        learn_ids(&self.hosts, &mut self.model);
        self.hosts[host].power_off();
        self.model.power_off(host, Instant::now());
    }

    /// A station is started, and sends its first frame; then everybody sends to it.
    fn start_station(&mut self, number: usize, station: StationNumber, host: HostNumber) {
        self.drain();
        self.traffic.note_ignorant(&self.hosts, &self.model, station);
        let home = self.home(host);
        self.model.settle(station, home, Instant::now());
        self.traffic.announce(&self.hosts, &mut self.model, station, Way::Port);
        self.send_from_everywhere(number, station);
    }

    /// A daemon that was started answers.
    fn is_ready(&mut self, host: HostNumber) {
        if let Some(since) = self.hosts[host].take_rest() {
            self.model.tended_again(host, since, Instant::now());
        }
        let (station, home) = (Self::resident(host), self.home(host));
        if self.model.station(station).home() != Some(home) {
            self.model.settle(station, home, Instant::now());
        }
        self.traffic.announce(&self.hosts, &mut self.model, station, Way::Stack);
    }

    /// A frame from each host to a station: from its stack, or from a station of its own.
    fn send_from_everywhere(&mut self, number: usize, station: StationNumber) {
        for host in 0..self.hosts.len() {
            self.send_from(number, host, station);
        }
    }

    fn send_from(&mut self, number: usize, host: HostNumber, to: StationNumber) -> Option<u32> {
        if !self.hosts[host].forwards() || self.hosts[host].tables.is_none() {
            return None;
        }
        let home = self.home(host);
        let mine: Vec<StationNumber> = self.model.stations[..usize::from(MOVABLE)]
            .iter()
            .filter(|station| station.runs && station.home() == Some(home))
            .filter(|station| station.number != to)
            .map(|station| station.number)
            .collect();
        let (way, from) = match mine.choose(&mut self.talk) {
            Some(station) if self.talk.random() => (Way::Port, *station),
            _ => (Way::Stack, Self::resident(host)),
        };
        if from == to {
            return None;
        }
        let from = (host, way, from);
        Some(self.traffic.send(number, &self.hosts, &mut self.model, from, to))
    }

    /// A few frames from anybody to anybody.
    fn chat(&mut self, number: usize) {
        for _ in 0..4 {
            let host = self.talk.random_range(0..self.hosts.len());
            let station = self.talk.random_range(0..MOVABLE);
            if self.model.station(station).home().is_some() {
                self.send_from(number, host, station);
            }
        }
    }

    fn drain(&mut self) {
        self.traffic.drain(&self.hosts, &mut self.model);
    }

    /// Looks at everything once.
    fn check(&mut self) {
        let now = Instant::now();
        let gap = self.looked_at.map_or(Duration::ZERO, |before| now - before);
        if gap > STALL {
            self.model.stalled(gap, now);
        }
        self.looked_at = Some(now);
        for host in 0..self.hosts.len() {
            if self.hosts[host].poll_ready() {
                self.is_ready(host);
            }
        }
        self.drain();
        let findings = self.checks.look(&self.hosts, &mut self.model, self.plan.stamps);
        let judged = if self.plan.maps { &findings[..] } else { &[] };
        for finding in judged {
            self.accuse(finding, None);
        }
        for wrong in self.traffic.judge(&self.model, false) {
            let finding =
                Finding { host: wrong.host, station: Some(wrong.station), text: wrong.text };
            self.accuse(&finding, Some(wrong.event));
        }
    }

    fn accuse(&mut self, finding: &Finding, event: Option<usize>) {
        if self.is_over() {
            return;
        }
        let event = event.unwrap_or(self.history.len());
        let violation =
            Violation::new(&self.plan, event, finding, &self.history, &self.model, &self.hosts);
        // What stands is found again in each round.
        if !self.violations.iter().any(|other| other.is_like(&violation)) {
            eprintln!("{violation}");
            self.violations.push(violation);
        }
    }

    fn is_over(&self) -> bool {
        !self.violations.is_empty() && !self.plan.keep_going
    }

    /// Brings everything up. Then all know all, every station announces itself, and every node
    /// reaches every station by an entry that is right.
    fn muster(&mut self) {
        let number = self.history.len();
        for host in 0..self.hosts.len() {
            match self.hosts[host].state {
                State::Up => {}
                State::Stopped => self.resume(host),
                State::Orphaned | State::Left => self.launch(host, number),
                State::Off => {
                    self.hosts[host].power_on();
                    self.launch(host, number);
                }
            }
        }
        self.wait_healed();
        std::thread::sleep(MOVE_HOLD);
        for station in 0..MOVABLE {
            let known = self.model.station(station);
            match (known.silent_at, known.home()) {
                (Some(home), _) => self.start_station(number, station, home.host),
                (None, Some(_)) if known.runs => {
                    self.traffic.announce(&self.hosts, &mut self.model, station, Way::Port);
                }
                _ => self.start_station(number, station, usize::from(station) % self.hosts.len()),
            }
        }
        self.check();
        for station in 0..MOVABLE {
            let Some(home) = self.model.station(station).home() else { continue };
            for host in 0..self.hosts.len() {
                let arrives = |run: &mut Self| {
                    let sequence = run.send_from(number, host, station);
                    run.drain();
                    sequence.is_none_or(|sequence| run.traffic.has_arrived(sequence, home.host))
                };
                // From the same port that the station is behind, nothing comes out again.
                if host == home.host || arrives(self) || {
                    std::thread::sleep(Duration::from_millis(50));
                    arrives(self)
                } {
                    continue;
                }
                let finding = Finding {
                    host,
                    station: Some(station),
                    text: "a frame for it does not arrive though all is well".to_owned(),
                };
                self.accuse(&finding, None);
            }
        }
        std::thread::sleep(Duration::from_millis(400));
        self.check();
    }

    /// Waits until each node has a slot for each other, and no more.
    fn wait_healed(&mut self) {
        let others = self.hosts.len() - 1;
        wait::until("every node is every other's peer", HEAL_LIMIT, || {
            self.check();
            std::thread::sleep(Duration::from_millis(20));
            self.is_over()
                || self.hosts.iter().all(|host| {
                    let Some(tables) = &host.tables else { return false };
                    let dump = tables.dump();
                    let mut slots = dump.slots().collect::<Vec<_>>();
                    slots.dedup_by_key(|(_, peer)| dump.address(peer));
                    slots.len() == others
                        && slots.iter().all(|(_, peer)| {
                            self.hosts.iter().any(|host| dump.address(peer) == host.address())
                        })
                        && host.view().is_converged()
                })
        });
    }

    fn report(&self) -> Report {
        Report {
            seed: self.plan.seed,
            events: self.history.len(),
            took: self.start.elapsed(),
            kinds: self.kinds.clone(),
            frames: self.traffic.frames,
            checks: self.checks,
            stalled: self.model.stalled_for(),
            violations: self.violations.clone(),
        }
    }
}
