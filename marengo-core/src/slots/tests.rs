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
fn a_slot_that_was_not_taken_out_in_time_is_its_holders_again() {
    let mut slots = Slots::new(8);
    assign(&mut slots, &[("a", 1, 1), ("b", 2, 2), ("c", 3, 3)]);
    slots.settled();
    let (before, flood) = (slot_of(&slots, "b"), slots.flood_chunks());
    assign(&mut slots, &[("a", 1, 1), ("d", 3, 4)]);

    slots.take_back(2);
    slots.take_back(3);

    assert_eq!(slot_of(&slots, "b"), before);
    assert_eq!(slots.flood_chunks()[&0].peers[..2], flood[&0].peers[..2], "and has its place");
    assert_eq!(slots.flood_chunks()[&0].peers.iter().filter(|peer| **peer == 2).count(), 1);
    assert!(slots.get(3).is_none(), "its address has another holder");
    // What the kernel has settled without is gone.
    assign(&mut slots, &[("a", 1, 1), ("d", 3, 4)]);
    slots.settled();
    slots.take_back(2);
    assert!(slots.get(2).is_none());
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
    slots.adopt([(3, adopted(1, Some(11), 40)), (4, adopted(2, Some(12), 41))], &[4, 0, 3], 50);
    assert_eq!(slots.flood_chunks()[&0].peers[..3], [4, 0, 3], "nobody's place is another one");

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
    slots.adopt([(3, adopted(1, None, 40))], &[], 40);
    assert_eq!(slots.flood_chunks()[&0].peers[..2], [3, 0]);

    assign(&mut slots, &[("a", 1, 11)]);

    assert_eq!(slot_of(&slots, "a"), (3, 40));
    assert_eq!(slots.get(3).unwrap().data_plane, DataPlaneId::new(11));
}

#[test]
fn of_two_adopted_slots_at_one_address_the_later_one_stays() {
    for order in [[0, 1], [1, 0]] {
        let found = [(3, adopted(1, Some(11), 40)), (4, adopted(1, Some(12), 41))];
        let mut slots = Slots::new(8);

        slots.adopt(order.map(|position: usize| found[position].clone()), &[3, 4], 50);

        let left: Vec<_> = slots.iter().map(|(index, _)| index).collect();
        assert_eq!(left, [4]);
        assert_eq!(slots.flood_chunks()[&0].peers[..3], [0, 4, 0]);
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
