//! bpf-linker: taken from `target/tools` or PATH, or built from the crate registry against LLVM.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{exec, setup, workspace};

const VERSION: &str = "0.13.0";
/// The LLVMs that this version of bpf-linker knows.
const LLVM_KNOWN: std::ops::RangeInclusive<u32> = 21..=23;

/// Gives the path of a bpf-linker that reads the bitcode of LLVM `llvm`, and where it comes from.
pub(crate) fn find_or_install(llvm: u32) -> Result<(PathBuf, &'static str)> {
    let root = workspace::target().join("tools").join(format!("bpf-linker-{VERSION}-llvm-{llvm}"));
    let ours = root.join("bin/bpf-linker");
    if works(&ours) {
        return Ok((ours, "built earlier"));
    }
    if let Some(theirs) = exec::find("bpf-linker").filter(|linker| works(linker)) {
        return Ok((theirs, "found in PATH"));
    }
    install(llvm, &root)?;
    if works(&ours) {
        Ok((ours, "built just now"))
    } else {
        bail!("{} was built, but does not run", ours.display())
    }
}

/// A linker whose LLVM is gone, after an upgrade, stays on the disk but does not start.
fn works(linker: &Path) -> bool {
    linker.is_file() && exec::capture(std::process::Command::new(linker).arg("--version")).is_ok()
}

fn install(llvm: u32, root: &Path) -> Result<()> {
    if !LLVM_KNOWN.contains(&llvm) {
        bail!(
            "bpf-linker {VERSION} cannot read the bitcode of LLVM {llvm}: put a bpf-linker that can \
             into PATH"
        );
    }
    let prefix = format!("/usr/lib/llvm-{llvm}");
    let development = format!("llvm-{llvm}-dev");
    let mut packages = Vec::new();
    if !Path::new(&prefix).join("include/llvm-c/Core.h").is_file() {
        packages.push(development.as_str());
    }
    // bpf-linker is linked with LLVM's C++ library; a C compiler alone does not bring it.
    if !has_libstdcxx() {
        packages.push("g++");
    }
    if !packages.is_empty() {
        setup::install(&packages, "bpf-linker is built against them").with_context(|| {
            format!(
                "no bpf-linker, and not what it is built from: install {}, or put a bpf-linker \
                 (https://github.com/aya-rs/bpf-linker/releases) into PATH",
                packages.join(" ")
            )
        })?;
    }
    println!(
        "building bpf-linker {VERSION} against LLVM {llvm} into {}, because none is there (a minute)",
        root.display()
    );
    exec::run(
        workspace::cargo()
            .args([
                "install",
                "bpf-linker",
                "--version",
                VERSION,
                "--locked",
                "--no-default-features",
            ])
            .args(["--features", &format!("llvm-{llvm}"), "--root"])
            .arg(root)
            .env("LLVM_PREFIX", &prefix)
            // Then cargo builds in a folder that it removes afterwards.
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("RUSTFLAGS"),
    )
    .context("failed to build bpf-linker")
}

fn has_libstdcxx() -> bool {
    // The compiler answers with a path if it knows the library, with the bare name if not.
    exec::capture(exec::command("cc").arg("-print-file-name=libstdc++.so"))
        .is_ok_and(|answer| answer.contains('/'))
}
