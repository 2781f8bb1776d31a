//! Cuts in the network, and how they heal.

use marengo_core::{control::Control, members::MemberState, membership::MembershipEvent};

use crate::{count_over_ten_seeds, each_seed, measured, ms, secs, world::World};

#[test]
fn two_nodes_cut_apart_until_both_gave_up_heal_within_15_s() {
    each_seed(20, |seed| {
        let mut world = World::cluster(seed, 2);
        world.network.cut(&[0], &[1]);
        world.run_for(secs(60));
        assert_eq!(world.state(0, 1), Some(MemberState::Down), "{world}");
        assert_eq!(world.state(1, 0), Some(MemberState::Down), "{world}");

        world.network.heal();

        let took = world.run_until("the two are together", secs(15), World::all_know_all);
        measured("two nodes heal", took);
    });
}

#[test]
fn without_rejoin_two_nodes_never_heal() {
    each_seed(3, |seed| {
        let mut world = World::new(seed, 2);
        for node in 0..2 {
            world.nodes[node].config.without = Control::Rejoin.into();
        }
        world.start(0, &[]);
        world.start(1, &[0]);
        world.run_until("joined", secs(2), World::all_know_all);
        world.network.cut(&[0], &[1]);
        world.run_for(secs(60));

        world.network.heal();
        world.run_for(secs(120));

        assert!(!world.all_know_all(), "the mechanism is off, and yet:\n{world}");
    });
}

#[test]
fn two_halves_of_ten_heal_within_15_s_and_nobody_flaps_on_the_own_side() {
    each_seed(10, |seed| {
        let mut world = World::cluster(seed, 10);
        world.network.cut(&[0, 1, 2, 3, 4], &[5, 6, 7, 8, 9]);
        world.run_for(secs(60));
        assert!((0..10).all(|node| world.live(node) == 4), "{world}");
        let since = world.now;

        world.network.heal();

        let took = world.run_until("the halves are together", secs(15), World::all_know_all);
        measured("two halves of ten heal", took);
        world.run_for(secs(30));
        assert!(world.all_know_all(), "{world}");
        for logged in world.reports(since) {
            let down = matches!(logged.event, MembershipEvent::MemberDown(_));
            assert!(!down, "node{} saw {:?}\n{world}", logged.node, logged.event);
        }
    });
}

#[test]
fn two_nodes_cut_apart_until_they_forgot_each_other_heal_within_15_s() {
    each_seed(1, |seed| {
        let mut world = World::cluster(seed, 2);
        world.network.cut(&[0], &[1]);
        world.run_for(secs(25 * 3600));
        assert_eq!(world.state(0, 1), None, "forgotten after a day");

        world.network.heal();

        let took = world.run_until("the two are together", secs(15), World::all_know_all);
        measured("two nodes cut apart for 25 hours heal", took);
    });
}

#[test]
fn a_link_that_flaps_heals_within_15_s_however_often() {
    each_seed(10, |seed| {
        let mut world = World::cluster(seed, 5);
        for _ in 0..12 {
            world.network.cut(&[0, 1, 2], &[3, 4]);
            world.run_for(secs(6));
            world.network.heal();
            let took = world.run_until("the halves are together", secs(15), World::all_know_all);
            measured("halves that were cut apart again and again heal", took);
            world.run_for(secs(1));
        }
    });
}

/// Nodes that do not reach each other, one way.
type Cut<'a> = (&'a [usize], &'a [usize]);

/// A split that outlasts the memory of the dead, with a restart, and a node that is a new machine.
fn outlast_memory(seed: u64, shape: &str, cuts: &[Cut<'_>]) {
    let mut world = World::new(seed, 5);
    for node in 0..5 {
        world.nodes[node].config.remember = secs(60);
        world.start(node, &[0]);
    }
    world.run_until("all know all", secs(15), World::all_know_all);
    for (from, to) in cuts {
        world.network.cut_one_way(from, to);
    }
    world.run_for(secs(90));
    for (node, away) in [(1, secs(1)), (4, secs(30))] {
        world.crash(node);
        world.run_for(away);
        world.start(node, &[0]);
    }
    world.run_for(secs(180));

    world.network.heal();

    let took = world.run_until("the parts are together", secs(15), World::all_know_all);
    measured(&format!("{shape} for five minutes, the dead forgotten after one, heals"), took);
}

#[test]
fn splits_that_outlast_the_memory_of_the_dead_heal_within_15_s() {
    const THREE_TWO: [Cut<'_>; 2] = [(&[0, 1, 2], &[3, 4]), (&[3, 4], &[0, 1, 2])];
    const FOUR_ONE: [Cut<'_>; 2] = [(&[0, 1, 2, 3], &[4]), (&[4], &[0, 1, 2, 3])];
    const TWO_TWO_ONE: [Cut<'_>; 3] =
        [(&[0, 1], &[2, 3, 4]), (&[2, 3], &[0, 1, 4]), (&[4], &[0, 1, 2, 3])];
    const RING: [Cut<'_>; 5] =
        [(&[0], &[2, 3]), (&[1], &[3, 4]), (&[2], &[4, 0]), (&[3], &[0, 1]), (&[4], &[1, 2])];
    each_seed(10, |seed| {
        outlast_memory(seed, "3|2", &THREE_TWO);
        outlast_memory(seed, "4|1", &FOUR_ONE);
        outlast_memory(seed, "2|2|1", &TWO_TWO_ONE);
        outlast_memory(seed, "ring", &RING);
        outlast_memory(seed, "one-way", &THREE_TWO[..1]);
        outlast_memory(seed, "one-way, from the few", &THREE_TWO[1..]);
    });
}

/// Cuts one node of five off for less than suspicion lasts. Returns how many reports that caused.
fn short_cut(seed: u64, tell_suspects: bool) -> usize {
    let mut world = World::new(seed, 5);
    for node in 0..5 {
        world.nodes[node].config.without =
            (!tell_suspects).then_some(Control::TellSuspects).into_iter().collect();
        world.start(node, &[0]);
    }
    world.run_until("all know all", secs(5), World::all_know_all);
    // Until exchanges of the membership, which also tell, are rare.
    world.run_for(secs(90));
    let since = world.now;
    world.network.cut(&[4], &[0, 1, 2, 3]);
    world.run_for(ms(2500));

    world.network.heal();
    world.run_for(secs(30));

    world.reports(since).count()
}

#[test]
fn a_cut_shorter_than_suspicion_is_not_noticed() {
    each_seed(10, |seed| assert_eq!(short_cut(seed, true), 0));
}

#[test]
fn suspects_that_are_not_told_are_declared_down_after_a_short_cut() {
    let noticed = count_over_ten_seeds(|seed| short_cut(seed, false));
    assert_ne!(noticed, 0, "the mechanism is off, and yet nobody was declared down");
}

#[test]
fn two_nodes_that_do_not_reach_each_other_are_kept_by_those_that_reach_both() {
    each_seed(5, |seed| {
        let mut world = World::cluster(seed, 5);
        let since = world.now;

        world.network.cut(&[1], &[2]);
        world.run_for(secs(120));

        assert_eq!(world.reports(since).count(), 0, "{world}");
    });
}
