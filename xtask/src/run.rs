use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::{build, setup, workspace};

/// Build the daemon and become it: `cargo xtask run -- server -j 192.0.2.1:7946`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Build with optimizations.
    #[arg(long)]
    release: bool,
    /// Arguments of `marengo`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let daemon = build::daemon(self.release)?;
        // The client's subcommands need neither root nor a place for pins.
        if workspace::is_root() {
            setup::bpffs()?;
        }
        let error = Command::new(&daemon).args(self.args).exec();
        Err(error).with_context(|| format!("failed to run {}", daemon.display()))
    }
}
