use std::ffi::OsString;

use anyhow::Result;

use crate::{bench::document, exec, workspace};

/// How `metrics` ends when its table is whole, and goals are missed.
const GOALS_MISSED: i32 = 1;

/// Run whole clusters on a virtual clock: `cargo xtask sim --help` is of the program that does.
#[derive(clap::Args, Debug)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// What is passed on to marengo-sim.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARG")]
    args: Vec<OsString>,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let program = workspace::build_binary("marengo-sim", true)?;
        let mut sim = exec::command(&program.to_string_lossy());
        sim.current_dir(workspace::root());
        let (write, args): (Vec<_>, Vec<_>) =
            self.args.into_iter().partition(|arg| arg == "--write");
        sim.args(&args);
        if write.is_empty() {
            return exec::run(&mut sim);
        }
        let (table, status) = exec::run_reading_any(&mut sim)?;
        print!("{table}");
        if !status.success() && status.code() != Some(GOALS_MISSED) {
            return Err(exec::failed(&sim, status));
        }
        let section = format!(
            "## What the membership does: `cargo xtask sim metrics --write`\n\n{} Simulated: one \
             seed, a virtual clock, 0.1 to 2 ms from node to node.\n\n{table}",
            document::circumstances()?
        );
        let path = document::write("sim metrics", &section)?;
        println!("\nwritten to {}", path.display());
        if status.success() { Ok(()) } else { Err(exec::failed(&sim, status)) }
    }
}
