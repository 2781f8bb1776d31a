//! Marengo's build automation: `cargo xtask --help`.
#![deny(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

mod bench;
mod build;
mod build_ebpf;
mod demo;
mod exec;
mod lab;
mod linker;
mod lint;
mod netns;
mod run;
mod setup;
mod sim;
mod stop;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;

/// Build, test and show Marengo. Each subcommand sets up what it needs.
#[derive(clap::Parser, Debug)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Xtask {
    BuildEbpf(build_ebpf::Args),
    Build(build::Args),
    Run(run::Args),
    Lint(lint::Args),
    Test(test::Args),
    Demo(demo::Args),
    Bench(bench::Args),
    Sim(sim::Args),
}

impl Xtask {
    fn run(self) -> Result<()> {
        match self {
            Self::BuildEbpf(args) => args.run(),
            Self::Build(args) => args.run(),
            Self::Run(args) => args.run(),
            Self::Lint(args) => args.run(),
            Self::Test(args) => args.run(),
            Self::Demo(args) => args.run(),
            Self::Bench(args) => args.run(),
            Self::Sim(args) => args.run(),
        }
    }
}

fn main() -> ExitCode {
    match stop::install().and_then(|()| Xtask::parse().run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is::<stop::Interrupted>() {
                eprintln!("cargo xtask: {error:#}");
            }
            // 128 + SIGINT, as shells have it.
            if stop::requested() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}
