//! Kernels that take their time.

use std::panic::{AssertUnwindSafe, catch_unwind};

use marengo_core::control::{Control, Without};
use marengo_sim::{host_kernel::Mood, shell::Shell};

use crate::{
    count_over_ten_seeds, each_seed, secs,
    world::{Options, World},
};

/// The daemons of all but node 1 of twelve are dead, and node 1 holds them. Then it is cut off until it
/// finds them silent; the cut ends while its slow kernel is still taking them out.
fn heal_during_a_round(seed: u64, without: Without) {
    let options = Options { data_planes: true, ..Options::default() };
    let mut world = World::with(seed, 0, options);
    for node in 0..12 {
        world.add_machine(without);
        world.start(node, &[0]);
    }
    world.run_until("all know all", secs(15), World::all_know_all);
    world.run_for(secs(3));
    let others: Vec<usize> = (0..12).filter(|other| *other != 1).collect();
    for other in &others {
        world.crash(*other);
    }
    world.run_until("all are held", secs(60), |world| held_by_1(world) == 11);
    world.set_mood(1, Mood { slowness: secs(2), failing: 0.0 });
    world.cut(&[1], &others);
    world.run_until("all are silent", secs(30), |world| held_by_1(world) == 0);

    world.heal_cuts();

    // The world itself sees to it that nobody is taken out whose path has worked for a while.
    world.run_for(secs(30));
}

fn held_by_1(world: &World) -> usize {
    world.nodes[1].shell.as_ref().map_or(0, Shell::held)
}

#[test]
fn nobody_is_taken_out_by_a_verdict_of_long_ago() {
    each_seed(10, |seed| heal_during_a_round(seed, Without::default()));
}

#[test]
fn without_a_second_look_a_slow_round_takes_out_who_is_back() {
    let without = Without::from(Control::Rejudge);
    let wrong = count_over_ten_seeds(|seed| {
        let result = catch_unwind(AssertUnwindSafe(|| heal_during_a_round(seed, without)));
        let Err(panic) = result else { return 0 };
        let said = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(said.contains("takes out"), "{said}");
        1
    });

    assert!(wrong > 0, "the mechanism is off, and yet nobody was taken out too late");
}
