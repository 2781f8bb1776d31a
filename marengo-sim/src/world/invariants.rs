//! What must hold at any time, whatever happens.

use std::{collections::BTreeSet, time::Duration};

use marengo_common::{PeerEntry, VtepKey};
use marengo_core::identity::DataPlaneId;

use super::World;
use crate::host_kernel::{HostKernel, Origin, Station};

/// After this the trouble on a path is past, as far as the second witness is concerned: its silence
/// and one question more, twice.
const PATH_AT_REST: Duration = Duration::from_secs(4);

impl World {
    /// After a round: the maps among themselves, with what was desired, and with what was learnt.
    pub(super) fn check_maps(&self, index: usize) {
        let node = &self.nodes[index];
        let (Some(shell), Some(kernel)) = (&node.shell, &node.kernel) else { return };
        let Some(want) = shell.settled().filter(|_| !kernel.was_meddled_with()) else { return };
        let state = kernel.state();
        assert_eq!(state.peers, want.peers, "invariant: slots of node{index}\n{self}");
        assert_eq!(state.vteps, want.vteps, "invariant: addresses of node{index}\n{self}");
        assert_eq!(state.flood, want.flood, "invariant: flood list of node{index}\n{self}");

        let listed: Vec<u32> = state.flood.values().flat_map(|chunk| chunk.peers).collect();
        let listed: Vec<u32> = listed.into_iter().filter(|peer| *peer != 0).collect();
        let has_gap = (0..).zip(state.flood.keys()).any(|(place, key)| place != *key);
        assert!(!has_gap, "invariant: a gap in the flood list of node{index}\n{self}");
        let flooded: BTreeSet<u32> = listed.iter().copied().collect();
        assert_eq!(flooded.len(), listed.len(), "invariant: node{index} floods twice\n{self}");
        let slots: BTreeSet<u32> = state.peers.keys().copied().collect();
        assert_eq!(flooded, slots, "invariant: whom node{index} floods to\n{self}");
        assert_eq!(state.vteps.len(), state.peers.len(), "invariant: node{index}\n{self}");

        let ids: BTreeSet<u64> = state.peers.values().map(|peer| peer.data_plane).collect();
        assert_eq!(ids.len(), state.peers.len(), "invariant: a data plane has two slots\n{self}");
        let highest = state.peers.values().map(|peer| peer.generation).max().unwrap_or(0);
        let noted = state.settings.map_or(0, |settings| settings.generation);
        assert!(highest <= noted, "invariant: generation {highest} is not noted\n{self}");
    }

    /// After each step of a round: a valid entry points to the data plane that the station's frame
    /// came from, unless this node has not heard yet that somebody else has the address that the frame
    /// came from. One that points to a data plane that is no more is void when that is noticed.
    pub(super) fn check_stations(&self, index: usize) {
        let Some(kernel) = &self.nodes[index].kernel else { return };
        let state = kernel.state();
        for (station, learnt) in &kernel.macs {
            let Some(slot) = kernel.slot(&learnt.entry) else { continue };
            let Some(origin) = learnt.origin else { continue };
            let truly = origin.data_plane.get();
            let sender = state.vteps.get(&VtepKey::new(origin.vtep));
            let sender = sender.and_then(|index| state.peers.get(index));
            let is_known = sender.is_some_and(|sender| sender.data_plane == truly);
            let is_gone = DataPlaneId::new(slot.data_plane)
                .is_none_or(|data_plane| self.machine_of(data_plane).is_none());
            assert!(
                slot.data_plane == truly || !is_known || is_gone,
                "invariant: node{index} has station {station} behind {:016x} ({}, {:?}), but its \
                 frame came from {truly:016x} of node{} at {}, which has a slot\n{self}",
                slot.data_plane,
                slot.address(4),
                learnt.entry,
                origin.host,
                origin.vtep
            );
        }
    }

    /// A node that has heard a station from where it is now does not send to where it was.
    pub(super) fn check_use(&self, index: usize, station: Station, learnt: Origin) {
        let Some(kernel) = &self.nodes[index].kernel else { return };
        let home = self.stations[station as usize];
        assert!(
            !kernel.fresh.contains(&station) || learnt.moves == home.moves,
            "invariant: node{index} sends to node{} for station {station}, which it has heard \
             from node{} since\n{self}",
            learnt.host,
            home.host
        );
    }

    /// A path that works is never taken out because gossip alone says so.
    pub(super) fn check_cleared(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let events = node.shell.as_mut().map(|shell| std::mem::take(&mut shell.events));
        let cleared = node.kernel.as_mut().map(|kernel| std::mem::take(&mut kernel.cleared));
        for event in events.into_iter().flatten() {
            self.trace(|| format!("node{index} witness: {event:?}"));
        }
        for (slot, let_in) in cleared.into_iter().flatten() {
            self.trace(|| format!("node{index} takes out {slot:?}"));
            // Nothing is heard from whom the own kernel does not let in.
            let is_heard = let_in >= PATH_AT_REST;
            if let Some(working) = self.works(index, &slot).filter(|_| is_heard) {
                panic!(
                    "invariant: node{index} takes out node{working} ({}), which did not leave and \
                     whose data plane answers\n{self}",
                    slot.address(4)
                );
            }
        }
    }

    /// The machine behind a slot, if there is no reason to take the slot out.
    fn works(&self, index: usize, slot: &PeerEntry) -> Option<usize> {
        let peers = self.nodes[index].membership.as_ref()?.peers();
        let (data_plane, vtep) = (DataPlaneId::new(slot.data_plane)?, slot.address(4));
        // The slot of a moment ago is in the table of now, or somebody else has its address.
        let kernel = self.nodes[index].kernel.as_ref()?;
        let is_elsewhere = kernel.state().peers.values().any(|other| other.vtep == slot.vtep);
        let is_replaced = is_elsewhere || peers.vouched().any(|peer| peer.vtep == vtep);
        if peers.has_left(data_plane) || is_replaced {
            return None;
        }
        let other = self.machine_of(data_plane)?;
        let answers = self.nodes[other].vtep == vtep
            && self.sends_from_its_address(other)
            && self.sends_from_its_address(index)
            && self.path_is_good(index, other)
            && self.path_is_good(other, index)
            && self.lets_in(other, index)
            && self.let_in_before(index);
        answers.then_some(other)
    }

    /// The machine whose maps these are.
    fn machine_of(&self, data_plane: DataPlaneId) -> Option<usize> {
        self.nodes.iter().position(|node| {
            node.kernel.as_ref().and_then(HostKernel::data_plane) == Some(data_plane)
        })
    }

    fn path_is_good(&self, from: usize, to: usize) -> bool {
        let at_rest = |since| self.now - since >= PATH_AT_REST;
        self.network.reaches(from, to)
            && self.network.loss <= 0.1
            && self.disturbed.get(&(from, to)).is_none_or(|since| at_rest(*since))
            && self.network_changed.is_none_or(at_rest)
    }

    /// Whether a machine's device has been as it should be for a while.
    fn let_in_before(&self, at: usize) -> bool {
        self.nodes[at]
            .kernel
            .as_ref()
            .is_some_and(|kernel| kernel.is_whole() && self.now - kernel.changed() >= PATH_AT_REST)
    }

    /// The programs name the address in the settings: a machine that has another one by now sends
    /// nothing.
    fn sends_from_its_address(&self, at: usize) -> bool {
        let node = &self.nodes[at];
        node.kernel.as_ref().and_then(HostKernel::source) == Some(node.vtep)
    }

    /// Whether a machine lets in what another one sends, and has for a while.
    fn lets_in(&self, at: usize, from: usize) -> bool {
        let Some(kernel) = &self.nodes[at].kernel else { return false };
        kernel.lets_in_for(self.now, self.nodes[from].vtep) >= PATH_AT_REST
    }
}
