//! The data planes of the machines: rounds of the converge task, frames in the tunnels, stations.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use marengo_common::{VtepBytes, VtepKey};
use marengo_core::plan::plan_teardown;
use rand::RngExt as _;

use super::{World, step::Event};
use crate::{
    host_kernel::{Entrance, HostKernel, Inner, Origin, Station, Way},
    ms,
};

/// How far apart the frames of a station are.
const TALK_EVERY: (u64, u64) = (150, 450);

/// Where a station of the overlay is.
#[derive(Clone, Copy, Debug)]
pub struct Home {
    /// The machine.
    pub host: usize,
    /// How often it has moved.
    pub moves: u32,
    /// It has sent something from there.
    pub has_sent: bool,
    /// Since when it is there.
    pub since: Instant,
}

/// A frame in a tunnel.
#[derive(Debug)]
pub(super) struct Tunnelled {
    to: usize,
    at: IpAddr,
    outer: VtepKey,
    inner: Inner,
}

/// A frame that reached its station, or everybody's at a machine.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Delivery {
    /// Who sent it.
    pub source: Station,
    /// To whom; `None`: to all.
    pub destination: Option<Station>,
    /// Where it arrived.
    pub host: usize,
    /// It went to all machines.
    pub is_flooded: bool,
}

impl World {
    /// Puts a station on a machine. It talks from then on.
    pub fn add_station(&mut self, host: usize) -> Station {
        let station = Station::try_from(self.stations.len()).expect("not that many");
        self.stations.push(Home { host, moves: 0, has_sent: false, since: self.now });
        self.queue.push(self.now, Event::Talk { station });
        station
    }

    /// A station goes to another machine. It says something soon, or at its next turn.
    pub fn move_station(&mut self, station: Station, host: usize) {
        if self.rng.random_bool(0.5) {
            // A frame that is under way while it moves.
            self.send_frame(station, None);
        }
        self.trace(|| format!("station {station} moves to node{host}"));
        let home = &mut self.stations[station as usize];
        *home = Home { host, moves: home.moves + 1, has_sent: false, since: self.now };
        for node in &mut self.nodes {
            if let Some(kernel) = &mut node.kernel {
                kernel.fresh.remove(&station);
            }
        }
        if self.rng.random_bool(0.7) {
            let pause = ms(self.rng.random_range(0..40));
            self.queue.push(self.now + pause, Event::Announce { station });
        }
    }

    /// Tells the converge task what gossip knows, and sees to its next deadline.
    pub(super) fn tell_shell(&mut self, index: usize) {
        let now = self.now;
        let node = &mut self.nodes[index];
        if let (Some(shell), Some(membership)) = (&mut node.shell, &node.membership) {
            shell.handle_peers(now, membership.peers());
            self.schedule_round(index);
        }
    }

    pub(super) fn schedule_round(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some(shell) = &node.shell else { return };
        let wanted = shell.deadline().max(self.now);
        let Some(at) = node.waiting.next_run(node.cpu, self.start, wanted) else { return };
        if node.round_at.is_none_or(|other| at < other) {
            node.round_at = Some(at);
            self.queue.push(at, Event::Round { node: index, life: node.life });
        }
    }

    pub(super) fn round(&mut self, index: usize, life: u32) {
        let now = self.now;
        let node = &mut self.nodes[index];
        if node.life != life || node.round_at != Some(now) {
            return;
        }
        node.round_at = None;
        if node.waiting.next_run(node.cpu, self.start, now) != Some(now) {
            return self.schedule_round(index);
        }
        let (Some(shell), Some(kernel)) = (&mut node.shell, &mut node.kernel) else { return };
        if shell.deadline() <= now {
            let rounds = shell.rounds;
            let asked = shell.run(now, kernel, &mut self.rng);
            let is_over = shell.rounds != rounds;
            let to: Vec<IpAddr> = asked.iter().filter_map(|index| shell.vtep(*index)).collect();
            for vtep in to {
                self.send(index, vtep, &Inner::Question);
            }
            self.check_cleared(index);
            self.check_stations(index);
            if is_over {
                self.check_maps(index);
            }
        }
        self.schedule_round(index);
    }

    /// What a daemon does last.
    pub(super) fn tear_down(&mut self, index: usize, life: u32, keep: bool) {
        let now = self.now;
        let node = &mut self.nodes[index];
        if node.life != life || node.membership.is_none() {
            return;
        }
        if let Some(kernel) = &mut node.kernel
            && !keep
        {
            for op in plan_teardown(kernel.state()).ops {
                kernel.apply(now, &op).expect("invariant: a clean stop was refused");
            }
        }
        self.trace(|| format!("node{index} is gone"));
        self.nodes[index].clear();
    }

    /// Sends a frame through the tunnel.
    fn send(&mut self, from: usize, vtep: IpAddr, inner: &Inner) {
        let node = &self.nodes[from];
        let source = node.kernel.as_ref().and_then(HostKernel::source);
        // The programs name the address in the settings. A host that has lost it sends nothing.
        if source != Some(node.vtep) {
            return;
        }
        let outer = VtepKey::new(node.vtep);
        let Some(&to) = self.at_ip.get(&vtep) else { return };
        for delay in self.network.frame_arrivals(from, to, &mut self.rng).into_iter().flatten() {
            let frame = Tunnelled { to, at: vtep, outer, inner: *inner };
            self.queue.push(self.now + delay, Event::Frame(Box::new(frame)));
        }
    }

    pub(super) fn frame(&mut self, frame: &Tunnelled) {
        let Tunnelled { to, at, outer, inner } = *frame;
        if self.at_ip.get(&at) != Some(&to) {
            return;
        }
        let Some(kernel) = &mut self.nodes[to].kernel else { return };
        let known = match inner {
            Inner::Frame { source, .. } => kernel.knows(source),
            Inner::Question | Inner::Answer(_) => None,
        };
        match kernel.ingress(self.now, &outer, &inner) {
            Entrance::Dropped => {}
            Entrance::Answer(data_plane) => {
                self.send(to, address(&outer.vtep), &Inner::Answer(data_plane));
            }
            Entrance::Accepted => {
                if let Inner::Frame { source, destination, origin, is_flooded } = inner {
                    self.arrived(to, source, origin, known);
                    self.deliver(Delivery { source, destination, host: to, is_flooded });
                }
            }
        }
    }

    /// Notes that a machine which knew where a station was has learnt where it is now. One that did
    /// not know cannot tell a late frame of the former home from a move; one that has only just
    /// heard of a move away does not believe in a return yet.
    fn arrived(&mut self, to: usize, source: Station, origin: Origin, known: Option<Origin>) {
        let home = self.stations[source as usize];
        let knew = known.is_some_and(|known| known.moves + 1 == home.moves);
        if home.moves == origin.moves
            && knew
            && let Some(kernel) = &mut self.nodes[to].kernel
            && kernel.knows(source).is_some_and(|known| known.moves == home.moves)
        {
            kernel.fresh.insert(source);
        }
    }

    fn deliver(&mut self, frame: Delivery) {
        let home = frame.destination.map(|station| self.stations[station as usize].host);
        if home.is_none_or(|home| home == frame.host) {
            self.frames.delivered += 1;
        } else if !frame.is_flooded {
            self.frames.strayed += 1;
        }
        if let Some(deliveries) = &mut self.deliveries {
            deliveries.push(frame);
        }
    }

    pub(super) fn talk(&mut self, station: Station) {
        let next = ms(self.rng.random_range(TALK_EVERY.0..TALK_EVERY.1));
        self.queue.push(self.now + next, Event::Talk { station });
        let count = u32::try_from(self.stations.len()).expect("not that many");
        let other = self.rng.random_range(0..count);
        let to_all = other == station || self.rng.random_bool(0.2);
        self.send_frame(station, (!to_all).then_some(other));
    }

    /// A station sends a frame, if its machine has power.
    pub(super) fn send_frame(&mut self, source: Station, destination: Option<Station>) {
        let now = self.now;
        let home = &mut self.stations[source as usize];
        let host = home.host;
        let vtep = self.nodes[host].vtep;
        let Some(kernel) = &mut self.nodes[host].kernel else { return };
        let Some(data_plane) = kernel.data_plane() else { return };
        home.has_sent = true;
        let origin = Origin { data_plane, host, vtep, moves: home.moves };
        self.frames.sent += 1;
        if let Some(destination) = destination {
            let other = self.stations[destination as usize];
            if other.host == host && other.has_sent {
                return self.deliver(Delivery {
                    source,
                    destination: Some(destination),
                    host,
                    is_flooded: false,
                });
            }
        }
        let inner = |is_flooded| Inner::Frame { source, destination, origin, is_flooded };
        match kernel.egress(now, source, destination) {
            Way::Nowhere => {}
            Way::Known { vtep, origin: learnt, .. } => {
                if let (Some(destination), Some(learnt)) = (destination, learnt) {
                    self.check_use(host, destination, learnt);
                }
                self.send(host, address(&vtep), &inner(false));
            }
            Way::Flood(vteps) => {
                if let Some(destination) = destination {
                    let learnt = kernel.macs.get(&destination).copied();
                    self.trace(|| {
                        format!(
                            "node{host} floods a frame from {source} to {destination}: {learnt:?}"
                        )
                    });
                }
                for vtep in vteps {
                    self.send(host, address(&vtep), &inner(true));
                }
            }
        }
    }
}

/// What became of the frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frames {
    /// Sent by stations.
    pub sent: u64,
    /// Let in where they belong.
    pub delivered: u64,
    /// Let in somewhere else.
    pub strayed: u64,
}

/// After a goodbye a daemon waits so long before it cleans up, as in the daemon.
pub(super) const LEAVE_WITHIN: Duration = ms(400);

fn address(vtep: &VtepBytes) -> IpAddr {
    let [a, b, c, d, ..] = *vtep;
    IpAddr::from([a, b, c, d])
}
