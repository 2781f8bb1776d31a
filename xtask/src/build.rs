use std::path::PathBuf;

use anyhow::Result;

use crate::{build_ebpf, workspace};

/// Build the eBPF object, then the daemon that carries it.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Build with optimizations, as for an installation.
    #[arg(long)]
    release: bool,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        println!("{}", daemon(self.release)?.display());
        Ok(())
    }
}

/// Builds everything that the daemon is made of, and gives the binary's path.
pub(crate) fn daemon(release: bool) -> Result<PathBuf> {
    build_ebpf::build()?;
    workspace::build_binary("marengo", release)
}
