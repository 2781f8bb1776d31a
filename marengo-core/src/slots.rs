//! Which slot of the data plane stands for which peer.
//!
//! One slot a peer. A slot keeps its index and generation for as long as its peer stays, whatever
//! becomes of the peer's address; a slot that is given to another peer gets a generation that no
//! slot had before, so that what was learnt of the former holder is void.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use marengo_common::{FLOOD_CHUNK, FloodChunk, PeerIndex};

use crate::{
    identity::{Identity, NodeName},
    members::{Peer, PeerTable},
};

/// A peer's place in the data plane.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Slot {
    /// Whose it is; `None` for one found in the kernel whose peer has not been heard of yet.
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
    /// Positions of the flood list. A peer that goes leaves its position to the last one, so that
    /// its departure changes two entries at most.
    flood: Vec<PeerIndex>,
    generation: u32,
    max_peers: usize,
    /// Peers that found no free slot.
    without_slot: Vec<NodeName>,
}

impl Slots {
    /// No slots; room for `max_peers`.
    pub fn new(max_peers: u32) -> Self {
        Self { max_peers: max_peers as usize, ..Self::default() }
    }

    /// Takes over what an earlier run left in the kernel: slots, and the highest generation given
    /// out. The slots are nobody's until [`Slots::assign`] sees a peer at their address.
    pub fn adopt(
        &mut self,
        slots: impl IntoIterator<Item = (PeerIndex, IpAddr, u32)>,
        generation: u32,
    ) {
        self.generation = self.generation.max(generation);
        for (index, vtep, generation) in slots {
            self.generation = self.generation.max(generation);
            if index != 0 && self.by_index.len() < self.max_peers {
                self.by_index.insert(index, Slot { name: None, vtep, generation });
                self.flood.push(index);
            }
        }
    }

    /// Makes the slots those of `peers`. With `keep_adopted`, slots that are nobody's yet stay.
    ///
    /// A peer keeps its slot as long as its name stays in the table, and takes it along to another
    /// address. An adopted slot goes to the peer at its address. Takes O(n log n).
    pub fn assign(&mut self, peers: &PeerTable, keep_adopted: bool) {
        let by_address: BTreeMap<(IpAddr, Option<NodeName>), PeerIndex> =
            self.by_index.iter().map(|(index, slot)| ((slot.vtep, slot.name), *index)).collect();
        let by_name: BTreeSet<(NodeName, PeerIndex)> =
            self.by_index.iter().filter_map(|(index, slot)| Some((slot.name?, *index))).collect();

        let mut taken = BTreeSet::new();
        let mut moved = Vec::new();
        for Peer { identity: peer, .. } in peers.iter() {
            let found = by_address
                .get(&(peer.vtep, Some(peer.name)))
                .or_else(|| by_address.get(&(peer.vtep, None)));
            match found {
                Some(index) if taken.insert(*index) => self.place(*index, peer),
                _ => moved.push(peer),
            }
        }
        let mut new = Vec::new();
        for peer in moved {
            let found = by_name
                .range((peer.name, 0)..=(peer.name, PeerIndex::MAX))
                .find(|(_, index)| !taken.contains(index));
            match found {
                Some((_, index)) => {
                    taken.insert(*index);
                    self.place(*index, peer);
                }
                None => new.push(peer),
            }
        }
        let gone: BTreeSet<PeerIndex> = self
            .by_index
            .iter()
            .filter(|(index, slot)| {
                !(taken.contains(*index) || keep_adopted && slot.name.is_none())
            })
            .map(|(index, _)| *index)
            .collect();
        for index in &gone {
            self.free(*index);
        }
        self.without_slot.clear();
        let mut free = 1;
        for peer in new {
            // Not one that was freed a moment ago: until the plan has forgotten the former holder's
            // address, what comes from there is learnt behind the index.
            while self.by_index.contains_key(&free) || gone.contains(&free) {
                free += 1;
            }
            self.add(free, peer);
        }
    }

    /// The slots by index.
    pub fn iter(&self) -> impl Iterator<Item = (PeerIndex, &Slot)> {
        self.by_index.iter().map(|(index, slot)| (*index, slot))
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
        (0..)
            .zip(self.flood.chunks(FLOOD_CHUNK))
            .map(|(position, peers)| {
                let mut chunk = FloodChunk { peers: [0; FLOOD_CHUNK] };
                chunk.peers[..peers.len()].copy_from_slice(peers);
                (position, chunk)
            })
            .collect()
    }

    fn place(&mut self, index: PeerIndex, peer: &Identity) {
        if let Some(slot) = self.by_index.get_mut(&index) {
            slot.name = Some(peer.name);
            slot.vtep = peer.vtep;
        }
    }

    fn add(&mut self, index: PeerIndex, peer: &Identity) {
        if self.by_index.len() >= self.max_peers {
            self.without_slot.push(peer.name);
            return;
        }
        // Four thousand million arrivals until this wraps. A stamp of the first ones could then be
        // taken for a later one's only if it were still in the LRU table.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let generation = self.generation;
        self.by_index.insert(index, Slot { name: Some(peer.name), vtep: peer.vtep, generation });
        self.flood.push(index);
    }

    fn free(&mut self, index: PeerIndex) {
        self.by_index.remove(&index);
        if let Some(position) = self.flood.iter().position(|other| *other == index) {
            self.flood.swap_remove(position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{DataPlaneId, Generation};

    #[test]
    fn a_freed_slot_comes_back_with_a_generation_that_nobody_had() {
        let mut slots = Slots::new(8);
        slots.assign(&table(&[("a", 1), ("b", 2)]), false);
        let first = slot_of(&slots, "b");

        slots.assign(&table(&[("a", 1), ("d", 4)]), false);
        assert_ne!(slot_of(&slots, "d").0, first.0, "not in the round that freed it");
        slots.assign(&table(&[("a", 1), ("c", 3), ("d", 4)]), false);

        let second = slot_of(&slots, "c");
        assert_eq!(first.0, second.0, "the index is used again");
        assert!(second.1 > first.1, "the generation is not");
    }

    #[test]
    fn a_peer_takes_its_slot_along_to_another_address() {
        let mut slots = Slots::new(8);
        slots.assign(&table(&[("a", 1), ("b", 2)]), false);
        let before = slot_of(&slots, "b");

        slots.assign(&table(&[("a", 1), ("b", 9)]), false);

        assert_eq!(slot_of(&slots, "b"), before);
    }

    #[test]
    fn another_node_at_a_dead_ones_address_gets_another_generation() {
        let mut slots = Slots::new(8);
        slots.assign(&table(&[("a", 1)]), false);
        let before = slot_of(&slots, "a");

        slots.assign(&table(&[("b", 1)]), false);

        assert_ne!(slot_of(&slots, "b").1, before.1);
    }

    #[test]
    fn an_adopted_slot_waits_for_the_peer_at_its_address() {
        let mut slots = Slots::new(8);
        slots.adopt([(3, vtep(1), 40), (4, vtep(2), 41)], 50);

        slots.assign(&table(&[("a", 1)]), true);

        assert_eq!(slot_of(&slots, "a"), (3, 40));
        assert_eq!(slots.iter().count(), 2, "nobody has answered for the other one yet");

        slots.assign(&table(&[("a", 1), ("c", 7)]), false);

        assert_eq!(slots.iter().count(), 2);
        assert_eq!(slot_of(&slots, "c").1, 51);
    }

    #[test]
    fn two_nodes_with_one_name_have_a_slot_each() {
        let mut slots = Slots::new(8);

        slots.assign(&table(&[("a", 1), ("a", 2)]), false);
        let first: Vec<_> = slots.iter().map(|(index, slot)| (index, slot.clone())).collect();
        slots.assign(&table(&[("a", 1), ("a", 2)]), false);

        assert_eq!(first.len(), 2);
        assert_eq!(first, slots.iter().map(|(i, s)| (i, s.clone())).collect::<Vec<_>>());
    }

    #[test]
    fn peers_beyond_the_limit_are_named() {
        let mut slots = Slots::new(1);

        slots.assign(&table(&[("a", 1), ("b", 2)]), false);

        assert_eq!(slots.without_slot(), [NodeName::new("b").unwrap()]);
    }

    #[test]
    fn the_flood_list_has_no_gaps() {
        let mut slots = Slots::new(64);
        let all: Vec<(String, u8)> = (1..=40).map(|n| (format!("n{n}"), n)).collect();
        let all: Vec<(&str, u8)> = all.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        slots.assign(&table(&all), false);
        assert_eq!(slots.flood_chunks().len(), 3);

        slots.assign(&table(&all[..20]), false);

        let chunks = slots.flood_chunks();
        let listed: Vec<_> = chunks.values().flat_map(|chunk| chunk.peers).collect();
        assert_eq!(listed.iter().position(|peer| *peer == 0), Some(20));
        assert_eq!(listed.iter().filter(|peer| **peer != 0).count(), 20);
    }

    fn slot_of(slots: &Slots, name: &str) -> (PeerIndex, u32) {
        let name = NodeName::new(name).unwrap();
        let (index, slot) = slots.iter().find(|(_, slot)| slot.name == Some(name)).unwrap();
        (index, slot.generation)
    }

    fn vtep(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn table(peers: &[(&str, u8)]) -> PeerTable {
        peers
            .iter()
            .map(|(name, n)| {
                let addr = (vtep(*n), 7946).into();
                let name = NodeName::new(name).unwrap();
                let listen = (vtep(*n), 8080).into();
                let data_plane = DataPlaneId::new(u64::from(*n)).unwrap();
                Identity::new(name, addr, vtep(*n), listen, Generation(1), data_plane).unwrap()
            })
            .collect()
    }
}
