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

use marengo_common::{FLOOD_CHUNK, FloodChunk, PeerIndex};

use crate::identity::{DataPlaneId, Identity, NodeName};

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
    /// Positions of the flood list. A peer that goes leaves its position to the last one, so that
    /// its departure changes two entries at most.
    flood: Vec<PeerIndex>,
    generation: u32,
    max_peers: usize,
    /// Peers that found no free slot.
    without_slot: Vec<NodeName>,
    /// Indexes that are free, but that an address in the kernel may still lead to: what came from
    /// there would be learnt behind the new holder.
    avoided: BTreeSet<PeerIndex>,
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

    /// Takes over what an earlier run left in the kernel: slots, and the highest generation given
    /// out. They have no names until [`Slots::assign`] sees their peers.
    ///
    /// A run that ended half-way may have left two slots at one address: the later one stays.
    pub fn adopt(&mut self, slots: impl IntoIterator<Item = (PeerIndex, Slot)>, generation: u32) {
        self.generation = self.generation.max(generation);
        for (index, slot) in slots {
            self.generation = self.generation.max(slot.generation);
            let rival = self.by_index.iter().find(|(_, other)| other.vtep == slot.vtep);
            if let Some((rival, other)) = rival.map(|(index, other)| (*index, other)) {
                if other.generation > slot.generation {
                    continue;
                }
                self.free(rival);
            }
            if index != 0 && self.by_index.len() < self.max_peers {
                self.by_index.insert(index, slot);
                self.flood.push(index);
            }
        }
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
            self.free(index);
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
        (0..)
            .zip(self.flood.chunks(FLOOD_CHUNK))
            .map(|(position, peers)| {
                let mut chunk = FloodChunk { peers: [0; FLOOD_CHUNK] };
                chunk.peers[..peers.len()].copy_from_slice(peers);
                (position, chunk)
            })
            .collect()
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
        self.flood.push(index);
    }

    /// A generation that no slot ever had.
    fn next_generation(&mut self) -> u32 {
        // Four thousand million arrivals until this wraps. A stamp of the first ones could then be
        // taken for a later one's only if it were still in the LRU table.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.generation
    }

    fn free(&mut self, index: PeerIndex) {
        self.by_index.remove(&index);
        self.left.retain(|_, slot| *slot != index);
        if let Some(position) = self.flood.iter().position(|other| *other == index) {
            self.flood.swap_remove(position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Generation;

    #[test]
    fn a_freed_slot_comes_back_with_a_generation_that_nobody_had() {
        let mut slots = Slots::new(8);
        assign(&mut slots, &[("a", 1, 1), ("b", 2, 2)]);
        let first = slot_of(&slots, "b");

        assign(&mut slots, &[("a", 1, 1), ("d", 4, 4)]);
        assert_ne!(slot_of(&slots, "d").0, first.0, "not in the round that freed it");
        assign(&mut slots, &[("a", 1, 1), ("d", 4, 4), ("e", 5, 5)]);
        assert_ne!(slot_of(&slots, "e").0, first.0, "nor before the kernel has settled");
        slots.settled();
        assign(&mut slots, &[("a", 1, 1), ("c", 3, 3), ("d", 4, 4), ("e", 5, 5)]);

        let second = slot_of(&slots, "c");
        assert_eq!(first.0, second.0, "the index is used again");
        assert!(second.1 > first.1, "the generation is not");
    }

    #[test]
    fn a_data_plane_takes_its_slot_along_to_another_address_and_name() {
        let mut slots = Slots::new(8);
        assign(&mut slots, &[("a", 1, 1), ("b", 2, 2)]);
        let before = slot_of(&slots, "b");

        assign(&mut slots, &[("a", 1, 1), ("b", 9, 2)]);
        assert_eq!(slot_of(&slots, "b"), before);

        assign(&mut slots, &[("a", 1, 1), ("renamed", 9, 2)]);
        assert_eq!(slot_of(&slots, "renamed"), before);
    }

    #[test]
    fn two_that_exchange_their_addresses_keep_their_slots_and_nothing_that_was_learnt() {
        let mut slots = Slots::new(8);
        assign(&mut slots, &[("a", 1, 1), ("b", 2, 2)]);
        let before = (slot_of(&slots, "a"), slot_of(&slots, "b"));

        assign(&mut slots, &[("a", 2, 1), ("b", 1, 2)]);

        let after = (slot_of(&slots, "a"), slot_of(&slots, "b"));
        assert_eq!((after.0.0, after.1.0), (before.0.0, before.1.0));
        // Before this was heard, each sent from the other's address for a moment.
        assert!(after.0.1 > before.1.1 && after.1.1 > before.1.1, "{after:?}");
    }

    #[test]
    fn what_came_from_an_address_that_a_slot_left_is_void_when_another_peer_has_it() {
        let mut slots = Slots::new(8);
        assign(&mut slots, &[("a", 1, 1), ("b", 2, 2)]);
        let before = slot_of(&slots, "a");
        assign(&mut slots, &[("a", 3, 1), ("b", 2, 2)]);
        assert_eq!(slot_of(&slots, "a"), before, "nobody else has it yet");

        assign(&mut slots, &[("a", 3, 1), ("b", 2, 2), ("new", 1, 9)]);

        let after = slot_of(&slots, "a");
        assert!(after.0 == before.0 && after.1 > before.1, "{after:?}");
        assign(&mut slots, &[("a", 3, 1), ("b", 2, 2), ("new", 1, 9)]);
        assert_eq!(slot_of(&slots, "a"), after, "once");
    }

    #[test]
    fn a_peer_that_takes_the_address_that_another_leaves_voids_that_one_alone() {
        let mut slots = Slots::new(8);
        assign(&mut slots, &[("a", 1, 1), ("b", 2, 2)]);
        let before = (slot_of(&slots, "a"), slot_of(&slots, "b"));

        assign(&mut slots, &[("a", 2, 1), ("b", 3, 2)]);

        assert_eq!(slot_of(&slots, "a"), before.0);
        assert!(slot_of(&slots, "b").1 > before.1.1);
    }

    #[test]
    fn a_peer_that_returns_to_its_address_keeps_all() {
        let mut slots = Slots::new(8);
        assign(&mut slots, &[("a", 1, 1)]);
        let before = slot_of(&slots, "a");

        for address in [2, 1, 2, 1] {
            assign(&mut slots, &[("a", address, 1)]);
        }

        assert_eq!(slot_of(&slots, "a"), before);
    }

    #[test]
    fn another_data_plane_at_the_same_address_under_the_same_name_has_another_generation() {
        let mut slots = Slots::new(8);
        assign(&mut slots, &[("a", 1, 1)]);
        let before = slot_of(&slots, "a");

        assign(&mut slots, &[("a", 1, 7)]);

        assert_ne!(slot_of(&slots, "a").0, before.0);
        assert!(slot_of(&slots, "a").1 > before.1);
    }

    #[test]
    fn an_adopted_slot_goes_to_its_own_data_plane_alone() {
        let mut slots = Slots::new(8);
        slots.adopt([(3, adopted(1, Some(11), 40)), (4, adopted(2, Some(12), 41))], 50);

        slots.assign(&table(&[("a", 1, 11)]), &BTreeSet::from([4]));
        assert_eq!(slot_of(&slots, "a"), (3, 40));
        assert_eq!(slots.iter().count(), 2, "the other one is kept");

        slots.assign(&table(&[("a", 1, 11), ("new", 2, 99)]), &BTreeSet::from([4]));
        assert_eq!(slots.iter().count(), 2, "its address belongs to somebody else by now");
        assert_eq!(slot_of(&slots, "new").1, 51);
    }

    #[test]
    fn an_adopted_slot_that_does_not_say_whose_it_is_goes_to_the_peer_at_its_address() {
        let mut slots = Slots::new(8);
        slots.adopt([(3, adopted(1, None, 40))], 40);

        assign(&mut slots, &[("a", 1, 11)]);

        assert_eq!(slot_of(&slots, "a"), (3, 40));
        assert_eq!(slots.get(3).unwrap().data_plane, DataPlaneId::new(11));
    }

    #[test]
    fn of_two_adopted_slots_at_one_address_the_later_one_stays() {
        for order in [[0, 1], [1, 0]] {
            let found = [(3, adopted(1, Some(11), 40)), (4, adopted(1, Some(12), 41))];
            let mut slots = Slots::new(8);

            slots.adopt(order.map(|position: usize| found[position].clone()), 50);

            let left: Vec<_> = slots.iter().map(|(index, _)| index).collect();
            assert_eq!(left, [4]);
            assert_eq!(slots.flood_chunks()[&0].peers[..2], [4, 0]);
        }
    }

    #[test]
    fn a_slot_that_is_kept_stays_as_it_is() {
        let mut slots = Slots::new(8);
        assign(&mut slots, &[("a", 1, 1), ("b", 2, 2)]);
        let before = slot_of(&slots, "b");

        slots.assign(&table(&[("a", 1, 1)]), &BTreeSet::from([before.0]));

        assert_eq!(slot_of(&slots, "b"), before);
    }

    #[test]
    fn peers_beyond_the_limit_are_named() {
        let mut slots = Slots::new(1);

        assign(&mut slots, &[("a", 1, 1), ("b", 2, 2)]);

        assert_eq!(slots.without_slot(), [NodeName::new("b").unwrap()]);
    }

    #[test]
    fn the_flood_list_has_no_gaps() {
        let mut slots = Slots::new(64);
        let all: Vec<(String, u8)> = (1..=40).map(|n| (format!("n{n}"), n)).collect();
        let all: Vec<(&str, u8, u64)> =
            all.iter().map(|(name, n)| (name.as_str(), *n, u64::from(*n))).collect();
        assign(&mut slots, &all);
        assert_eq!(slots.flood_chunks().len(), 3);

        assign(&mut slots, &all[..20]);

        let chunks = slots.flood_chunks();
        let listed: Vec<_> = chunks.values().flat_map(|chunk| chunk.peers).collect();
        assert_eq!(listed.iter().position(|peer| *peer == 0), Some(20));
        assert_eq!(listed.iter().filter(|peer| **peer != 0).count(), 20);
    }

    fn assign(slots: &mut Slots, peers: &[(&str, u8, u64)]) {
        slots.assign(&table(peers), &BTreeSet::new());
    }

    fn slot_of(slots: &Slots, name: &str) -> (PeerIndex, u32) {
        let name = NodeName::new(name).unwrap();
        let (index, slot) = slots.iter().find(|(_, slot)| slot.name == Some(name)).unwrap();
        (index, slot.generation)
    }

    fn adopted(n: u8, data_plane: Option<u64>, generation: u32) -> Slot {
        let data_plane = data_plane.and_then(DataPlaneId::new);
        Slot { data_plane, name: None, vtep: vtep(n), generation }
    }

    fn vtep(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn table(peers: &[(&str, u8, u64)]) -> Vec<Identity> {
        peers
            .iter()
            .map(|(name, n, data_plane)| {
                let addr = (vtep(*n), 7946).into();
                let name = NodeName::new(name).unwrap();
                let data_plane = DataPlaneId::new(*data_plane).unwrap();
                let listen = (vtep(*n), 8080).into();
                Identity::new(name, addr, vtep(*n), listen, Generation(1), data_plane).unwrap()
            })
            .collect()
    }
}
