//! `controls`: without the mechanisms that hold the promises, they do not hold.

use std::process::ExitCode;

use marengo_core::control::Control;
use marengo_sim::chaos::Settings;

use super::attempt::{attempt, keep_what_panics_say};

/// Take away each mechanism that the random runs are to miss, and look for a seed that fails.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// How many seeds each gets.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
}

/// The others are missed in scenarios of their own.
const MISSED: [Control; 4] =
    [Control::Generations, Control::Moves, Control::Witness, Control::Adoption];

impl Args {
    pub(crate) fn run(self) -> ExitCode {
        keep_what_panics_say();
        let mut all_missed = true;
        for control in MISSED {
            let settings = Settings { without: control.into(), ..Settings::default() };
            let seeds = (0..self.seeds).map(|number| self.from.wrapping_add(number));
            let mut failures =
                seeds.filter_map(|seed| Some((seed, attempt(seed, &settings).err()?)));
            if let Some((seed, said)) = failures.next() {
                let promise = said.lines().next().unwrap_or_default();
                println!("without {control}: seed {seed}: {promise}");
            } else {
                println!("without {control}: {} seeds kept all promises", self.seeds);
                all_missed = false;
            }
        }
        if all_missed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
