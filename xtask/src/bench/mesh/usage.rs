//! What a process uses, by /proc.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

/// What a process has used since its start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Usage {
    /// In user and in kernel mode, of all its threads.
    pub(super) processor: Duration,
    /// How often it slept and was woken.
    pub(super) wakes: u64,
    /// KiB, at this moment.
    pub(super) resident: u64,
}

impl Usage {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))
        };
        let ticks = ticks(&read("stat")?).context("/proc/<pid>/stat has no times")?;
        let status = read("status")?;
        let number = |name: &str| {
            number(&status, name).with_context(|| format!("/proc/{pid}/status has no {name}"))
        };
        Ok(Self {
            processor: Duration::from_secs(ticks) / ticks_per_second()?,
            wakes: number("voluntary_ctxt_switches:")?,
            resident: number("VmRSS:")?,
        })
    }
}

fn ticks_per_second() -> Result<u32> {
    let ticks = sysconf(SysconfVar::CLK_TCK).context("failed to ask for the length of a tick")?;
    u32::try_from(ticks.unwrap_or(100)).context("a tick has no length")
}

/// utime and stime. The name before them may hold anything, but for a parenthesis behind it.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

fn number(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 1 0 99";

        assert_eq!(ticks(stat), Some(42));
    }

    #[test]
    fn usage_of_this_process_is_read() {
        let usage = Usage::of(std::process::id()).unwrap();

        assert!(usage.resident > 100, "{usage:?}");
    }
}
