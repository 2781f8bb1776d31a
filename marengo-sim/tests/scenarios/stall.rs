//! Processes that are stopped for a while: SIGSTOP, a starved host, a suspended virtual machine.

use std::time::{Duration, Instant};

use marengo_core::{
    control::{Control, Without},
    members::MemberState,
    membership::MembershipEvent,
};

use crate::{count_over_ten_seeds, each_seed, measured, ms, secs, world::World};

/// Stops node 1 of five for `stopped` seconds. Returns how many others were then taken for failed.
fn stop(seed: u64, stopped: u64) -> usize {
    let mut world = World::cluster(seed, 5);
    let since = world.now;
    world.stop(1);
    world.run_for(secs(stopped));

    world.resume(1);
    let took = world.run_until("all is well again", secs(5), World::all_know_all);

    measured(&format!("well again after a stop of {stopped} s"), took);
    world.run_for(secs(20));
    assert!(world.all_know_all(), "{world}");
    downs_of_others(&world, 1, since)
}

/// Suspends the machine of node 1, whose socket then loses what comes, at a moment at which it
/// suspects node 2 wrongly. Returns how often others than node 1 were then taken for failed.
fn suspend_while_suspecting(seed: u64, forgive: bool) -> usize {
    let mut world = World::new(seed, 5);
    world.nodes[1].config.without =
        (!forgive).then_some(Control::ForgiveStalls).into_iter().collect();
    for node in 0..5 {
        world.start(node, &[0]);
    }
    world.run_until("all know all", secs(5), World::all_know_all);
    world.run_for(ms(2000 + seed * 37));
    let since = world.now;
    world.network.cut(&[2], &[0, 1, 3, 4]);
    world.run_for(ms(1500));
    world.stop(1);
    world.network.heal();
    world.run_for(secs(30));

    world.lose_inbox(1);
    world.resume(1);
    world.run_for(secs(20));

    assert!(world.all_know_all(), "{world}");
    downs_of_others(&world, 1, since)
}

fn downs_of_others(world: &World, node: usize, since: Instant) -> usize {
    let addr = world.addr(node);
    let is_other = |event: &MembershipEvent| match event {
        MembershipEvent::MemberDown(down) => down.addr != addr,
        _ => false,
    };
    world.reports(since).filter(|logged| is_other(&logged.event)).count()
}

#[test]
fn a_node_stopped_for_two_seconds_loses_nobody_and_is_not_lost() {
    each_seed(10, |seed| assert_eq!(stop(seed, 2), 0));
}

#[test]
fn a_node_stopped_for_half_a_minute_takes_nobody_for_failed() {
    each_seed(10, |seed| assert_eq!(stop(seed, 30), 0));
}

#[test]
fn a_node_suspended_while_it_suspects_another_does_not_declare_it_down_on_waking() {
    each_seed(10, |seed| assert_eq!(suspend_while_suspecting(seed, true), 0));
}

#[test]
fn without_forgiveness_a_suspended_node_declares_whom_it_suspected_down_on_waking() {
    let wrong = count_over_ten_seeds(|seed| suspend_while_suspecting(seed, false));
    assert_ne!(wrong, 0, "the mechanism is off, and yet nobody was taken for failed");
}

/// Suspends the machine of node 1 of forty while node 2 crashes, `renewed` after the others had lost
/// and found it: node 1 knows an earlier start of it. Returns for how long node 1 then takes it still
/// for alive.
fn crash_during_a_suspension(
    seed: u64,
    suspended: u64,
    renewed: bool,
    without: Without,
) -> Duration {
    let mut world = World::new(seed, 40);
    world.nodes[1].config.without = without;
    for node in 0..40 {
        world.start(node, &[0]);
    }
    world.run_until("all know all", secs(15), World::all_know_all);
    // The pause between two exchanges has grown to its longest.
    world.run_for(secs(90));
    world.stop(1);
    if renewed {
        let others: Vec<usize> = (0..40).filter(|other| *other != 2).collect();
        world.cut(&[2], &others);
        world.run_for(secs(10));
        world.heal_cuts();
        world.run_for(secs(15));
        assert_eq!(world.state(0, 2), Some(MemberState::Alive), "{world}");
    }
    world.crash(2);
    world.run_for(secs(suspended));
    world.lose_inbox(1);

    world.resume(1);

    world.run_until("node 2 is gone", secs(60), |world| world.live(1) == 38)
}

#[test]
fn a_node_that_was_suspended_soon_finds_out_who_died_meanwhile() {
    each_seed(10, |seed| {
        for suspended in [20, 60] {
            let took = crash_during_a_suspension(seed, suspended, false, Without::default());

            measured(&format!("death known after a suspension of {suspended} s"), took);
            assert!(took <= secs(6), "seed {seed}: {took:?} after {suspended} s");
        }
    });
}

#[test]
fn a_death_is_found_out_also_by_a_node_that_knows_an_earlier_start_of_the_dead() {
    each_seed(10, |seed| {
        let took = crash_during_a_suspension(seed, 20, true, Without::default());

        measured("death of a later start known after a suspension", took);
        assert!(took <= secs(6), "seed {seed}: {took:?}");
    });
}

#[test]
fn without_hearsay_a_node_that_was_suspended_probes_all_others_first() {
    let late = count_over_ten_seeds(|seed| {
        let took = crash_during_a_suspension(seed, 60, false, Control::Hearsay.into());
        usize::from(took > secs(6))
    });

    assert!(late > 0, "the mechanism is off, and yet the death was always known in time");
}
