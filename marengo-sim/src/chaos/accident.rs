//! What may happen, how often, and for how long.

use std::time::Duration;

use rand::{RngExt as _, rngs::StdRng};

use super::{Chaos, Cpu, Hook, Meddling, Mood, ms};

/// Something that happens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Accident {
    Crash,
    PowerOff,
    Reboot,
    Replace,
    Leave,
    Pause,
    Renumber,
    Stop,
    Starve,
    ClockStep,
    Cut,
    CutGossip,
    Weather,
    GossipLoss,
    SlowKernel,
    FailingKernel,
    Meddle,
    MoveStation,
    Start,
}

/// How often each of them, in shares of the sum.
const WEIGHTS: [(Accident, u32); 19] = [
    (Accident::Crash, 10),
    (Accident::PowerOff, 5),
    (Accident::Reboot, 6),
    (Accident::Replace, 4),
    (Accident::Leave, 5),
    (Accident::Pause, 4),
    (Accident::Renumber, 5),
    (Accident::Stop, 8),
    (Accident::Starve, 5),
    (Accident::ClockStep, 3),
    (Accident::Cut, 14),
    (Accident::CutGossip, 6),
    (Accident::Weather, 8),
    (Accident::GossipLoss, 4),
    (Accident::SlowKernel, 5),
    (Accident::FailingKernel, 5),
    (Accident::Meddle, 6),
    (Accident::MoveStation, 15),
    (Accident::Start, 8),
];

/// What ends.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// The daemon is started, if it does not run and there is power.
    Start(usize),
    /// Power, and the daemon.
    PowerOn(usize),
    /// The daemon notices that it has another address.
    Follow(usize),
    Resume(usize),
    Cuts,
    /// Another toggle of a link that flaps.
    Flap {
        cut: bool,
        left: Vec<usize>,
        right: Vec<usize>,
        times: u32,
    },
    Weather,
    GossipLoss,
    Mood(usize),
}

impl Accident {
    pub(super) fn choose(rng: &mut StdRng) -> Option<Self> {
        let sum: u32 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut drawn = rng.random_range(0..sum);
        for (accident, weight) in WEIGHTS {
            if drawn < weight {
                return Some(accident);
            }
            drawn -= weight;
        }
        None
    }
}

impl Chaos {
    pub(super) fn happen(&mut self, accident: Accident) {
        let count = self.world.nodes.len();
        let node = self.script.random_range(0..count);
        let runs = self.world.nodes[node].membership.is_some();
        let has_power = self.world.nodes[node].kernel.is_some();
        match accident {
            Accident::Crash if runs => {
                self.world.crash(node);
                self.later((50, 12_000), End::Start(node));
            }
            Accident::PowerOff if has_power => self.world.power_off(node),
            Accident::Reboot if has_power => {
                self.world.power_off(node);
                self.later((200, 15_000), End::PowerOn(node));
            }
            Accident::Replace if has_power && count < 40 => self.replace(node),
            Accident::Leave if runs => {
                self.world.leave(node);
                self.later((1000, 15_000), End::Start(node));
            }
            Accident::Pause if runs => {
                self.world.leave_for_restart(node);
                self.later((600, 15_000), End::Start(node));
            }
            Accident::Renumber if has_power => {
                self.world.readdress_anew(node);
                self.later((10, 3000), End::Follow(node));
            }
            Accident::Stop if runs => {
                self.world.stop(node);
                self.later((100, 20_000), End::Resume(node));
            }
            Accident::Starve if runs => {
                let share = [1, 5, 20][self.script.random_range(0..3)];
                self.world.starve(node, Cpu::percent(share));
                self.later((1000, 20_000), End::Resume(node));
            }
            Accident::ClockStep => {
                let step = self.script.random_range(-100_000_000..100_000_000);
                self.world.nodes[node].clock_error += step;
            }
            Accident::Cut => self.cut(),
            Accident::CutGossip => {
                let (left, right) = self.two_groups();
                self.world.cut_gossip(&left, &right);
                self.later((500, 15_000), End::Cuts);
            }
            Accident::Weather => {
                let loss = [0.01, 0.05, 0.1, 0.2, 0.4][self.script.random_range(0..5)];
                let (twice, late) =
                    (self.script.random::<f64>() / 5.0, self.script.random::<f64>() / 5.0);
                self.world.weather(loss, twice, late);
                self.later((500, 15_000), End::Weather);
            }
            Accident::GossipLoss => {
                self.world.network.gossip_loss = self.script.random::<f64>() * 0.8;
                self.later((500, 15_000), End::GossipLoss);
            }
            Accident::SlowKernel => {
                let slowness = ms(self.script.random_range(1..800));
                self.world.set_mood(node, Mood { slowness, failing: 0.0 });
                self.later((500, 15_000), End::Mood(node));
            }
            Accident::FailingKernel => {
                let failing = 0.05 + self.script.random::<f64>() * 0.9;
                self.world.set_mood(node, Mood { slowness: ms(5), failing });
                self.later((500, 10_000), End::Mood(node));
            }
            Accident::Meddle => {
                let what = self.meddling();
                self.world.meddle(node, what);
            }
            Accident::MoveStation => {
                let stations = u32::try_from(self.world.stations.len()).unwrap_or(0);
                let station = self.script.random_range(0..stations);
                let home = self.world.stations[station as usize];
                // What stations do in turn faster than the programs promise to follow, nobody does.
                if home.host != node && self.world.now - home.since >= ms(500) {
                    self.world.move_station(station, node);
                }
            }
            Accident::Start if !runs && has_power => self.start(node),
            _ => {}
        }
    }

    pub(super) fn end(&mut self, end: End) {
        match end {
            End::Start(node) => self.start_if_it_can(node),
            End::PowerOn(node) => {
                if self.world.nodes[node].kernel.is_none() {
                    self.power_on(node);
                }
                self.start_if_it_can(node);
            }
            End::Resume(node) => {
                if self.world.nodes[node].membership.is_some() {
                    self.world.resume(node);
                }
            }
            End::Follow(node) => self.world.follow(node),
            End::Cuts => self.world.heal_cuts(),
            End::Flap { cut, left, right, times } => self.flap(cut, left, right, times),
            End::Weather => self.world.weather(0.0, 0.0, 0.0),
            End::GossipLoss => self.world.network.gossip_loss = 0.0,
            End::Mood(node) => self.world.set_mood(node, Mood::default()),
        }
    }

    fn start_if_it_can(&mut self, node: usize) {
        let current = &self.world.nodes[node];
        if current.membership.is_none() && current.kernel.is_some() {
            self.start(node);
        }
    }

    fn later(&mut self, (least, most): (u64, u64), end: End) {
        let after = ms(self.script.random_range(least..most));
        self.ends.push((self.world.now + after, end));
    }

    /// The machine is gone for good, and another one gets its address, mostly soon.
    fn replace(&mut self, node: usize) {
        self.world.power_off(node);
        let new = self.world.add_machine(self.without);
        self.world.take_over(new, node);
        if self.script.random_bool(0.5) {
            self.world.nodes[new].name = self.world.nodes[node].name.clone();
            self.world.nodes[node].name = format!("renamed{node}");
        }
        self.later((100, 10_000), End::Start(new));
    }

    fn meddling(&mut self) -> Meddling {
        let all = [
            Meddling::Device,
            Meddling::DeviceDown,
            Meddling::Port,
            Meddling::Hook(Hook::DeviceEgress),
            Meddling::Hook(Hook::BridgeEgress),
            Meddling::Slot,
            Meddling::Address,
            Meddling::Flood,
        ];
        all[self.script.random_range(0..all.len())]
    }

    fn two_groups(&mut self) -> (Vec<usize>, Vec<usize>) {
        let share = self.script.random_range(0.1..0.9);
        let count = self.world.nodes.len();
        (0..count).partition(|_| self.script.random_bool(share))
    }

    /// A cut of some shape.
    fn cut(&mut self) {
        let count = self.world.nodes.len();
        let pick = self.script.random_range(0..count);
        let others: Vec<usize> = (0..count).filter(|other| *other != pick).collect();
        match self.script.random_range(0..7) {
            // Halves, or three parts.
            0 => {
                let (left, right) = self.two_groups();
                self.world.cut(&left, &right);
            }
            1 => {
                let (left, rest) = self.two_groups();
                let middle = rest.len() / 2;
                self.world.cut(&left, &rest);
                self.world.cut(&rest[..middle], &rest[middle..]);
            }
            // A ring: each reaches its neighbours alone.
            2 => {
                for node in 0..count {
                    let neighbours = [(node + 1) % count, (node + count - 1) % count, node];
                    let far: Vec<usize> =
                        (0..count).filter(|other| !neighbours.contains(other)).collect();
                    self.world.network.cut(&[node], &far);
                }
                self.world.trace(|| "cut into a ring".to_owned());
            }
            // One machine, in one direction or both; or one link.
            3 => self.world.cut_one_way(&[pick], &others),
            4 => self.world.cut_one_way(&others, &[pick]),
            5 => self.world.cut(&[pick], &others),
            _ => {
                let other = self.script.random_range(0..count);
                if other != pick {
                    self.world.cut(&[pick], &[other]);
                }
            }
        }
        if self.script.random_bool(0.2) {
            let (left, right) = self.two_groups();
            let times = self.script.random_range(3..20);
            self.flap(true, left, right, times);
        } else {
            self.later((200, 20_000), End::Cuts);
        }
    }

    fn flap(&mut self, cut: bool, left: Vec<usize>, right: Vec<usize>, times: u32) {
        if cut {
            self.world.cut(&left, &right);
        } else {
            self.world.heal_cuts();
        }
        let pause = Duration::from_millis(self.script.random_range(100..2500));
        if times > 0 {
            let end = End::Flap { cut: !cut, left, right, times: times - 1 };
            self.ends.push((self.world.now + pause, end));
        } else {
            self.ends.push((self.world.now + pause, End::Cuts));
        }
    }
}
