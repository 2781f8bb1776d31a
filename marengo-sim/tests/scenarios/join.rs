//! Joining.

use marengo_core::{control::Control, identity::ClusterName, membership::MembershipEvent};

use crate::{count_over_ten_seeds, each_seed, measured, secs, world::World};

#[test]
fn a_hundred_nodes_join_through_one_seed_and_know_each_other_within_15_s() {
    each_seed(1, |seed| {
        let mut world = World::new(seed, 100);
        for node in 0..100 {
            world.start(node, &[0]);
        }

        let took = world.run_until("100 nodes know each other", secs(15), World::all_know_all);

        measured("100 nodes that start at once know each other", took);
        let since = world.now;
        world.run_for(secs(10));
        assert_eq!(world.reports(since).count(), 0, "{world}");
    });
}

#[test]
fn a_newcomer_and_a_cluster_of_fifty_know_each_other_within_2_s() {
    each_seed(3, |seed| {
        let mut world = World::cluster(seed, 50);
        world.nodes.push(marengo_sim::node::Node::new(50));
        let since = world.now;

        world.start(50, &[7]);

        let took = world.run_until("the newcomer is known", secs(2), |w| w.is_back(50));
        measured("one node joins fifty", took);
        assert!(
            world
                .reports(since)
                .all(|logged| { matches!(logged.event, MembershipEvent::MemberUp(_)) })
        );
    });
}

/// A node joins sixty, of which one loses all that is told for two seconds. Returns whether that one
/// knows the newcomer seven seconds after its start.
fn is_known_to_who_missed_all(seed: u64, without: Option<Control>) -> bool {
    let mut world = World::cluster(seed, 60);
    // Until exchanges are seldom.
    world.run_for(secs(90));
    world.nodes.push(marengo_sim::node::Node::new(60));
    world.nodes[60].config.without = without.into_iter().collect();
    let others: Vec<usize> = (0..=60).filter(|node| *node != 20).collect();
    world.network.cut_one_way(&others, &[20]);

    world.start(60, &[7]);
    world.run_for(secs(2));
    world.network.heal();
    world.run_for(secs(5));

    world.state(20, 60).is_some()
}

#[test]
fn who_missed_all_that_was_told_of_a_newcomer_hears_of_it_from_the_newcomer() {
    each_seed(5, |seed| assert!(is_known_to_who_missed_all(seed, None)));

    let without = Some(Control::TellBeginning);
    let missed = |seed| usize::from(!is_known_to_who_missed_all(seed, without));
    assert!(count_over_ten_seeds(missed) > 0);
}

#[test]
fn a_seed_may_be_named_by_any_of_its_addresses() {
    each_seed(5, |seed| {
        let mut world = World::new(seed, 2);
        let alias = world.add_alias(0, "192.0.2.1:9999");
        world.start(0, &[]);

        world.start_with(1, vec![alias]);

        world.run_until("joined by another address", secs(1), World::all_know_all);
    });
}

#[test]
fn a_node_that_is_its_own_seed_is_content_with_itself() {
    each_seed(1, |seed| {
        let mut world = World::new(seed, 1);
        let alias = world.add_alias(0, "192.0.2.1:9999");
        let own = world.addr(0);

        world.start_with(0, vec![own, alias]);
        world.run_for(secs(60));

        // Its own address is not asked at all, the other one once.
        assert_eq!(world.traffic.datagrams, 2, "a question and an answer");
        assert!(world.log.is_empty(), "{world}");
    });
}

#[test]
fn a_joiner_whose_seed_starts_five_minutes_later_joins_within_35_s() {
    each_seed(10, |seed| {
        let mut world = World::new(seed, 2);
        world.start(1, &[0]);
        world.run_for(secs(300));

        world.start(0, &[]);

        let took = world.run_until("the late seed is found", secs(35), World::all_know_all);
        measured("a seed that starts 5 minutes late is found", took);
    });
}

#[test]
fn without_rejoin_a_late_seed_is_never_found() {
    each_seed(2, |seed| {
        let mut world = World::new(seed, 2);
        world.nodes[1].config.without = Control::Rejoin.into();
        world.start(1, &[0]);
        world.run_for(secs(300));

        world.start(0, &[]);
        world.run_for(secs(60));

        assert!(!world.all_know_all());
    });
}

#[test]
fn a_seed_of_another_cluster_is_refused_and_says_why_once() {
    each_seed(1, |seed| {
        let mut world = World::new(seed, 2);
        world.nodes[0].config.cluster = ClusterName::new("other").expect("a name");
        world.start(0, &[]);

        world.start(1, &[0]);
        world.run_for(secs(120));

        let refusals: Vec<_> = world.log.iter().map(|logged| &logged.event).collect();
        let [MembershipEvent::SeedRefused { reason, .. }] = &refusals[..] else {
            panic!("{world}");
        };
        assert_eq!(
            reason,
            "10.0.0.1:7946 speaks protocol 2 (version 0.1.0) in cluster \"other\"; this node \
             speaks protocol 2 in cluster \"sim\""
        );
        assert!(world.membership(0).peers().is_empty());
        assert!(world.membership(1).peers().is_empty());
    });
}

#[test]
fn nodes_join_over_a_network_that_loses_a_fifth_doubles_and_reorders() {
    each_seed(5, |seed| {
        let mut world = World::new(seed, 10);
        world.network.loss = 0.2;
        world.network.duplication = 0.1;
        world.network.reordering = 0.2;
        for node in 0..10 {
            world.start(node, &[0]);
        }

        let took = world.run_until("10 nodes know each other", secs(30), World::all_know_all);

        measured("10 nodes join at 20 % loss", took);
    });
}
