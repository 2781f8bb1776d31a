//! Where things are, and cargo.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::exec;

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ stands in the workspace")
}

/// `target/` of the repository, whatever CARGO_TARGET_DIR says: the eBPF object and our tools have
/// one place that the daemon's build script knows.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// Cargo as it was called for us, in the root.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).stdin(Stdio::null());
    cargo
}

/// Builds the binary of a package and gives its path.
pub(crate) fn build_binary(package: &str, release: bool) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--package", package, "--bin", package]);
    if release {
        build.arg("--release");
    }
    // The messages tell the path, wherever flags and environment put it.
    build.args(["--message-format", "json-render-diagnostics"]);
    let messages = exec::run_reading(&mut build)?;
    executable(&messages, package)
        .with_context(|| format!("cargo did not say where it put {package}"))
}

fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == target)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// Fails unless we are root, naming what for.
pub(crate) fn need_root(what: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!("{what} needs root: run `sudo env \"PATH=$PATH\" cargo xtask ...`")
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_is_found_among_other_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"anyhow"},"executable":null}"#,
            "\nwarning: not JSON\n",
            r#"{"reason":"compiler-artifact","target":{"name":"marengo"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"marengo"},"executable":"/t/marengo"}"#,
        );

        assert_eq!(executable(messages, "marengo"), Some("/t/marengo".into()));
        assert_eq!(executable(messages, "other"), None);
    }
}
