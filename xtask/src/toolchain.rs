//! Which compiler makes the eBPF object: a rustup nightly with rust-src, or Debian's rustc-web.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{exec, setup, stop, workspace};

/// The compiler of Debian's rustc-web, with a `core` for the bpf targets beside it.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
/// rustc-web cannot stand beside these packages of Debian.
const DEBIAN_CONFLICTS: [&str; 2] = ["rustc", "rustup"];

/// The crates that use unstable features; rustc's bootstrap switch is turned on for them alone.
const UNSTABLE_CRATES: &str = "aya_ebpf,marengo_ebpf";

/// A compiler for the eBPF object.
#[derive(Debug)]
pub(crate) struct Toolchain {
    kind: Kind,
    rustc: PathBuf,
    /// Major version of its LLVM: the linker has to read the bitcode that this one writes.
    llvm: u32,
    about: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Nightly,
    Debian,
}

/// The bpf target of this machine's byte order.
pub(crate) const TARGET: &str =
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

impl Toolchain {
    /// Takes the toolchain that is there, or sets one up.
    pub(crate) fn find_or_install() -> Result<Self> {
        if let Some(found) = Self::nightly().or_else(Self::debian) {
            return Ok(found);
        }
        if let Err(error) = Self::install_debian() {
            stop::check()?;
            bail!("no toolchain for the eBPF object, and {error:#}\n\n{}", instructions());
        }
        Self::debian().with_context(|| {
            format!("{} is installed, but cannot compile for {TARGET}", DEBIAN_PACKAGES.join(", "))
        })
    }

    fn nightly() -> Option<Self> {
        // rustup may be told to fetch what is missing; a question must not install a toolchain.
        let sysroot = exec::capture(
            Command::new("rustc")
                .args(["+nightly", "--print", "sysroot"])
                .env("RUSTUP_AUTO_INSTALL", "0"),
        )
        .ok()?;
        let sysroot = PathBuf::from(sysroot.trim());
        let whole = sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
            && sysroot.join("bin/cargo").is_file();
        if !whole {
            return None;
        }
        Self::of(Kind::Nightly, &sysroot.join("bin/rustc"))
    }

    fn debian() -> Option<Self> {
        let rustc = Path::new(DEBIAN_RUSTC);
        let core = Path::new("/usr/lib/rustlib").join(TARGET).join("lib");
        let has_core = core.read_dir().ok()?.flatten().any(|entry| {
            entry.file_name().to_str().is_some_and(|name| name.starts_with("libcore-"))
        });
        if has_core { Self::of(Kind::Debian, rustc) } else { None }
    }

    fn of(kind: Kind, rustc: &Path) -> Option<Self> {
        let version = exec::capture(Command::new(rustc).arg("-vV")).ok()?;
        let llvm = llvm_major(&version)?;
        let about = version.lines().next()?.to_owned();
        Some(Self { kind, rustc: rustc.into(), llvm, about })
    }

    fn install_debian() -> Result<()> {
        if let Some(obstacle) = setup::cannot_install() {
            bail!("{obstacle}");
        }
        if let Some(package) = DEBIAN_CONFLICTS.into_iter().find(|package| is_installed(package)) {
            bail!("rustc-web cannot be installed beside the package {package}, which is there");
        }
        if !setup::available(&DEBIAN_PACKAGES) {
            bail!("apt's sources have no {}", DEBIAN_PACKAGES.join(", "));
        }
        setup::install(
            &DEBIAN_PACKAGES,
            "no nightly with rust-src is there, and these compile for eBPF without one",
        )
    }

    pub(crate) fn llvm(&self) -> u32 {
        self.llvm
    }

    /// Cargo set up to compile for the bpf target with this toolchain.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = match self.kind {
            Kind::Nightly => {
                let mut cargo = Command::new(self.rustc.with_file_name("cargo"));
                cargo.args(["-Z", "build-std=core"]).current_dir(workspace::root());
                cargo
            }
            Kind::Debian => {
                let mut cargo = workspace::cargo();
                cargo.env("RUSTC_BOOTSTRAP", UNSTABLE_CRATES);
                cargo
            }
        };
        cargo.env("RUSTC", &self.rustc);
        // Wrappers and flags are meant for the host's compiler.
        for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_TARGET"]
        {
            cargo.env_remove(name);
        }
        cargo
    }

    /// What it is, and why it was taken.
    pub(crate) fn describe(&self) -> String {
        match self.kind {
            Kind::Nightly => {
                format!(
                    "rustup's nightly, because it has rust-src ({}, LLVM {})",
                    self.about, self.llvm
                )
            }
            Kind::Debian => format!(
                "Debian's rustc-web, because no nightly with rust-src is there ({}, LLVM {})",
                self.about, self.llvm
            ),
        }
    }
}

fn is_installed(package: &str) -> bool {
    exec::capture(exec::command("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

fn llvm_major(version: &str) -> Option<u32> {
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    llvm.split('.').next()?.parse().ok()
}

/// What to install by hand: either of the two toolchains.
fn instructions() -> String {
    format!(
        "Install one of these, then run the command again:\n\
         \x20 1. with rustup:            rustup toolchain install nightly --component rust-src\n\
         \x20    and a linker:           LLVM's development files (as new as the nightly's LLVM), then\n\
         \x20                            cargo install bpf-linker (or its release from\n\
         \x20                            https://github.com/aya-rs/bpf-linker/releases) in PATH\n\
         \x20 2. on Debian, as root:     apt-get install {} llvm-22-dev g++\n\
         \x20                            (the linker is then built by this command; of Debian's stable\n\
         \x20                            releases they are among the security updates, so that apt's\n\
         \x20                            sources must have those)",
        DEBIAN_PACKAGES.join(" ")
    )
}

/// The value of `--cfg=bpf_target_arch`: whose registers the kernel's structures hold.
pub(crate) fn bpf_target_arch() -> OsString {
    match std::env::consts::ARCH {
        "riscv64gc" => "riscv64".into(),
        arch => arch.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_version_is_read_from_rustc() {
        let version = "rustc 1.96.0 (ac68faa20 2026-05-25)\nhost: x86_64\nLLVM version: 22.1.8\n";

        assert_eq!(llvm_major(version), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }
}
