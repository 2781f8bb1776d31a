//! Finds the eBPF object and the commit, so that the daemon is one file that knows its version.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let root = root.parent().map_or_else(PathBuf::new, Path::to_owned);
    ebpf_object(&root);
    commit(&root);
}

/// Names the object for `include_bytes_aligned!`.
fn ebpf_object(root: &Path) {
    println!("cargo::rerun-if-env-changed=MARENGO_EBPF_OBJECT");
    let object = env::var_os("MARENGO_EBPF_OBJECT")
        .map_or_else(|| root.join("target/marengo.bpf.o"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    if object.is_file() {
        println!("cargo::rustc-env=MARENGO_EBPF_OBJECT={}", object.display());
    } else {
        println!(
            "cargo::error=the eBPF object {} is missing: run `cargo xtask build-ebpf` first",
            object.display()
        );
    }
}

/// `MARENGO_COMMIT` from the environment (for packagers), else from git, else "unknown".
fn commit(root: &Path) {
    println!("cargo::rerun-if-env-changed=MARENGO_COMMIT");
    println!("cargo::rerun-if-changed={}", root.join(".git/HEAD").display());
    println!("cargo::rerun-if-changed={}", root.join(".git/logs/HEAD").display());
    let commit = env::var("MARENGO_COMMIT").ok().or_else(|| {
        let output = Command::new("git")
            .args(["rev-parse", "--short=7", "HEAD"])
            .current_dir(root)
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
    });
    println!("cargo::rustc-env=MARENGO_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}
