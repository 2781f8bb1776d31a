//! The flood list: which peer has which place in it.
//!
//! The kernel holds it in chunks that are written one after the other, and frames are flooded by it
//! meanwhile. So a peer never changes its place: what is written for one peer takes nothing from
//! another. Whoever goes leaves a place without a peer, which the programs skip and the next one who
//! comes gets.

use std::collections::{BTreeMap, BTreeSet};

use marengo_common::{FLOOD_CHUNK, FloodChunk, PeerIndex};

/// A place in the list.
pub type FloodPlace = usize;

/// Who is flooded to, by place. Zero: nobody.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FloodList {
    places: Vec<PeerIndex>,
    /// Places that were left since the kernel settled last. Who has left one may come back.
    left: BTreeSet<FloodPlace>,
}

impl FloodList {
    /// The list of these peers as the kernel has it: `places` in its order, but for who is no peer,
    /// what is there twice, and places from `limit` on. Peers without a place get one.
    pub fn adopt(
        places: &[PeerIndex],
        limit: usize,
        peers: impl IntoIterator<Item = PeerIndex>,
    ) -> Self {
        let mut missing: BTreeSet<PeerIndex> = peers.into_iter().collect();
        let keep = |index: &PeerIndex| if missing.remove(index) { *index } else { 0 };
        let places = places.iter().take(limit).map(keep).collect();
        let mut list = Self { places, left: BTreeSet::new() };
        for index in missing {
            list.add(index, limit);
        }
        list
    }

    /// Gives a peer a place: one that nobody left lately if there is one below `limit`.
    pub fn add(&mut self, index: PeerIndex, limit: usize) {
        let mut free = (0..).zip(&self.places).filter(|(_, peer)| **peer == 0);
        let place = free.find(|(place, _)| !self.left.contains(place)).map(|(place, _)| place);
        let any = || self.places.iter().position(|peer| *peer == 0);
        let is_full = self.places.len() >= limit;
        let place = place.or_else(|| if is_full { any() } else { None });
        self.put(index, place.unwrap_or(self.places.len()));
    }

    /// Takes a peer off the list. Returns its place.
    pub fn remove(&mut self, index: PeerIndex) -> Option<FloodPlace> {
        let place = self.places.iter().position(|peer| *peer == index)?;
        self.places[place] = 0;
        self.left.insert(place);
        Some(place)
    }

    /// Gives a peer its place back, or another one if somebody has it.
    pub fn put_back(&mut self, index: PeerIndex, place: FloodPlace, limit: usize) {
        match self.places.get(place) {
            Some(0) => self.put(index, place),
            _ => self.add(index, limit),
        }
    }

    /// The kernel has this list: whoever has left a place does not come back to it.
    pub fn settled(&mut self) {
        self.left.clear();
        self.places.truncate(self.length());
    }

    /// The list as the map holds it: chunks without a gap, the last one of them with a peer.
    pub fn chunks(&self) -> BTreeMap<u32, FloodChunk> {
        (0..)
            .zip(self.places[..self.length()].chunks(FLOOD_CHUNK))
            .map(|(position, peers)| {
                let mut chunk = FloodChunk { peers: [0; FLOOD_CHUNK] };
                chunk.peers[..peers.len()].copy_from_slice(peers);
                (position, chunk)
            })
            .collect()
    }

    /// Places up to the last peer's.
    fn length(&self) -> usize {
        self.places.iter().rposition(|peer| *peer != 0).map_or(0, |last| last + 1)
    }

    fn put(&mut self, index: PeerIndex, place: FloodPlace) {
        if place >= self.places.len() {
            self.places.resize(place + 1, 0);
        }
        self.places[place] = index;
        self.left.remove(&place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 64;

    fn listed(list: &FloodList) -> Vec<PeerIndex> {
        list.chunks().values().flat_map(|chunk| chunk.peers).collect()
    }

    fn list_of(peers: u32) -> FloodList {
        let mut list = FloodList::default();
        (1..=peers).for_each(|index| list.add(index, LIMIT));
        list
    }

    #[test]
    fn who_stays_keeps_its_place_when_others_go_and_come() {
        let mut list = list_of(40);
        let before = listed(&list);

        for index in [1, 17, 39, 40] {
            list.remove(index);
        }
        list.settled();
        list.add(50, LIMIT);

        let after = listed(&list);
        let stay = |index: &&u32| **index != 0 && ![1, 17, 39, 40].contains(*index);
        for index in before.iter().filter(stay) {
            let place = |list: &[u32]| list.iter().position(|peer| peer == index);
            assert_eq!(place(&before), place(&after), "{index}");
        }
        assert_eq!((after[0], after[16], after.len()), (50, 0, 48));
    }

    #[test]
    fn chunks_end_with_the_last_peer_and_have_no_gap_before() {
        let mut list = list_of(40);

        for index in (1..=39).filter(|index| *index != 2) {
            list.remove(index);
        }
        assert_eq!(list.chunks().len(), 3, "nobody is in the second");
        list.remove(40);

        assert_eq!(list.chunks().len(), 1);
        list.remove(2);
        assert_eq!(list.chunks().len(), 0);
    }

    #[test]
    fn a_place_that_was_left_lately_is_given_to_another_only_if_there_is_no_other_one() {
        let mut list = list_of(3);
        let place = list.remove(2).unwrap();

        list.add(4, LIMIT);
        list.put_back(2, place, LIMIT);
        assert_eq!(listed(&list)[..5], [1, 2, 3, 4, 0]);

        list.remove(2);
        list.add(5, 4);
        list.put_back(2, place, 5);
        assert_eq!(listed(&list)[..6], [1, 5, 3, 4, 2, 0]);
    }

    #[test]
    fn what_the_kernel_has_is_taken_over_in_its_order_without_what_is_wrong_in_it() {
        let list = FloodList::adopt(&[3, 0, 9, 3, 1, 2], 5, [1, 2, 3]);

        assert_eq!(listed(&list)[..6], [3, 2, 0, 0, 1, 0]);
    }
}
