//! What a cluster is to come to when it is left in peace.

use std::{collections::BTreeSet, time::Duration};

use marengo_common::VtepKey;
use marengo_core::members::Standing;

use super::{Delivery, World};
use crate::{host_kernel::Station, ms, secs};

/// A node that said that it will be back is waited for so long and then found out, as any other.
/// Whoever had one's own address before is remembered for a minute, too.
const PROMISES_END: Duration = secs(75);

/// What is missing for a full mesh.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Missing {
    /// Somebody does not have somebody.
    Peer(String),
    /// Somebody sees a conflict with who had an address before. It has so much time.
    Conflict(String, Duration),
    /// All have all, and somebody has one more that is gone. It has so much time.
    Tidiness(String, Duration),
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Peer(text) | Self::Conflict(text, _) | Self::Tidiness(text, _)) = self;
        f.write_str(text)
    }
}

impl World {
    /// What is missing for a full mesh: every daemon knows all others as they are and nobody else,
    /// without conflicts, and has exactly them in its maps. `None`: nothing.
    pub fn missing(&self) -> Option<Missing> {
        let running = self.running();
        let mut surplus = None;
        for &node in &running {
            let peers = self.membership(node).peers();
            for &other in running.iter().filter(|other| **other != node) {
                let wanted = self.membership(other).identity();
                let Some(peer) = peers.get(wanted.addr) else {
                    return Some(Missing::Peer(format!("node{node} does not know node{other}")));
                };
                if peer.identity != *wanted || peer.standing != Standing::Alive {
                    let text = format!("node{node} knows node{other} as {peer:?}");
                    return Some(Missing::Peer(text));
                }
            }
            let count = self.live(node);
            if count != running.len() - 1 {
                let text = format!("node{node} has {count} live peers");
                surplus.get_or_insert(Missing::Tidiness(text, PROMISES_END));
            }
            for conflict in self.membership(node).conflicts() {
                let text = format!("node{node} sees a conflict: {conflict}");
                surplus.get_or_insert(Missing::Conflict(text, PROMISES_END));
            }
            match self.missing_in_maps(node, &running) {
                Some(Missing::Tidiness(text, within)) => {
                    surplus.get_or_insert(Missing::Tidiness(text, within));
                }
                None => {}
                missing => return missing,
            }
        }
        surplus
    }

    fn missing_in_maps(&self, node: usize, running: &[usize]) -> Option<Missing> {
        let current = &self.nodes[node];
        let (shell, kernel) = (current.shell.as_ref()?, current.kernel.as_ref()?);
        let others = running.iter().filter(|other| **other != node);
        let wanted: BTreeSet<_> = others
            .map(|other| {
                let identity = self.membership(*other).identity();
                (VtepKey::new(identity.vtep), identity.data_plane.get())
            })
            .collect();
        let state = kernel.state();
        let found: BTreeSet<_> = state
            .peers
            .values()
            .map(|peer| (VtepKey { vtep: peer.vtep }, peer.data_plane))
            .collect();
        if let Some(missing) = wanted.difference(&found).next() {
            return Some(Missing::Peer(format!("node{node} has no slot for {missing:?}")));
        }
        let Some(settled) = shell.settled_on(&self.membership(node).peers()) else {
            return Some(Missing::Peer(format!("node{node} has not converged")));
        };
        // The kernel does not report what another hand does to a map.
        let holds = (&state.peers, &state.vteps, &state.flood);
        if holds != (&settled.peers, &settled.vteps, &settled.flood) {
            return Some(Missing::Peer(format!("node{node} has not repaired its maps")));
        }
        if kernel.source() != Some(current.vtep) {
            return Some(Missing::Peer(format!("node{node} does not send from its address")));
        }
        if !kernel.is_whole() {
            return Some(Missing::Peer(format!("node{node} lacks its device or a program")));
        }
        let slot = found.difference(&wanted).next()?;
        let text = format!("node{node} keeps a slot for {slot:?}");
        Some(Missing::Tidiness(text, PROMISES_END))
    }

    /// Every station that has power says something to all, and then each to each: all frames arrive
    /// where the stations are and nowhere else.
    pub fn check_delivery(&mut self) {
        let powered: Vec<Station> = (0u32..)
            .zip(&self.stations)
            .filter(|(_, home)| self.nodes[home.host].membership.is_some())
            .map(|(station, _)| station)
            .collect();
        for &station in &powered {
            self.send_frame(station, None);
        }
        self.run_for(ms(100));
        self.deliveries = Some(Vec::new());
        let mut wanted = BTreeSet::new();
        for &source in &powered {
            for &other in powered.iter().filter(|other| **other != source) {
                self.send_frame(source, Some(other));
                let host = self.stations[other as usize].host;
                let destination = Some(other);
                wanted.insert(Delivery { source, destination, host, is_flooded: false });
            }
        }
        self.run_for(ms(100));
        let found = self.deliveries.take().unwrap_or_default();
        let found: BTreeSet<Delivery> =
            found.into_iter().filter(|frame| frame.destination.is_some()).collect();
        for frame in &wanted {
            assert!(found.contains(frame), "goal: a frame is lost or flooded: {frame:?}\n{self}");
        }
        for frame in &found {
            let destination = frame.destination.unwrap_or_default();
            if !powered.contains(&destination) {
                continue;
            }
            let host = self.stations[destination as usize].host;
            assert!(frame.host == host, "goal: a frame went astray: {frame:?}\n{self}");
        }
    }
}
