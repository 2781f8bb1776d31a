//! The commands.

mod metrics;

use std::process::ExitCode;

/// Whole clusters on a virtual clock: the real membership and converge code, everything else
/// simulated.
#[derive(clap::Parser, Debug)]
#[command(name = "cargo xtask sim", bin_name = "cargo xtask sim")]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    Metrics(metrics::Args),
}

impl Cli {
    pub(crate) fn run(self) -> ExitCode {
        match self.command {
            Command::Metrics(args) => args.run(),
        }
    }
}
