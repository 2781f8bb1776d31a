//! Daemons that go and leave their data plane for the next start.

use marengo_core::{
    control::Control,
    members::{MemberState, Standing},
    membership::MembershipEvent,
};
use marengo_sim::{ms, secs, world::World};

use crate::{each_seed, measured};

/// How node 0 has the data plane of node 2 in its table.
fn standing(world: &World, observer: usize) -> Option<Standing> {
    let addr = world.addr(2);
    world.membership(observer).peers().get(addr).map(|peer| peer.standing)
}

/// Node 2 of five goes for `down_for` seconds and comes back. Returns the reports meanwhile.
fn goes_and_comes(seed: u64, loss: f64, down_for: u64, without: Option<Control>) -> usize {
    let mut world = World::new(seed, 5);
    world.nodes[2].config.without = without.into_iter().collect();
    for node in 0..5 {
        world.start(node, &[0]);
    }
    world.run_until("all know all", secs(5), World::all_know_all);
    world.run_for(secs(2));
    world.network.loss = loss;
    let since = world.now;
    world.leave_for_restart(2);
    world.run_for(secs(1));
    if without.is_none() {
        for observer in [0, 1, 3, 4] {
            assert_eq!(world.state(observer, 2), Some(MemberState::Restarting), "{world}");
            assert_eq!(standing(&world, observer), Some(Standing::Restarting), "{world}");
        }
    }
    world.crash(2);
    world.run_for(secs(down_for));
    let reports = world.reports(since).count();

    world.start(2, &[]);

    let took = world.run_until("it is back everywhere", secs(4), |world| world.is_back(2));
    measured(&format!("back after a restart of {down_for} s at loss {loss}"), took);
    world.run_for(secs(90));
    for observer in [0, 1, 3, 4] {
        assert_eq!(world.state(observer, 2), Some(MemberState::Alive), "{world}");
    }
    assert!(world.all_know_all(), "{world}");
    reports
}

#[test]
fn who_said_that_it_is_back_soon_is_doubted_and_not_declared_down() {
    for loss in [0.0, 0.2] {
        each_seed(3, |seed| assert_eq!(goes_and_comes(seed, loss, 50, None), 0));
    }
}

#[test]
fn who_did_not_say_so_is_declared_down_meanwhile() {
    each_seed(1, |seed| {
        assert_eq!(goes_and_comes(seed, 0.0, 50, Some(Control::TellRestart)), 4);
    });
}

#[test]
fn who_is_not_back_within_a_minute_is_lost() {
    each_seed(3, |seed| {
        let mut world = World::cluster(seed, 5);
        let since = world.now;
        world.leave_for_restart(2);
        world.run_for(ms(500));
        world.crash(2);

        world.run_for(secs(59));
        assert_eq!(world.reports(since).count(), 0, "{world}");
        world.run_for(secs(3));

        let reports: Vec<_> = world.reports(since).collect();
        assert_eq!(reports.len(), 4, "{world}");
        assert!(reports.iter().all(|l| matches!(l.event, MembershipEvent::MemberDown(_))));
        for observer in [0, 1, 3, 4] {
            assert_eq!(standing(&world, observer), Some(Standing::Lost), "{world}");
        }
    });
}
