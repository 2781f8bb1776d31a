//! Marengo's daemon and command line: everything that does IO.
//!
//! The decisions are in `marengo-core`; here they meet sockets, signals and the kernel.
#![deny(unsafe_code)]

mod alarm;
pub mod api;
mod bench;
mod cli;
mod client;
mod commands;
mod config;
mod control;
mod converge;
mod daemon;
mod doubts;
mod failure;
mod follow;
mod gossip;
mod http;
mod kernel;
mod preflight;
mod remember;
mod remove;
mod signals;
mod tasks;
mod telemetry;
mod values;
mod version;

use std::process::ExitCode;

use crate::{
    cli::{Cli, Command},
    config::{GlobalConfig, RemoveConfig, ServerConfig},
    failure::{Failure, OrFailure as _},
};

/// Runs the command line and says how it went.
pub fn main() -> ExitCode {
    let cli = Cli::from_args();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            #[expect(clippy::print_stderr, reason = "this is where an operator looks")]
            {
                eprintln!("marengo: {failure}");
            }
            failure.exit_code()
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    // One thread: the tasks wait nearly all the time, and each thread costs memory.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_failure(failure::Kind::Failed)?;
    match &cli.command {
        Command::Server(args) => {
            let config = ServerConfig::load(&cli.global, args)?;
            telemetry::start(config.global.debug, config.global.log_format);
            let result = runtime.block_on(daemon::run(config));
            // A name that is still being looked up must not hold up the end.
            runtime.shutdown_background();
            result
        }
        Command::Remove(args) => {
            let config = RemoveConfig::load(&cli.global, args)?;
            telemetry::start(config.global.debug, config.global.log_format);
            runtime.block_on(remove::run(&config, args.output))
        }
        Command::BenchProgram { peers, output } => {
            runtime.block_on(bench::program(*peers, *output))
        }
        Command::BenchMembers { members, output } => {
            runtime.block_on(bench::members(*members, *output))
        }
        command => {
            let config = GlobalConfig::load(&cli.global)?;
            telemetry::start(config.debug, config.log_format);
            runtime.block_on(async {
                match command {
                    Command::Members(output) => commands::members(&config, *output).await,
                    Command::Peers(output) => commands::peers(&config, *output).await,
                    Command::Status(output) => commands::status(&config, *output).await,
                    Command::Version(output) => commands::version(&config, *output).await,
                    Command::Server(_)
                    | Command::Remove(_)
                    | Command::BenchProgram { .. }
                    | Command::BenchMembers { .. } => Ok(()),
                }
            })
        }
    }
}
