//! Clusters that somebody set up wrongly.

use std::time::Instant;

use marengo_core::membership::{ConflictKind, MembershipEvent};

use crate::{each_seed, secs, world::World};

fn conflicts(world: &World, node: usize) -> Vec<ConflictKind> {
    world.membership(node).conflicts().map(|conflict| conflict.kind).collect()
}

fn conflict_events(world: &World, node: usize, since: Instant) -> usize {
    let of_node = world.log.iter().filter(|logged| logged.node == node && logged.at >= since);
    of_node.filter(|logged| matches!(logged.event, MembershipEvent::Conflict(_))).count()
}

#[test]
fn two_nodes_with_one_name_are_reported_on_both_once_and_stay() {
    each_seed(3, |seed| {
        let mut world = World::new(seed, 4);
        world.nodes[2].name = "node1".to_owned();
        let since = world.now;
        for node in 0..4 {
            world.start(node, &[0]);
        }
        world.run_until("all know all", secs(5), World::all_know_all);
        let settled = world.now;

        world.run_for(secs(300));

        for node in [1, 2] {
            assert_eq!(conflicts(&world, node), [ConflictKind::Name]);
            assert_eq!(conflict_events(&world, node, since), 1, "{world}");
        }
        for node in [0, 3] {
            assert_eq!(conflicts(&world, node), []);
        }
        assert_eq!(world.reports(settled).count(), 0, "{world}");
        assert!(world.all_know_all());
    });
}

#[test]
fn two_nodes_with_one_vtep_are_reported_and_only_the_older_is_a_peer() {
    each_seed(3, |seed| {
        let mut world = World::new(seed, 4);
        world.nodes[2].vtep = world.nodes[1].vtep;
        let since = world.now;
        for node in 0..4 {
            world.start(node, &[0]);
            world.run_for(secs(1));
        }
        world.run_for(secs(10));
        let settled = world.now;

        world.run_for(secs(300));

        let older = world.addr(1);
        for node in 0..4 {
            assert_eq!(conflicts(&world, node), [ConflictKind::Vtep], "node{node}\n{world}");
            assert_eq!(conflict_events(&world, node, since), 1, "{world}");
        }
        for node in [0, 3] {
            let peers = world.membership(node).peers();
            assert_eq!(peers.len(), 2);
            assert!(peers.get(older).is_some());
        }
        for node in [1, 2] {
            assert_eq!(world.membership(node).peers().len(), 2, "each other is no peer");
        }
        assert_eq!(world.reports(settled).count(), 0, "{world}");
    });
}

#[test]
fn a_name_conflict_is_over_when_one_of_the_two_leaves() {
    each_seed(1, |seed| {
        let mut world = World::new(seed, 2);
        world.nodes[1].name = "node0".to_owned();
        world.start(0, &[]);
        world.start(1, &[0]);
        world.run_for(secs(2));
        assert_eq!(conflicts(&world, 0), [ConflictKind::Name]);

        world.leave(1);
        world.run_for(secs(1));

        assert_eq!(conflicts(&world, 0), []);
        let last = world.log.iter().rfind(|logged| logged.node == 0).map(|logged| &logged.event);
        assert!(
            world.log.iter().any(|l| matches!(l.event, MembershipEvent::ConflictResolved(_))),
            "{last:?}"
        );
    });
}
