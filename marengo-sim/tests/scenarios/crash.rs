//! Failures, and what comes back after them.

use marengo_core::{control::Control, membership::MembershipEvent};
use rand::RngExt as _;

use crate::{count_over_ten_seeds, each_seed, measured, ms, secs, world::World};

/// Crashes one node of `nodes`, once for each of `seeds`; it must be down everywhere within 6 s, and
/// nothing else happens.
fn crash_is_noticed(nodes: usize, seeds: u64) {
    each_seed(seeds, |seed| {
        let mut world = World::cluster(seed, nodes);
        let victim = world.rng.random_range(0..nodes);
        let (since, addr) = (world.now, world.addr(victim));

        world.crash(victim);
        world.run_for(secs(20));

        let reports: Vec<_> = world.reports(since).collect();
        assert_eq!(reports.len(), nodes - 1, "one report each\n{world}");
        for report in &reports {
            let MembershipEvent::MemberDown(down) = &report.event else { panic!("{world}") };
            assert_eq!(down.addr, addr, "a third party changed state\n{world}");
            assert!(report.at - since <= secs(6), "{:?}\n{world}", report.at - since);
        }
        let last = reports.iter().map(|report| report.at).max().expect("a report");
        measured(&format!("a crash is known to all of {nodes}"), last - since);
    });
}

#[test]
fn a_crashed_node_of_three_is_down_everywhere_within_6_s() {
    crash_is_noticed(3, 20);
}

#[test]
fn a_crashed_node_of_five_is_down_everywhere_within_6_s() {
    crash_is_noticed(5, 20);
}

#[test]
fn a_crashed_node_of_fifty_is_down_everywhere_within_6_s() {
    crash_is_noticed(50, 10);
}

/// Crashes node 2 for `down_for`, starts it again at the same address, and returns when it is
/// back with everybody.
fn restart(seed: u64, nodes: usize, down_for: u64, seeds: &[usize]) {
    let mut world = World::cluster(seed, nodes);
    world.crash(2);
    world.run_for(ms(down_for));

    world.start(2, seeds);

    let took = world.run_until("it is back everywhere", secs(3), |world| world.is_back(2));
    measured(&format!("back of {nodes} after {down_for} ms, seeds {seeds:?}"), took);
    let since = world.now;
    world.run_for(secs(15));
    assert_eq!(world.reports(since).count(), 0, "{world}");
}

#[test]
fn a_node_restarted_before_anybody_noticed_is_back_within_3_s() {
    each_seed(10, |seed| restart(seed, 5, 300, &[0]));
}

#[test]
fn a_node_restarted_without_a_seed_before_anybody_noticed_is_back_within_3_s() {
    each_seed(10, |seed| restart(seed, 5, 300, &[]));
}

#[test]
fn a_node_restarted_while_it_is_suspected_is_back_within_3_s() {
    each_seed(10, |seed| restart(seed, 5, 2500, &[]));
}

#[test]
fn a_node_restarted_after_it_was_declared_down_is_back_within_3_s() {
    each_seed(10, |seed| restart(seed, 5, 20_000, &[0]));
}

#[test]
fn a_node_restarted_without_a_seed_after_it_was_declared_down_is_back_within_3_s() {
    each_seed(10, |seed| restart(seed, 5, 20_000, &[]));
}

#[test]
fn of_two_nodes_the_restarted_one_is_back_within_3_s_without_a_seed() {
    each_seed(10, |seed| {
        let mut world = World::cluster(seed, 2);
        world.crash(0);
        world.run_for(secs(60));

        world.start(0, &[]);

        world.run_until("both are back", secs(3), |world| world.is_back(0));
    });
}

#[test]
fn a_restarted_node_that_stays_silent_is_rarely_back_within_3_s() {
    let back = count_over_ten_seeds(|seed| {
        let mut world = World::cluster(seed, 5);
        world.nodes[2].config.without = Control::AnnounceRestart.into();
        // Until exchanges of the membership are rare.
        world.run_for(secs(90));
        world.crash(2);
        world.run_for(ms(300));

        world.start(2, &[]);
        world.run_for(secs(3));

        usize::from(world.is_back(2))
    });
    // Somebody may choose it for an exchange of the membership just then.
    assert!(back <= 5, "the mechanism is off, and yet it was back {back} times");
}

#[test]
fn a_node_whose_clock_was_set_back_a_day_is_back_within_3_s() {
    for (down_for, seeds) in [(300, &[0][..]), (300, &[]), (20_000, &[0]), (20_000, &[])] {
        each_seed(5, |seed| {
            let mut world = World::cluster(seed, 5);
            world.crash(2);
            world.run_for(ms(down_for));
            world.nodes[2].clock_error = -86_400_000;

            world.start(2, seeds);

            world.run_until("it is back everywhere", secs(3), |world| world.is_back(2));
        });
    }
}

#[test]
fn a_later_start_that_a_single_member_remembers_keeps_nobody_out() {
    each_seed(10, |seed| {
        let mut world = World::cluster(seed, 30);
        world.leave(2);
        world.run_for(secs(20));
        world.crash(2);
        // All but node 5 forget it.
        for node in (0..30).filter(|node| ![2, 5].contains(node)) {
            world.crash(node);
            world.start(node, &[5]);
        }
        world.run_for(secs(60));
        world.nodes[2].clock_error = -86_400_000;

        world.start(2, &[0]);

        let back = world.run_until("it is back everywhere", secs(8), |world| world.is_back(2));
        measured("back although one remembers a later start", back);
    });
}

#[test]
fn losing_one_datagram_in_twenty_for_ten_minutes_takes_nobody_down() {
    each_seed(1, |seed| {
        let mut world = World::cluster(seed, 20);
        world.network.loss = 0.05;
        let since = world.now;

        world.run_for(secs(600));

        assert_eq!(world.reports(since).count(), 0, "{world}");
    });
}
