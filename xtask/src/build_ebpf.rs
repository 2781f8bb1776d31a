use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    exec, linker,
    toolchain::{self, TARGET, Toolchain},
    workspace,
};

/// Build the eBPF object that the daemon carries, target/marengo.bpf.o.
///
/// Takes a rustup nightly with rust-src or Debian's rustc-web, whichever is there, and installs the
/// latter (and bpf-linker, under target/tools) if neither is. The last line names the object.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let Self {} = self;
        build().map(drop)
    }
}

/// Builds the object, says with what, and gives its path.
pub(crate) fn build() -> Result<PathBuf> {
    let toolchain = Toolchain::find_or_install()?;
    println!("toolchain: {}", toolchain.describe());
    let (linker, origin) = linker::find_or_install(toolchain.llvm())?;
    println!("linker: {} ({origin})", linker.display());

    let target = workspace::target().join("ebpf");
    let mut arch = toolchain::bpf_target_arch();
    arch.push("\"");
    let mut flags = std::ffi::OsString::from("--cfg=bpf_target_arch=\"");
    flags.push(&arch);
    // The separator of CARGO_ENCODED_RUSTFLAGS lets a path have blanks.
    flags.push("\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f-Clinker=");
    flags.push(&linker);
    exec::run(
        toolchain
            .cargo()
            .args(["build", "--package", "marengo-ebpf", "--bin", "marengo-ebpf", "--release"])
            .args(["--target", TARGET, "--target-dir"])
            .arg(&target)
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            // An overflow check is a panic, and a panic an endless loop, which the verifier refuses;
            // this reaches marengo-common too, which the daemon compiles with the checks.
            .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false"),
    )
    .with_context(|| {
        format!(
            "failed to build the eBPF object (the linker, {}, has to know LLVM {})",
            linker.display(),
            toolchain.llvm()
        )
    })?;

    let built = target.join(TARGET).join("release/marengo-ebpf");
    let object = workspace::target().join("marengo.bpf.o");
    replace_if_changed(&built, &object)?;
    println!("{}", object.display());
    Ok(object)
}

/// Copies `from` to `to` unless they are equal: an untouched object does not rebuild the daemon.
fn replace_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("failed to read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    // A reader sees the old object or the new one, never a part.
    let part = to.with_extension(format!("o.{}", std::process::id()));
    fs::write(&part, new).with_context(|| format!("failed to write {}", part.display()))?;
    fs::rename(&part, to).with_context(|| format!("failed to replace {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equal_object_is_left_untouched() {
        let folder = std::env::temp_dir().join(format!("xtask-replace-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (from, to) = (folder.join("from"), folder.join("to.o"));

        fs::write(&from, b"one").unwrap();
        replace_if_changed(&from, &to).unwrap();
        let written = to.metadata().unwrap().modified().unwrap();
        replace_if_changed(&from, &to).unwrap();
        assert_eq!(to.metadata().unwrap().modified().unwrap(), written);

        fs::write(&from, b"two").unwrap();
        replace_if_changed(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"two");
        assert_eq!(folder.read_dir().unwrap().count(), 2, "no temporary file stays");
        fs::remove_dir_all(&folder).unwrap();
    }
}
