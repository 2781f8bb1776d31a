//! Leaving.

use marengo_core::{control::Control, members::MemberState, membership::MembershipEvent};

use crate::{each_seed, measured, ms, secs, world::World};

fn has_left_everywhere(world: &World, node: usize) -> bool {
    let others = world.running().into_iter().filter(|&other| other != node);
    others.into_iter().all(|other| world.state(other, node) == Some(MemberState::Left))
}

#[test]
fn a_node_that_leaves_has_left_everywhere_within_500_ms() {
    each_seed(10, |seed| {
        let mut world = World::cluster(seed, 20);
        let since = world.now;

        world.leave(3);

        let left = |world: &World| has_left_everywhere(world, 3);
        let took = world.run_until("it has left everywhere", ms(500), left);
        measured("a departure is known to 20", took);
        world.run_for(secs(10));
        let wrong = world.reports(since).find(|logged| {
            !matches!(&logged.event, MembershipEvent::MemberLeft(who) if who.addr == world.addr(3))
        });
        assert!(wrong.is_none(), "{wrong:?}\n{world}");
        assert_eq!(world.reports(since).count(), 19, "told once each\n{world}");
    });
}

#[test]
fn a_departure_survives_the_loss_of_every_fifth_datagram() {
    let mut late = 0;
    for seed in 1..=20 {
        let mut world = World::cluster(seed, 10);
        world.network.loss = 0.2;

        world.leave(3);
        world.run_for(ms(500));

        let others = (0..10).filter(|&node| node != 3);
        late += others
            .filter(|&node| world.state(node, 3) != Some(MemberState::Left))
            .inspect(|node| assert_eq!(world.state(*node, 3), Some(MemberState::Alive), "{world}"))
            .count();
        let gone = |world: &World| world.running().iter().all(|&n| n == 3 || world.live(n) == 8);
        world.run_until("whoever was not told finds out", secs(6), gone);
    }
    // Both copies lost, and whatever the others passed on: one in hundreds.
    assert!(late <= 1, "{late} of 180 were not told");
}

#[test]
fn a_node_that_goes_without_a_word_is_not_left_within_500_ms() {
    each_seed(2, |seed| {
        let mut world = World::cluster(seed, 5);
        world.nodes[3].config.without = Control::TellLeave.into();
        world.crash(3);
        world.start(3, &[0]);
        world.run_until("it is back", secs(3), |world| world.is_back(3));

        world.leave(3);
        world.run_for(ms(500));

        assert!(!has_left_everywhere(&world, 3), "the mechanism is off, and yet:\n{world}");
    });
}

#[test]
fn a_node_that_left_and_starts_again_is_alive_again() {
    each_seed(5, |seed| {
        let mut world = World::cluster(seed, 5);
        world.leave(3);
        world.run_for(secs(30));
        world.crash(3);
        assert!(world.running().iter().all(|&n| world.state(n, 3) == Some(MemberState::Left)));

        world.start(3, &[0]);

        world.run_until("it is back everywhere", secs(3), |world| world.is_back(3));
    });
}

#[test]
fn nobody_sends_to_a_node_that_left_and_to_one_that_failed_they_do() {
    each_seed(1, |seed| {
        let mut world = World::cluster(seed, 5);
        world.leave(3);
        world.crash(4);
        world.run_for(secs(10));
        world.crash(3);

        let before = [3, 4].map(|node| world.nodes[node].sent_to);
        world.run_for(secs(600));

        assert_eq!(world.nodes[3].sent_to, before[0], "{world}");
        // Three nodes ask once a second.
        assert!(world.nodes[4].sent_to - before[1] >= 3 * 600 - 10);
    });
}
