use std::{
    fmt::Write as _,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::document;
use crate::{build, exec, lab::Lab, netns, setup, stop, workspace};

/// What a peer costs: map entries here, beside one VXLAN device per peer; and the daemon's memory.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Write the result into docs/benchmarks.md.
    #[arg(long)]
    write: bool,
}

const COUNTS: [u32; 5] = [10, 100, 500, 1_000, 10_000];
/// More devices than this tell nothing new, and a machine may not have the memory.
const MOST_DEVICES: u32 = 500;
const MEMBERS: [u32; 2] = [3, 1_000];

const GOAL_MICROSECONDS: f64 = 10.0;
const GOAL_BYTES: f64 = 256.0;
const GOAL_RESIDENT: f64 = 16.0 * 1024.0 * 1024.0;

/// The cost of `count` peers or devices.
#[derive(Clone, Copy, Debug)]
struct Cost {
    count: u32,
    seconds: f64,
    syscalls: u64,
    bytes: u64,
}

impl Cost {
    fn microseconds_each(self) -> f64 {
        self.seconds * 1e6 / f64::from(self.count)
    }

    fn bytes_each(self) -> f64 {
        float(self.bytes) / f64::from(self.count)
    }

    fn cells(self) -> String {
        format!(
            "{:.2} ms | {:.1} us | {} | {:.1} KiB | {:.0} B",
            self.seconds * 1e3,
            self.microseconds_each(),
            self.syscalls,
            float(self.bytes) / 1024.0,
            self.bytes_each()
        )
    }
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        use setup::{IP, NSENTER, SETPRIV, STRACE};
        workspace::need_root("the benchmark (it makes maps and devices)")?;
        setup::tools("the benchmark", &[IP, NSENTER, SETPRIV, STRACE])?;
        let daemon = build::daemon(true)?;
        setup::bpffs()?;

        let mut lab = Lab::open("bench")?;
        let mut rows = Vec::new();
        for count in COUNTS {
            stop::check()?;
            eprintln!("measuring {count} peers");
            let peers = program_peers(&mut lab, &daemon, count)?;
            let devices =
                if count <= MOST_DEVICES { Some(create_devices(&mut lab, count)?) } else { None };
            rows.push((peers, devices));
        }
        let resident = MEMBERS
            .into_iter()
            .map(|members| Ok((members, resident_bytes(&mut lab, &daemon, members)?)))
            .collect::<Result<Vec<(u32, u64)>>>()?;
        lab.close()?;

        let section = section(&document::circumstances()?, &rows, &resident)?;
        print!("{section}");
        if self.write {
            println!("\nwritten to {}", document::write("bench peers", &section)?.display());
        }
        Ok(())
    }
}

/// Lets the daemon's own code program `count` peers into maps of the real object.
fn program_peers(lab: &mut Lab, daemon: &Path, count: u32) -> Result<Cost> {
    let asked = ["bench-program", "--peers", &count.to_string(), "--json"];
    let answer = ask(lab, daemon, &asked)?;
    Ok(Cost {
        count,
        seconds: number(&answer, "seconds")?.as_f64().context("seconds is not a number")?,
        syscalls: number(&answer, "syscalls")?.as_u64().context("syscalls is not a count")?,
        bytes: number(&answer, "map_bytes")?.as_u64().context("map_bytes is not a count")?,
    })
}

fn resident_bytes(lab: &mut Lab, daemon: &Path, members: u32) -> Result<u64> {
    let asked = ["bench-members", "--members", &members.to_string(), "--json"];
    let answer = ask(lab, daemon, &asked)?;
    number(&answer, "rss_bytes")?.as_u64().context("rss_bytes is not a count")
}

/// Runs one of the daemon's hidden benchmarks in a namespace of its own.
fn ask(lab: &mut Lab, daemon: &Path, args: &[&str]) -> Result<Value> {
    let namespace = lab.add_namespace(&args.join("").replace("--", "-"))?;
    let answer = exec::capture(netns::command(&namespace, &daemon.to_string_lossy()).args(args))?;
    netns::delete(&namespace)?;
    serde_json::from_str(&answer)
        .with_context(|| format!("`marengo {}` did not print JSON: {answer}", args.join(" ")))
}

fn number<'a>(answer: &'a Value, key: &str) -> Result<&'a Value> {
    answer.get(key).with_context(|| format!("the daemon's answer has no {key}: {answer}"))
}

/// Creates `count` VXLAN devices in one bridge, the predecessor's way.
///
/// Neither the bridge nor a device is ever up, so that no frame can circle between them.
fn create_devices(lab: &mut Lab, count: u32) -> Result<Cost> {
    let namespace = lab.add_namespace(&format!("devices-{count}"))?;
    let (mut create, mut delete) = (String::new(), String::new());
    for id in 1..=count {
        let (high, low) = (id / 256, id % 256);
        writeln!(
            create,
            "link add vx{id} master bridge type vxlan id {id} remote 198.18.{high}.{low} \
             dstport 4789 nolearning"
        )?;
        writeln!(delete, "link del vx{id}")?;
    }

    netns::ip_batch(&namespace, "link add name bridge type bridge\n")?;
    let before = kernel_memory()?;
    let start = Instant::now();
    netns::ip_batch(&namespace, &create)?;
    let seconds = start.elapsed().as_secs_f64();
    let bytes = kernel_memory()?.saturating_sub(before);
    netns::ip_batch(&namespace, &delete)?;

    // Once more under strace: counting slows down what is counted.
    let trace = lab.run_folder().join("strace");
    let mut strace = netns::command(&namespace, "strace");
    strace.args(["-c", "-o"]).arg(&trace).arg(exec::find("ip").context("ip is gone")?);
    netns::feed(strace.args(["-batch", "-"]), &create)?;
    let summary = fs::read_to_string(&trace).context("failed to read strace's summary")?;
    let syscalls = total_calls(&summary).context("strace's summary has no total")?;

    // Emptied before the namespace goes, whose own removal would go on while the next is measured.
    netns::ip_batch(&namespace, &delete)?;
    netns::delete(&namespace)?;
    std::thread::sleep(Duration::from_millis(500));
    Ok(Cost { count, seconds, syscalls, bytes })
}

/// Bytes that the kernel holds in slabs and per-CPU areas, where devices live.
fn kernel_memory() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("failed to read /proc/meminfo")?;
    Ok((kilobytes(&meminfo, "Slab:") + kilobytes(&meminfo, "Percpu:")) * 1024)
}

fn kilobytes(meminfo: &str, name: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// The number of calls in the last line of `strace -c`.
fn total_calls(summary: &str) -> Option<u64> {
    let total = summary.lines().find(|line| line.trim_end().ends_with(" total"))?;
    total.split_whitespace().nth(3)?.parse().ok()
}

fn section(
    circumstances: &str,
    rows: &[(Cost, Option<Cost>)],
    resident: &[(u32, u64)],
) -> Result<String> {
    let mut text = String::from("## What a peer costs: `cargo xtask bench peers --write`\n\n");
    writeln!(text, "{circumstances} One run.\n")?;
    writeln!(text, "Peers as map entries: the daemon's planner and its real maps.\n")?;
    writeln!(text, "| peers | time | each | system calls | map memory | each |")?;
    writeln!(text, "| ---: | ---: | ---: | ---: | ---: | ---: |")?;
    for (peers, _) in rows {
        writeln!(text, "| {} | {} |", peers.count, peers.cells())?;
    }
    writeln!(
        text,
        "\nOne VXLAN device per peer, the predecessor's way: `ip -batch` in a bridge that is down. \
         Memory is the growth of Slab and Percpu in /proc/meminfo, system calls are counted by \
         `strace -c` in a second round.\n"
    )?;
    writeln!(text, "| devices | time | each | system calls | kernel memory | each |")?;
    writeln!(text, "| ---: | ---: | ---: | ---: | ---: | ---: |")?;
    for devices in rows.iter().filter_map(|(_, devices)| devices.as_ref()) {
        writeln!(text, "| {} | {} |", devices.count, devices.cells())?;
    }
    writeln!(text, "\nResident memory of the daemon with simulated members.\n")?;
    writeln!(text, "| members | resident |")?;
    writeln!(text, "| ---: | ---: |")?;
    for (members, bytes) in resident {
        writeln!(text, "| {members} | {:.1} MiB |", float(*bytes) / 1024.0 / 1024.0)?;
    }
    writeln!(text, "\n{}", goals(rows, resident))?;
    Ok(text)
}

fn goals(rows: &[(Cost, Option<Cost>)], resident: &[(u32, u64)]) -> String {
    // With few peers the fixed work of a round weighs more than the peers: the goal is for a thousand.
    let large = rows.iter().map(|(peers, _)| *peers).filter(|peers| peers.count >= 1000);
    let time = large.clone().map(Cost::microseconds_each).fold(0.0, f64::max);
    let bytes = large.map(Cost::bytes_each).fold(0.0, f64::max);
    let most = resident.iter().map(|(_, bytes)| float(*bytes)).fold(0.0, f64::max);
    let verdict = |met: bool| if met { "met" } else { "missed" };
    format!(
        "Goals, from 1,000 peers on: under {GOAL_MICROSECONDS} us per peer ({time:.1}: {}), under \
         {GOAL_BYTES} bytes of map per peer ({bytes:.0}: {}), under 16 MiB resident ({:.1}: {}).",
        verdict(time < GOAL_MICROSECONDS),
        verdict(bytes < GOAL_BYTES),
        most / 1024.0 / 1024.0,
        verdict(most < GOAL_RESIDENT),
    )
}

#[expect(clippy::cast_precision_loss, reason = "byte counts are far under 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_cost_calls_and_memory_and_are_gone_afterwards() {
        if !crate::lab::possible_here() {
            return;
        }
        let mut lab = Lab::open("test-bench").unwrap();

        let cost = create_devices(&mut lab, 20).unwrap();

        assert!(cost.seconds > 0.0, "{cost:?}");
        assert!(cost.syscalls > 20 && cost.syscalls < 20_000, "{cost:?}");
        assert_eq!(netns::with_prefix(&lab.namespace("")), Vec::<String>::new());
        lab.close().unwrap();
    }

    #[test]
    fn total_is_read_from_strace_with_and_without_errors() {
        let plain = "% time     seconds  usecs/call     calls    errors syscall\n\
                     100.00    0.012345           4      3001           total\n";
        let errors = "100.00    0.012345           4      3001        17 total\n";

        assert_eq!(total_calls(plain), Some(3001));
        assert_eq!(total_calls(errors), Some(3001));
        assert_eq!(total_calls("nothing"), None);
    }

    #[test]
    fn memory_is_read_in_kilobytes() {
        let meminfo = "MemFree:   1 kB\nSlab:             189400 kB\nPercpu:              664 kB\n";

        assert_eq!(kilobytes(meminfo, "Slab:"), 189_400);
        assert_eq!(kilobytes(meminfo, "Percpu:"), 664);
    }

    #[test]
    fn goals_are_judged_by_large_meshes() {
        let cost = |count, seconds, bytes| (Cost { count, seconds, syscalls: 1, bytes }, None);
        let rows = [cost(10, 1.0, 1 << 20), cost(1000, 0.005, 200_000)];

        let text = goals(&rows, &[(3, 8 << 20), (1000, 17 << 20)]);

        assert!(text.contains("(5.0: met)"), "{text}");
        assert!(text.contains("(200: met)"), "{text}");
        assert!(text.contains("(17.0: missed)"), "{text}");
    }
}
