//! Which slot of the data plane stands for which peer.
//!
//! One slot a data plane. A slot keeps its index and generation for as long as its peer's data plane
//! stays, whatever becomes of the peer's name and address; a slot that is given to another data
//! plane gets a generation that no slot had before, so that what was learnt of the former holder is
//! void. So does a slot whose former address somebody else has: of what came from there, nobody
//! knows whose it was. A host that was restarted is another data plane: its stations are not where they were.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use marengo_common::{FloodChunk, PeerIndex};

use crate::{
    flood_list::{FloodList, FloodPlace},
    identity::{DataPlaneId, Identity, NodeName},
};

/// A peer's place in the data plane.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Slot {
    /// Whose it is; `None` for one found in the kernel that does not say.
    pub data_plane: Option<DataPlaneId>,
    /// Its name; `None` for one found in the kernel whose peer has not been heard of yet.
    pub name: Option<NodeName>,
    /// Where frames for it go.
    pub vtep: IpAddr,
    /// The stamp that makes a MAC entry valid.
    pub generation: u32,
}

/// All slots, and the flood list over them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Slots {
    by_index: BTreeMap<PeerIndex, Slot>,
    flood: FloodList,
    generation: u32,
    max_peers: usize,
    /// Peers that found no free slot.
    without_slot: Vec<NodeName>,
    /// Indexes that are free, but that an address in the kernel may still lead to: what came from
    /// there would be learnt behind the new holder.
    avoided: BTreeSet<PeerIndex>,
    /// Slots that were freed since the kernel settled last, and their places on the flood list.
    freed: BTreeMap<PeerIndex, (Slot, FloodPlace)>,
    /// Addresses that slots had before, and which one did. Whoever has such an address next may
    /// have sent from it before this node heard that the slot's holder is elsewhere.
    left: BTreeMap<IpAddr, PeerIndex>,
}

/// The most addresses that slots had before which are remembered.
const MAX_LEFT: usize = 4096;

impl Slots {
    /// No slots; room for `max_peers`.
    pub fn new(max_peers: u32) -> Self {
        Self { max_peers: max_peers as usize, ..Self::default() }
    }

    /// Takes over what an earlier run left in the kernel: slots, the flood list by place, and the
    /// highest generation given out. They have no names until [`Slots::assign`] sees their peers.
    ///
    /// A run that ended half-way may have left two slots at one address: the later one stays.
    pub fn adopt(
        &mut self,
        slots: impl IntoIterator<Item = (PeerIndex, Slot)>,
        flood: &[PeerIndex],
        generation: u32,
    ) {
        self.generation = self.generation.max(generation);
        for (index, slot) in slots {
            self.generation = self.generation.max(slot.generation);
            let rival = self.by_index.iter().find(|(_, other)| other.vtep == slot.vtep);
            if let Some((rival, other)) = rival.map(|(index, other)| (*index, other)) {
                if other.generation > slot.generation {
                    continue;
                }
                self.by_index.remove(&rival);
            }
            if index != 0 && self.by_index.len() < self.max_peers {
                self.by_index.insert(index, slot);
            }
        }
        self.flood = FloodList::adopt(flood, self.max_peers, self.by_index.keys().copied());
    }

    /// Makes the slots those of `peers`, and leaves the slots in `keep` as they are, but for one
    /// whose address a peer has by now.
    ///
    /// A peer keeps its slot as long as its data plane is among `peers`, and takes it along to
    /// another address. A slot that does not say whose it is goes to the peer at its address. Takes
    /// O(n log n).
    pub fn assign<'a>(
        &mut self,
        peers: impl IntoIterator<Item = &'a Identity>,
        keep: &BTreeSet<PeerIndex>,
    ) {
        let mut by_data_plane = BTreeMap::new();
        let mut by_address = BTreeMap::new();
        for (index, slot) in &self.by_index {
            match slot.data_plane {
                Some(data_plane) => by_data_plane.insert(data_plane, *index),
                None => by_address.insert(slot.vtep, *index),
            };
        }
        let mut taken = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        let mut new = Vec::new();
        for peer in peers {
            addresses.insert(peer.vtep);
            let found = by_data_plane.get(&peer.data_plane).or_else(|| by_address.get(&peer.vtep));
            match found {
                Some(index) if taken.insert(*index) => {
                    self.place(*index, peer);
                }
                _ => new.push(peer),
            }
        }
        let gone: BTreeSet<PeerIndex> = self
            .by_index
            .iter()
            .filter(|(index, slot)| {
                let kept = keep.contains(*index) && !addresses.contains(&slot.vtep);
                !(taken.contains(*index) || kept)
            })
            .map(|(index, _)| *index)
            .collect();
        for index in gone {
            let place = self.flood.remove(index);
            if let Some(freed) = self.by_index.remove(&index).zip(place) {
                self.freed.insert(index, freed);
            }
            self.avoided.insert(index);
        }
        self.without_slot.clear();
        let mut free = 1;
        for peer in new {
            while self.by_index.contains_key(&free) || self.avoided.contains(&free) {
                free += 1;
            }
            self.add(free, peer);
        }
        self.void_what_successors_sent();
    }

    /// Gives none of these to anybody until the kernel has settled: addresses in it lead there.
    pub fn avoid(&mut self, indexes: impl IntoIterator<Item = PeerIndex>) {
        self.avoided.extend(indexes);
    }

    /// The kernel holds these slots and no others: freed indexes may be given out again.
    pub fn settled(&mut self) {
        self.avoided.clear();
        self.freed.clear();
        self.flood.settled();
        let by_index = &self.by_index;
        self.left.retain(|_, index| by_index.contains_key(index));
    }

    /// The kernel does not have a freed slot any more.
    pub fn taken_out(&mut self, index: PeerIndex) {
        self.freed.remove(&index);
    }

    /// The slots that were freed and that the kernel may still have.
    pub fn freed(&self) -> Vec<PeerIndex> {
        self.freed.keys().copied().collect()
    }

    /// Gives a freed slot that the kernel still has back to its holder, to be judged anew; unless
    /// that one, or somebody else at its address, has another slot by now.
    pub fn take_back(&mut self, index: PeerIndex) {
        let Some((slot, place)) = self.freed.remove(&index) else { return };
        let is_rival = |other: &Slot| {
            other.vtep == slot.vtep
                || (other.data_plane.is_some() && other.data_plane == slot.data_plane)
        };
        let has_room = self.by_index.len() < self.max_peers;
        if has_room && !self.by_index.values().any(is_rival) {
            self.by_index.insert(index, slot);
            self.flood.put_back(index, place, self.max_peers);
        }
    }

    /// The slots by index.
    pub fn iter(&self) -> impl Iterator<Item = (PeerIndex, &Slot)> {
        self.by_index.iter().map(|(index, slot)| (*index, slot))
    }

    /// The slot of an index.
    pub fn get(&self, index: PeerIndex) -> Option<&Slot> {
        self.by_index.get(&index)
    }

    /// The highest generation that was ever given out.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Peers that the data plane has no room for.
    pub fn without_slot(&self) -> &[NodeName] {
        &self.without_slot
    }

    /// The flood list as the map holds it.
    pub fn flood_chunks(&self) -> BTreeMap<u32, FloodChunk> {
        self.flood.chunks()
    }

    /// Gives a slot to its peer.
    fn place(&mut self, index: PeerIndex, peer: &Identity) {
        if let Some(slot) = self.by_index.get_mut(&index) {
            slot.data_plane = Some(peer.data_plane);
            slot.name = Some(peer.name);
            if slot.vtep != peer.vtep {
                self.left.insert(slot.vtep, index);
                slot.vtep = peer.vtep;
            }
        }
    }

    /// Where another slot has an address by now that a slot had before, what its holder has sent
    /// from there so far may have been learnt behind the former one, and is void.
    fn void_what_successors_sent(&mut self) {
        if self.left.is_empty() {
            return;
        }
        let taken: BTreeMap<IpAddr, PeerIndex> =
            self.by_index.iter().map(|(index, slot)| (slot.vtep, *index)).collect();
        let (over, left) = std::mem::take(&mut self.left)
            .into_iter()
            .partition(|(address, _)| taken.contains_key(address));
        self.left = left;
        while self.left.len() > MAX_LEFT {
            self.left.pop_first();
        }
        let over: BTreeMap<IpAddr, PeerIndex> = over;
        for (address, former) in over {
            if taken.get(&address) != Some(&former) {
                let generation = self.next_generation();
                if let Some(slot) = self.by_index.get_mut(&former) {
                    slot.generation = generation;
                }
            }
        }
    }

    fn add(&mut self, index: PeerIndex, peer: &Identity) {
        if self.by_index.len() >= self.max_peers {
            self.without_slot.push(peer.name);
            return;
        }
        let generation = self.next_generation();
        let slot = Slot {
            data_plane: Some(peer.data_plane),
            name: Some(peer.name),
            vtep: peer.vtep,
            generation,
        };
        self.by_index.insert(index, slot);
        self.flood.add(index, self.max_peers);
    }

    /// A generation that no slot ever had.
    fn next_generation(&mut self) -> u32 {
        // Four thousand million arrivals until this wraps. A stamp of the first ones could then be
        // taken for a later one's only if it were still in the LRU table.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.generation
    }
}

#[cfg(test)]
mod tests;
