mod mesh;
mod probe;

use std::{
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use self::{mesh::Mesh, probe::Probe};
use crate::{build, exec, netns, setup, stop, workspace};

/// Show a mesh of three nodes at work on this machine, and what the death of one costs the others.
///
/// Builds everything, runs three real daemons in network namespaces, pings between all of them, and
/// then kills and revives node 3 under iperf3 and a probe of 1,000 packets/s between nodes 1 and 2.
/// Takes under a minute after the build, leaves nothing behind (Ctrl-C neither), and fails if a
/// packet of the probe is lost or node 3 does not come back in time. Needs root.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Show this binary of the daemon instead of building one.
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
}

const TRAFFIC: Duration = Duration::from_secs(12);
const KILLED_AT: Duration = Duration::from_secs(4);
const BACK_AT: Duration = Duration::from_secs(8);
/// The promise: a node that returns is reachable again within this time.
const RETURN_LIMIT: Duration = Duration::from_secs(3);
/// Far under the cap of the underlay: what the probe loses is not lost in a full queue.
const BANDWIDTH: &str = "300M";

/// Node 3 as an index.
const VICTIM: usize = 2;

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        use setup::{BPFTOOL, IP, IPERF3, NSENTER, PING, SETPRIV, TC};
        workspace::need_root("the demonstration (it makes network namespaces)")?;
        setup::tools("the demonstration", &[BPFTOOL, IP, IPERF3, NSENTER, PING, SETPRIV, TC])?;
        let daemon = match self.daemon {
            Some(daemon) => daemon
                .canonicalize()
                .with_context(|| format!("failed to find {}", daemon.display()))?,
            None => build::daemon(true)?,
        };
        setup::bpffs()?;
        show(&daemon)
    }
}

fn show(daemon: &Path) -> Result<()> {
    println!("\nThree nodes around a router, each in a network namespace");
    let mut mesh = Mesh::build("demo", daemon)?;
    let shown = converge(&mut mesh).and_then(|()| ping_all(&mesh)).and_then(|()| ride(&mut mesh));
    if shown.as_ref().is_err_and(|error| !error.is::<stop::Interrupted>()) {
        mesh.print_logs();
    }
    mesh.lab.close()?;
    println!("cleaned up: no namespace, device, pin or process is left");
    let verdict = shown?;
    println!("{}", verdict.line);
    if !verdict.broken.is_empty() {
        bail!("a promise is broken: {}", verdict.broken.join("; "));
    }
    Ok(())
}

fn converge(mesh: &mut Mesh) -> Result<()> {
    let start = Instant::now();
    for at in 0..mesh.nodes.len() {
        mesh.start(at)?;
    }
    mesh.wait_converged(Duration::from_secs(20))?;
    println!("converged {:.1} s after the first start", start.elapsed().as_secs_f64());

    println!("\n# marengo members (on node-1)");
    print!("{}", mesh.ask(0, &["members"])?.context("node-1 does not answer any more")?);
    let peers = mesh.nodes[0].pins.join("peers");
    println!("\n# bpftool map dump pinned {}", peers.display());
    print!(
        "{}",
        exec::capture(exec::command("bpftool").args(["map", "dump", "pinned"]).arg(&peers))?
    );
    mesh.address_bridges()
}

fn ping_all(mesh: &Mesh) -> Result<()> {
    println!("\n# ping between all pairs");
    for from in &mesh.nodes {
        for to in &mesh.nodes {
            if from.name() == to.name() {
                continue;
            }
            stop::check()?;
            let mut ping = netns::command(&from.namespace, "ping");
            ping.args(["-n", "-c", "3", "-i", "0.2", "-W", "1"]).arg(to.overlay().to_string());
            let said = exec::capture(&mut ping)
                .with_context(|| format!("{} does not reach {}", from.name(), to.name()))?;
            println!("{} -> {} ({}): {}", from.name(), to.name(), to.overlay(), ping_line(&said));
        }
    }
    Ok(())
}

/// The two lines of ping's summary that matter, as one.
fn ping_line(said: &str) -> String {
    said.lines()
        .filter(|line| line.contains("packet loss") || line.starts_with("rtt"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// How the ride went.
struct Verdict {
    line: String,
    broken: Vec<String>,
}

/// Traffic from node 1 to node 2 while node 3 dies and returns.
fn ride(mesh: &mut Mesh) -> Result<Verdict> {
    println!(
        "\n# iperf3 and a probe of 1,000 packets/s from node-1 to node-2; node-3 is killed at second \
         {} and returns at second {}",
        KILLED_AT.as_secs(),
        BACK_AT.as_secs()
    );
    let server = mesh.nodes[1].overlay().to_string();
    let listening = lines(
        mesh.spawn(1, "iperf3 -s", &["iperf3", "-s", "-1", "--forceflush", "-B", &server])?
            .stdout
            .take(),
    )?;
    stop::wait_for("iperf3's server", Duration::from_secs(5), || {
        Ok(listening.try_recv().ok().filter(|(_, line)| line.contains("listening")))
    })?;
    let probe = Probe::start(mesh.nodes[0].probe_end(), mesh.nodes[1].probe_end())?;
    let seconds = TRAFFIC.as_secs().to_string();
    let start = Instant::now();
    let client = [
        "iperf3",
        "-c",
        &server,
        "-t",
        &seconds,
        "-i",
        "1",
        "-b",
        BANDWIDTH,
        "-f",
        "m",
        "--forceflush",
    ];
    let iperf = lines(mesh.spawn(0, "iperf3 -c", &client)?.stdout.take())?;

    let mut broken = Vec::new();
    let mut outage = Outage::default();
    let mut second = 0;
    loop {
        stop::check()?;
        outage.act(mesh, start)?;
        while let Ok((_, line)) = iperf.try_recv() {
            let Some(speed) = iperf_speed(&line) else { continue };
            second += 1;
            let state = mesh.state_of(VICTIM, 0)?;
            println!(
                "second {second:>2}: {speed:>5.0} Mbit/s, node-3 is {state}, probe lost {}",
                probe.lost_so_far()
            );
            if speed < 1.0 {
                broken.push(format!("no traffic in second {second}"));
            }
        }
        if let Some(status) = mesh.lab.ended("iperf3 -c")? {
            if !status.success() {
                broken.push(format!("iperf3 failed ({status})"));
            }
            break;
        }
        if start.elapsed() > TRAFFIC + Duration::from_secs(8) {
            broken.push("iperf3 did not come to its end".to_owned());
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let answered = outage.wait_answer(mesh)?;
    let outcome = probe.finish();

    if outcome.lost > 0 {
        let first = outcome.first_lost.unwrap_or_default().as_secs_f64();
        broken.push(format!("the probe lost {} packets, the first at {first:.3} s", outcome.lost));
    }
    if answered.is_none_or(|answered| answered > RETURN_LIMIT) {
        broken.push(format!("node-3 was not back within {} s", RETURN_LIMIT.as_secs()));
    }
    if let Err(error) = mesh.wait_converged(Duration::from_secs(10)) {
        stop::check()?;
        broken.push(format!("after the return: {error:#}"));
    }
    if !broken.is_empty() {
        mesh.print_logs();
    }
    let back = answered.map_or_else(
        || "did not answer after its return".to_owned(),
        |answered| format!("answered {:.1} s after its return", answered.as_secs_f64()),
    );
    let line = format!("probe: sent {}, lost {}; node 3 {back}", outcome.sent, outcome.lost);
    Ok(Verdict { line, broken })
}

/// The death of node 3 and its return.
#[derive(Default)]
struct Outage {
    killed: bool,
    returned: Option<Return>,
}

struct Return {
    at: Instant,
    ping: Receiver<(Instant, String)>,
}

impl Outage {
    /// Does what is due.
    fn act(&mut self, mesh: &mut Mesh, start: Instant) -> Result<()> {
        let elapsed = start.elapsed();
        if !self.killed && elapsed >= KILLED_AT {
            mesh.lab.kill(&mesh.nodes[VICTIM].process())?;
            mesh.set_cable(VICTIM, false)?;
            self.killed = true;
            println!("           node-3 is killed and its link cut");
        }
        if self.killed && self.returned.is_none() && elapsed >= BACK_AT {
            mesh.set_cable(VICTIM, true)?;
            mesh.start(VICTIM)?;
            let at = Instant::now();
            let victim = mesh.nodes[VICTIM].overlay().to_string();
            let ping = ["ping", "-n", "-i", "0.1", "-W", "0.5", &victim];
            let ping = lines(mesh.spawn(0, "ping", &ping)?.stdout.take())?;
            self.returned = Some(Return { at, ping });
            println!("           node-3's link is back and its daemon started");
        }
        Ok(())
    }

    /// How long after its return node 3 first answered node 1.
    fn wait_answer(&self, mesh: &mut Mesh) -> Result<Option<Duration>> {
        let Some(returned) = &self.returned else {
            return Ok(None);
        };
        let answer = stop::wait_for("node-3's answer", Duration::from_secs(5), || {
            Ok(returned.ping.try_iter().find(|(_, line)| line.contains("bytes from")))
        });
        stop::check()?;
        mesh.lab.kill("ping")?;
        Ok(answer.ok().map(|(at, _)| at.saturating_duration_since(returned.at)))
    }
}

/// The lines that a process prints, each with the moment of its arrival.
fn lines(output: Option<impl Read + Send + 'static>) -> Result<Receiver<(Instant, String)>> {
    let output = output.context("the output of a process is not piped")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// The Mbit/s of an interval line of iperf3; nothing for its other lines.
fn iperf_speed(line: &str) -> Option<f64> {
    if line.contains("sender") || line.contains("receiver") {
        return None;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let unit = words.iter().position(|word| *word == "Mbits/sec")?;
    words.get(unit.checked_sub(1)?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_read_from_interval_lines_alone() {
        let interval = "[  5]   3.00-4.00   sec  35.8 MBytes   300 Mbits/sec    0    442 KBytes";
        let total = "[  5]   0.00-12.00  sec   429 MBytes   300 Mbits/sec    0             sender";

        assert_eq!(iperf_speed(interval), Some(300.0));
        assert_eq!(iperf_speed(total), None);
        assert_eq!(iperf_speed("[ ID] Interval           Transfer     Bitrate"), None);
    }

    #[test]
    fn ping_summary_becomes_one_line() {
        let said = "PING 172.42.0.20\n3 packets transmitted, 3 received, 0% packet loss, time 4ms\n\
                    rtt min/avg/max/mdev = 0.1/0.2/0.3/0.0 ms\n";

        assert_eq!(
            ping_line(said),
            "3 packets transmitted, 3 received, 0% packet loss, time 4ms, \
             rtt min/avg/max/mdev = 0.1/0.2/0.3/0.0 ms"
        );
    }
}
