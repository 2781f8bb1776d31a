//! Whole clusters on a virtual clock: no socket, no thread, no sleep.
//!
//! One seed decides everything that happens in a run. A run that fails prints it, with the command
//! that repeats the run. `MARENGO_SIM_SEED` replaces the seeds of a test by one.

mod bad_setup;
mod crash;
mod join;
mod leave;
mod partition;
mod renumber;
mod restart;
mod slow_kernel;
mod stall;
mod starved;

use std::time::Duration;

pub(crate) use marengo_sim::{ms, secs, world};

/// Runs a scenario once for each seed from 1 to `count`.
fn each_seed(count: u64, scenario: impl Fn(u64)) {
    let chosen = std::env::var("MARENGO_SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = chosen.map_or(1..=count, |seed| seed..=seed);
    for seed in seeds {
        let _report = ReportOnPanic(seed);
        scenario(seed);
    }
}

/// Adds up over ten seeds how often something went wrong with a mechanism taken away.
///
/// One seed alone may be lucky, so `MARENGO_SIM_SEED` has no say here.
fn count_over_ten_seeds(scenario: impl Fn(u64) -> usize) -> usize {
    (1..=10).map(scenario).sum()
}

struct ReportOnPanic(u64);

impl Drop for ReportOnPanic {
    #[expect(clippy::print_stderr, reason = "tells how to repeat the failed run")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let current = std::thread::current();
            let test = current.name().unwrap_or_default();
            eprintln!(
                "failed with seed {seed}; to repeat: MARENGO_SIM_SEED={seed} cargo test -p \
                 marengo-sim --test scenarios -- --exact {test}",
                seed = self.0
            );
        }
    }
}

/// Prints a measured value; `cargo test -- --nocapture` shows it.
#[expect(clippy::print_stdout, reason = "figures for people who tune this")]
fn measured(what: &str, value: Duration) {
    println!("measured: {what}: {value:?}");
}
