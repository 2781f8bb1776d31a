//! The commands.

mod attempt;
mod controls;
mod metrics;
mod seeds;

use std::process::ExitCode;

use clap::builder::RangedI64ValueParser;

/// Whole clusters on a virtual clock: the real membership and converge code, everything else
/// simulated. One seed decides all that happens in a run.
#[derive(clap::Parser, Debug)]
#[command(name = "cargo xtask sim", bin_name = "cargo xtask sim")]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    seeds: seeds::Args,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    Controls(controls::Args),
    Metrics(metrics::Args),
}

impl Cli {
    pub(crate) fn run(self) -> ExitCode {
        match self.command {
            Some(Command::Controls(args)) => args.run(),
            Some(Command::Metrics(args)) => args.run(),
            None => self.seeds.run(),
        }
    }
}

/// How many machines a run may have: the first two are those that all join, and nobody remembers more
/// than 4,096.
fn machines() -> RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(2..=4096)
}
