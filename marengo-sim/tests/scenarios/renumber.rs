//! Nodes that get another address while they run, or between two runs.

use std::{net::IpAddr, time::Duration};

use marengo_core::{
    control::Control,
    identity::DataPlaneId,
    members::Standing,
    membership::{ConflictKind, MembershipEvent},
};
use marengo_sim::{ms, secs, world::World};
use rand::RngExt as _;

use crate::{count_over_ten_seeds, each_seed, measured};

fn new_ip(node: usize) -> IpAddr {
    IpAddr::from([172, 16, 0, u8::try_from(node + 1).expect("few nodes")])
}

fn data_plane(world: &World, node: usize) -> DataPlaneId {
    world.membership(node).identity().data_plane
}

/// How `observer` has the data plane of `node` in its table: at which address and standing.
fn entry(world: &World, observer: usize, id: DataPlaneId) -> Option<(IpAddr, Standing)> {
    let peers = world.membership(observer).peers();
    let mut found = peers.iter().filter(|peer| peer.identity.data_plane == id);
    let entry = found.next().map(|peer| (peer.identity.vtep, peer.standing));
    assert!(found.next().is_none(), "twice\n{world}");
    entry
}

/// Lets time pass, during which nobody is ever without any of `ids`. Returns when all had
/// all of them at their present addresses.
fn watch(world: &mut World, ids: &[(usize, DataPlaneId)], time: Duration) -> Duration {
    let began = world.now;
    let mut settled = None;
    while world.now - began < time {
        world.run_for(ms(1));
        let mut all = true;
        for observer in world.running() {
            for &(node, id) in ids.iter().filter(|(node, _)| *node != observer) {
                let entry = entry(world, observer, id);
                let (at, _) = entry
                    .unwrap_or_else(|| panic!("node {observer} is without node {node}\n{world}"));
                all &= at == world.nodes[node].vtep;
            }
        }
        if all {
            settled.get_or_insert(world.now - began);
        } else {
            settled = None;
        }
    }
    settled.unwrap_or_else(|| panic!("not everybody knows where all are\n{world}"))
}

fn all(world: &World) -> Vec<(usize, DataPlaneId)> {
    world.running().into_iter().map(|node| (node, data_plane(world, node))).collect()
}

fn no_reports_but_changes(world: &World, since: std::time::Instant) {
    for report in world.reports(since) {
        assert!(matches!(report.event, MembershipEvent::MemberChanged { .. }), "{world}");
    }
    let is_conflict = |event: &MembershipEvent| matches!(event, MembershipEvent::Conflict(_));
    assert!(!world.log.iter().any(|l| l.at >= since && is_conflict(&l.event)), "{world}");
}

#[test]
fn five_nodes_renumbered_one_after_the_other_are_never_absent_nor_doubled() {
    each_seed(4, |seed| {
        let mut world = World::cluster(seed, 5);
        let (since, ids) = (world.now, all(&world));
        for node in 0..5 {
            world.renumber(node, new_ip(node));

            let took = watch(&mut world, &ids, secs(5));

            measured("a new address is known to five", took);
            assert!(took < ms(100), "{took:?}");
        }
        watch(&mut world, &ids, secs(20));
        no_reports_but_changes(&world, since);
        let changes = world.reports(since).count();
        assert_eq!(changes, 5 * 4, "each change once with each of the others\n{world}");
    });
}

#[test]
fn renumbered_on_a_network_that_loses_a_fifth_they_are_never_absent_nor_doubled() {
    each_seed(6, |seed| {
        let mut world = World::cluster(seed, 5);
        world.network.loss = 0.2;
        world.network.reordering = 0.1;
        let ids = all(&world);
        for node in 0..5 {
            world.renumber(node, new_ip(node));
            let took = watch(&mut world, &ids, secs(6));
            measured("a new address is known to five at 20 % loss", took);
        }
        assert_eq!(all(&world), ids);
    });
}

#[test]
fn two_renumbered_at_once_are_never_absent_nor_doubled() {
    each_seed(6, |seed| {
        let mut world = World::cluster(seed, 5);
        world.network.loss = if seed % 2 == 0 { 0.2 } else { 0.0 };
        let ids = all(&world);
        let first = world.rng.random_range(0..5);
        let second = (first + 2) % 5;
        world.renumber(first, new_ip(first));
        world.renumber(second, new_ip(second));

        let took = watch(&mut world, &ids, secs(8));

        measured("two new addresses at once are known to five", took);
    });
}

#[test]
fn who_hears_of_the_new_address_from_others_alone_replaces_the_old_one_too() {
    each_seed(4, |seed| {
        let mut world = World::cluster(seed, 5);
        let (since, ids) = (world.now, all(&world));
        world.network.cut(&[1], &[4]);
        world.renumber(1, new_ip(1));

        let took = watch(&mut world, &ids, secs(2));

        measured("a new address is known through others", took);
        world.network.heal();
        watch(&mut world, &ids, secs(10));
        no_reports_but_changes(&world, since);
    });
}

#[test]
fn a_daemon_that_comes_back_to_its_data_plane_at_another_address_replaces_what_it_was() {
    for (down_for, clock_error) in [(300, 0), (300, -3_600_000), (20_000, 0), (20_000, -3_600_000)]
    {
        each_seed(4, |seed| {
            let mut world = World::cluster(seed, 5);
            let id = data_plane(&world, 3);
            world.kill(3);
            world.run_for(ms(down_for));
            world.nodes[3].clock_error = clock_error;
            world.renumber(3, new_ip(3));
            world.start(3, &[0]);

            let within = if clock_error == 0 { secs(2) } else { secs(10) };
            world.run_until("all have it at its new address", within, |world| {
                [0, 1, 2, 4].iter().all(|&observer| {
                    entry(world, observer, id) == Some((new_ip(3), Standing::Alive))
                })
            });

            let since = world.now;
            watch(&mut world, &[(3, id)], secs(20));
            assert_eq!(world.reports(since).count(), 0, "{world}");
            for node in 0..5 {
                assert_eq!(world.membership(node).conflicts().count(), 0, "{world}");
                let members = world.membership(node).members();
                assert_eq!(members.len(), 5, "the old address is not shown\n{world}");
            }
        });
    }
}

#[test]
fn back_and_forth_between_two_addresses_is_followed() {
    each_seed(5, |seed| {
        let mut world = World::cluster(seed, 3);
        world.network.loss = 0.1;
        let ids = all(&world);
        let old = world.nodes[1].vtep;
        for _ in 0..5 {
            world.renumber(1, new_ip(1));
            watch(&mut world, &ids, secs(3));
            world.renumber(1, old);
            watch(&mut world, &ids, secs(3));
        }
        watch(&mut world, &ids, secs(30));
    });
}

#[test]
fn nobody_asks_an_address_that_a_node_had() {
    each_seed(3, |seed| {
        let mut world = World::cluster(seed, 5);
        world.renumber(2, new_ip(2));
        let old = IpAddr::from([10, 0, 0, 3]);
        // A machine that is nobody is what is at the old address.
        world.nodes.push(marengo_sim::node::Node::new(5));
        world.nodes[5].addr.set_ip(old);
        world.run_for(secs(30));
        world.add_alias(5, &format!("{old}:7946"));

        world.run_for(secs(300));

        assert_eq!(world.nodes[5].sent_to, 0);
    });
}

/// A machine is copied while it runs, and the copy gets another address. Returns how often anybody
/// changed its mind after the first minute.
fn copied(seed: u64) -> usize {
    let mut world = World::cluster(seed, 5);
    let id = data_plane(&world, 2);
    world.nodes.push(marengo_sim::node::Node::new(5));
    world.nodes[5].data_plane = Some(id);
    world.nodes[5].name = world.membership(2).identity().name.to_string();
    world.start(5, &[0]);
    world.run_for(secs(60));
    let since = world.now;

    for observer in [0, 1, 3, 4, 2, 5] {
        let kinds: Vec<_> = world.membership(observer).conflicts().map(|c| c.kind).collect();
        assert_eq!(kinds, [ConflictKind::DataPlane], "node{observer}\n{world}");
    }
    for observer in [0, 1, 3, 4] {
        let copy = world.nodes[5].vtep;
        assert_eq!(entry(&world, observer, id), Some((copy, Standing::Alive)), "{world}");
    }
    world.run_for(secs(300));
    world.reports(since).count()
}

#[test]
fn a_machine_copied_while_it_runs_is_a_conflict_and_nobody_wavers() {
    each_seed(5, |seed| assert_eq!(copied(seed), 0));
}

#[test]
fn without_superseding_a_renumbered_node_is_doubled_or_absent() {
    let wrong = count_over_ten_seeds(|seed| {
        let mut world = World::new(seed, 5);
        for node in 0..5 {
            world.nodes[node].config.without = Control::Supersede.into();
            world.start(node, &[0]);
        }
        world.run_until("all know all", secs(5), World::all_know_all);
        world.run_for(secs(2));
        let since = world.now;
        world.renumber(1, new_ip(1));
        world.run_for(secs(20));
        world.reports(since).filter(|l| matches!(l.event, MembershipEvent::MemberDown(_))).count()
    });
    assert_ne!(wrong, 0, "the mechanism is off, and yet nobody took the old address for failed");
}
