//! docs/benchmarks.md: each benchmark owns the text between its two marks.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{exec, workspace};

const TITLE: &str = "# Benchmarks\n\nEach section is written by the command that it names.\n";

/// Replaces the section of one benchmark, or adds it, and gives the document's path.
pub(crate) fn write(name: &str, section: &str) -> Result<PathBuf> {
    let path = workspace::root().join("docs/benchmarks.md");
    let old = if path.exists() {
        fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?
    } else {
        TITLE.to_owned()
    };
    fs::write(&path, with_section(&old, name, section))
        .with_context(|| format!("failed to write {}", path.display()))?;
    Ok(path)
}

fn with_section(document: &str, name: &str, section: &str) -> String {
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->\n"));
    let section = format!("{begin}{section}{end}");
    let place = document.split_once(&begin).and_then(|(before, rest)| {
        let (_old, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    match place {
        Some((before, after)) => format!("{before}{section}{after}"),
        None => format!("{}\n\n{section}", document.trim_end()),
    }
}

/// What was measured, where: without it no figure means anything.
pub(crate) fn circumstances() -> Result<String> {
    let kernel = exec::capture(exec::command("uname").arg("-r"))?;
    let processors = fs::read_to_string("/proc/cpuinfo").context("failed to read /proc/cpuinfo")?;
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let count = processors.lines().filter(|line| line.starts_with("processor")).count();
    let commit = exec::capture(
        exec::command("git")
            .args(["describe", "--always", "--dirty"])
            .current_dir(workspace::root()),
    )
    .unwrap_or_else(|_no_repository| "an unknown commit".to_owned());
    Ok(format!("Marengo at {}, kernel {}, {count} x {model}.", commit.trim(), kernel.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_added_once_and_then_replaced() {
        let first = with_section("# B\n", "x", "one\n");
        assert_eq!(first, "# B\n\n<!-- x: begin -->\none\n<!-- x: end -->\n");

        let other = with_section(&first, "y", "why\n");
        let second = with_section(&other, "x", "two\n");
        assert_eq!(second, other.replace("one", "two"));
    }
}
