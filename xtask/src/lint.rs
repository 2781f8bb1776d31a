use anyhow::{Result, bail};

use crate::{build_ebpf, exec, workspace};

/// Check the format (rustfmt) and the lints (clippy, warnings are errors) of the workspace.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let Self {} = self;
        if let Some(missing) = missing() {
            bail!("{missing}");
        }
        // The daemon's build script asks for the object.
        build_ebpf::build()?;
        check()
    }
}

/// Says which of the two tools the toolchain lacks, and how to get them.
pub(crate) fn missing() -> Option<String> {
    let lacks = |tool: &str| exec::capture(workspace::cargo().args([tool, "--version"])).is_err();
    let missing: Vec<&str> = [("fmt", "rustfmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(subcommand, _)| lacks(subcommand))
        .map(|(_, component)| component)
        .collect();
    if missing.is_empty() {
        return None;
    }
    let missing = missing.join(" ");
    Some(format!("the toolchain has no {missing}: `rustup component add {missing}` brings it"))
}

/// Runs both over all that the host's compiler can build.
pub(crate) fn check() -> Result<()> {
    exec::run(workspace::cargo().args(["fmt", "--all", "--check"]))?;
    // marengo-ebpf compiles for bpf alone, where no clippy is to be had.
    exec::run(
        workspace::cargo()
            .args(["clippy", "--workspace", "--exclude", "marengo-ebpf", "--all-targets"])
            .args(["--", "-D", "warnings"]),
    )
}
