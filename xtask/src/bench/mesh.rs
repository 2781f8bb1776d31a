//! A hundred real nodes on one machine: how fast they find each other, whether every bridge reaches
//! every other, how soon one that lost power is forgotten, and what the others cost meanwhile.

mod maps;
mod net;
mod pings;
mod report;
mod usage;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::Ipv4Addr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use self::{
    maps::PeerMaps,
    net::{NeighbourRoom, Node},
    report::Figures,
    usage::Usage,
};
use super::document;
use crate::{build, lab::Lab, setup, stop, workspace};

/// A hundred real nodes on one machine: joining, reaching, losing one, and what it costs to be idle.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// How many nodes.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(3..=200))]
    nodes: u16,
    /// For how many seconds the idle daemons are watched.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    idle: u64,
    /// The daemon to measure, in place of the one that is built here.
    #[arg(long)]
    daemon: Option<PathBuf>,
    /// Write the result into docs/benchmarks.md.
    #[arg(long)]
    write: bool,
}

/// How long anything may take before the benchmark gives up.
const JOIN_LIMIT: Duration = Duration::from_mins(3);
const LOSS_LIMIT: Duration = Duration::from_mins(1);
/// After joining and pinging, until nodes count as idle: exchanges have found their slowest pace.
const SETTLE: Duration = Duration::from_secs(40);
/// After a loss, how long the others are watched.
const AFTERMATH: Duration = Duration::from_secs(10);
/// Between two looks at the maps.
const LOOK_EVERY: Duration = Duration::from_millis(25);

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        use setup::{IP, NSENTER, SETPRIV, TC};
        workspace::need_root("the benchmark (it makes namespaces and daemons)")?;
        setup::tools("the benchmark", &[IP, NSENTER, SETPRIV, TC])?;
        let daemon = match &self.daemon {
            Some(daemon) => daemon.clone(),
            None => build::daemon(true)?,
        };
        setup::bpffs()?;

        let mut lab = Lab::open("mesh")?;
        let room = NeighbourRoom::make(self.nodes)?;
        let measured = self.measure(&mut lab, &daemon);
        let closed = lab.close();
        drop(room);
        let figures = measured?;
        closed?;

        let section = figures.section(&document::circumstances()?);
        print!("{}", section.text);
        if self.write {
            println!("\nwritten to {}", document::write("bench mesh", &section.text)?.display());
        }
        ensure!(section.missed == 0, "goals that were missed: {}", section.missed);
        Ok(())
    }

    fn measure(&self, lab: &mut Lab, daemon: &Path) -> Result<Figures> {
        let load = fs::read_to_string("/proc/loadavg").context("failed to read the load")?;
        eprintln!("making {} nodes", self.nodes);
        let (router, nodes) = net::build(lab, self.nodes)?;
        let mesh = join(lab, daemon, nodes);
        // Dead first: a hundred goodbyes at once are not what is measured.
        let measured = mesh.and_then(|mesh| self.measure_mesh(lab, &router, mesh, load));
        let killed = (1..=self.nodes).map(|number| lab.kill(&net::process(number)));
        // One that was not started, or is dead already, is no failure.
        drop(killed.collect::<Vec<Result<()>>>());
        measured
    }

    fn measure_mesh(
        &self,
        lab: &mut Lab,
        router: &str,
        mut mesh: Mesh,
        load: String,
    ) -> Result<Figures> {
        eprintln!("joined after {:.1} s; pinging", mesh.joined.as_secs_f64());
        net::address_bridges(&mesh.nodes)?;
        let pings = pings::all_pairs(&mesh.nodes)?;
        eprintln!("{pings:?}; waiting until all is quiet");
        wait(SETTLE)?;
        eprintln!("watching for {} s", self.idle);
        let before = mesh.usages()?;
        let start = Instant::now();
        wait(Duration::from_secs(self.idle))?;
        let (after, watched) = (mesh.usages()?, start.elapsed());
        let false_downs = mesh.downs();
        eprintln!("taking one away");
        let gone = mesh.lose_one(lab, router)?;
        wait(AFTERMATH)?;
        ensure!(mesh.all_hold()?, "somebody else was lost, too");
        Ok(Figures {
            nodes: self.nodes,
            load,
            started: mesh.started,
            first_full: mesh.first_full,
            joined: mesh.joined,
            pings,
            watched,
            usages: before.into_iter().zip(after).collect(),
            false_downs,
            gone,
            // One line in each log that was left tells of the one that is gone.
            other_downs: mesh.downs().saturating_sub(false_downs + mesh.nodes.len()),
        })
    }
}

/// The nodes that run.
struct Mesh {
    nodes: Vec<Node>,
    pids: Vec<u32>,
    maps: Vec<PeerMaps>,
    /// From the first start until every daemon had its maps, and until the first held all.
    started: Duration,
    first_full: Duration,
    /// Until every daemon listed all, and all maps held all peers.
    joined: Duration,
}

/// Starts all daemons at once, and waits until they know each other.
fn join(lab: &mut Lab, daemon: &Path, nodes: Vec<Node>) -> Result<Mesh> {
    let start = Instant::now();
    let mut pids = Vec::new();
    for node in &nodes {
        stop::check()?;
        pids.push(net::start(lab, daemon, node, &nodes[0])?);
    }
    let mut maps: Vec<Option<PeerMaps>> = nodes.iter().map(|_| None).collect();
    let (mut started, mut first_full) = (None, None);
    let joined = stop::wait_for_every("all nodes to know all", JOIN_LIMIT, LOOK_EVERY, || {
        let mut full = 0;
        for (node, maps) in nodes.iter().zip(&mut maps) {
            if maps.is_none() {
                if let Some(status) = lab.ended(&node.process())? {
                    bail!("{} ended early ({status}): see {}", node.process(), tail(&node.log));
                }
                *maps = PeerMaps::open(&node.pins)?;
            }
            let Some(maps) = maps else { continue };
            full += usize::from(maps.hold(&others(&nodes, node))?);
        }
        if started.is_none() && maps.iter().all(Option::is_some) {
            started = Some(start.elapsed());
        }
        if first_full.is_none() && full > 0 {
            first_full = Some(start.elapsed());
        }
        // The daemons are asked only when their maps are full: answers cost them time.
        if full < nodes.len() {
            return Ok(None);
        }
        let time = start.elapsed();
        let all = nodes.iter().all(|node| lists_all(node, nodes.len()).unwrap_or_default());
        Ok(all.then_some(time))
    })?;
    Ok(Mesh {
        nodes,
        pids,
        maps: maps.into_iter().flatten().collect(),
        started: started.unwrap_or(joined),
        first_full: first_full.unwrap_or(joined),
        joined,
    })
}

impl Mesh {
    fn usages(&self) -> Result<Vec<Usage>> {
        self.pids.iter().map(|pid| Usage::of(*pid)).collect()
    }

    /// How often anybody was declared down, by the logs.
    fn downs(&self) -> usize {
        let count = |node: &Node| {
            let log = fs::read_to_string(&node.log).unwrap_or_default();
            log.lines().filter(|line| line.contains("member-down")).count()
        };
        self.nodes.iter().map(count).sum()
    }

    /// Takes the power of the last node, and waits until it is in no other's maps.
    fn lose_one(&mut self, lab: &mut Lab, router: &str) -> Result<Duration> {
        let lost = self.nodes.pop().context("nobody is left")?;
        self.maps.pop();
        self.pids.pop();
        let start = Instant::now();
        lab.kill(&lost.process())?;
        net::cut(router, &lost)?;
        let left = self.nodes.len() - 1;
        stop::wait_for_every("the lost node to be forgotten", LOSS_LIMIT, LOOK_EVERY, || {
            for maps in &self.maps {
                if !maps.lack(lost.underlay(), left)? {
                    return Ok(None);
                }
            }
            Ok(Some(start.elapsed()))
        })
    }

    fn all_hold(&self) -> Result<bool> {
        for (node, maps) in self.nodes.iter().zip(&self.maps) {
            if !maps.hold(&others(&self.nodes, node))? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn others(nodes: &[Node], than: &Node) -> BTreeSet<Ipv4Addr> {
    nodes.iter().filter(|node| node.number != than.number).map(Node::underlay).collect()
}

/// Whether a daemon lists so many members, all alive.
fn lists_all(node: &Node, count: usize) -> Option<bool> {
    let mut stream = UnixStream::connect(&node.socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let request = b"GET /v1/members HTTP/1.1\r\nhost: marengo\r\nconnection: close\r\n\r\n";
    stream.write_all(request).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let members: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    let members = members.as_array()?;
    Some(members.len() == count && members.iter().all(|member| member["state"] == "alive"))
}

/// The end of a log.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(3)..].join("; ")
}

fn wait(time: Duration) -> Result<()> {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        stop::check()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
