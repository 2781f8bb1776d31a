//! Nodes that get little of a processor, networks that lose much, and the fast profile.

use std::time::Duration;

use marengo_core::{
    control::{Control, Without},
    membership::Profile,
};
use marengo_sim::{
    cpu::Cpu,
    ms, secs,
    world::{Options, World},
};
use rand::RngExt as _;

use crate::{count_over_ten_seeds, each_seed, measured};

fn cluster(seed: u64, nodes: usize, profile: Profile, without: Without) -> World {
    let options = Options { log: false, strict: false, ..Options::default() };
    let mut world = World::with(seed, nodes, options);
    for node in 0..nodes {
        let config = world.nodes[node].config.clone().with_profile(profile);
        world.nodes[node].config = config;
        world.nodes[node].config.without = without;
        world.start(node, &[0]);
    }
    world.run_until("all know all", secs(30), World::all_know_all);
    world.run_for(secs(10));
    world.downs.clear();
    world
}

/// How often somebody else than node 3 was taken for failed, by anybody.
fn wrong(world: &World) -> usize {
    let starved = world.addr(3);
    world.downs.iter().filter(|down| down.addr != starved).count()
}

/// Node 3 of five runs for an eighth of the time, in slices, and for some seconds all that comes
/// for it is lost, as when its socket is full.
fn starved_and_deaf(seed: u64, without: Without) -> usize {
    let mut world = cluster(seed, 5, Profile::Default, without);
    world.starve(3, Cpu::Starved { period: ms(800), run: ms(100) });
    world.run_for(secs(10));
    world.network.cut_one_way(&[0, 1, 2, 4], &[3]);
    world.run_for(secs(6));
    world.network.heal();
    world.run_for(secs(30));
    assert!(world.all_know_all(), "{world}");
    wrong(&world)
}

#[test]
fn a_starved_node_takes_nobody_for_failed_although_it_hears_nobody() {
    each_seed(10, |seed| assert_eq!(starved_and_deaf(seed, Without::default()), 0));
}

#[test]
fn without_local_health_a_starved_node_takes_others_for_failed() {
    let wrong = count_over_ten_seeds(|seed| starved_and_deaf(seed, Control::LocalHealth.into()));
    assert_ne!(wrong, 0, "the mechanism is off, and yet nobody was taken for failed");
}

#[test]
fn an_hour_with_a_twentieth_lost_and_a_node_at_5_per_cent_takes_nobody_down() {
    each_seed(1, |seed| {
        for cpu in [Cpu::percent(5), Cpu::Starved { period: secs(1), run: ms(50) }] {
            let mut world = cluster(seed, 5, Profile::Default, Without::default());
            world.network.loss = 0.05;
            world.starve(3, cpu);

            world.run_for(Duration::from_hours(1));

            assert_eq!(world.downs.len(), 0, "{cpu:?}: {:?}", world.downs.first());
        }
    });
}

/// Two in five datagrams are lost for a minute, among thirty nodes.
fn lossy(seed: u64, without: Without) -> usize {
    let mut world = cluster(seed, 30, Profile::Default, without);
    world.network.loss = 0.4;
    world.run_for(secs(60));
    world.downs.len()
}

#[test]
fn who_loses_two_in_five_datagrams_takes_nobody_for_failed() {
    each_seed(1, |seed| assert_eq!(lossy(seed, Without::default()), 0));
}

#[test]
fn without_asking_again_who_loses_two_in_five_takes_others_for_failed() {
    let without: Without = [Control::RepeatPings, Control::TellSuspects].into_iter().collect();
    assert_ne!(lossy(1, without), 0, "the mechanisms are off, and yet nobody was");
}

/// Crashes one node of `nodes` and returns when the last of the others knew.
fn crash(seed: u64, nodes: usize, loss: f64, profile: Profile) -> Duration {
    let mut world = cluster(seed, nodes, profile, Without::default());
    world.network.loss = loss;
    let more = world.rng.random_range(0..1000);
    world.run_for(ms(more));
    let victim = world.rng.random_range(0..nodes);
    let (since, addr) = (world.now, world.addr(victim));

    world.crash(victim);
    world.run_for(secs(8));

    let known = world.downs.iter().filter(|down| down.addr == addr && down.at >= since);
    let known: Vec<Duration> = known.map(|down| down.at - since).collect();
    assert_eq!(known.len(), nodes - 1, "{world}");
    assert_eq!(world.downs.len(), known.len(), "a third party changed state\n{world}");
    let last = known.into_iter().max().expect("some");
    measured(&format!("{profile}: a crash is known to all of {nodes} at loss {loss}"), last);
    last
}

#[test]
fn with_the_fast_profile_a_crash_is_known_everywhere_within_800_ms() {
    for (nodes, loss) in [(3, 0.0), (5, 0.01), (16, 0.0), (16, 0.01)] {
        each_seed(5, |seed| {
            let took = crash(seed, nodes, loss, Profile::Fast);
            assert!(took < ms(800), "{nodes} nodes: {took:?}");
        });
    }
}

#[test]
fn with_the_default_profile_it_is_not() {
    let soon =
        count_over_ten_seeds(|seed| usize::from(crash(seed, 5, 0.0, Profile::Default) < ms(800)));
    assert_eq!(soon, 0);
}

#[test]
fn the_fast_profile_takes_nobody_down_who_is_there() {
    each_seed(1, |seed| {
        for loss in [0.0, 0.01, 0.05] {
            let mut world = cluster(seed, 5, Profile::Fast, Without::default());
            world.network.loss = loss;
            world.run_for(Duration::from_mins(10));
            assert_eq!(world.downs.len(), 0, "loss {loss}");
        }
    });
}
