//! Three nodes around a router: the underlay, the daemons, and what one asks them.
//!
//! The underlay is a router with a /31 to each node, so it has no layer-2 segment in which a frame
//! could circle; every veth has a rate cap before it is up, in case an overlay does.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::probe;
use crate::{exec, lab::Lab, netns, stop};

const CAP: &str = "tbf rate 1gbit burst 256k latency 50ms";
const GOSSIP_PORT: u16 = 7946;

/// The router, the nodes and their daemons.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) lab: Lab,
    pub(crate) nodes: Vec<Node>,
    router: String,
    daemon: PathBuf,
}

/// A host of the mesh: a namespace with one underlay device and one daemon.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    number: u8,
    pub(crate) namespace: String,
    pub(crate) pins: PathBuf,
    socket: PathBuf,
    log: PathBuf,
}

impl Node {
    fn new(lab: &mut Lab, number: u8) -> Result<Self> {
        let namespace = lab.add_namespace(&number.to_string())?;
        let run = lab.run_folder();
        Ok(Self {
            number,
            namespace,
            pins: lab.pins().join(number.to_string()),
            socket: run.join(format!("{number}.sock")),
            log: run.join(format!("{number}.log")),
        })
    }

    pub(crate) fn name(&self) -> String {
        format!("node-{}", self.number)
    }

    fn underlay(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, 2 * self.number + 1)
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, 2 * self.number)
    }

    /// The name of the router's device that leads to this node.
    fn cable(&self) -> String {
        format!("to-node-{}", self.number)
    }

    pub(crate) fn overlay(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 42, 0, 10 * self.number)
    }

    pub(crate) fn probe_end(&self) -> probe::End<'_> {
        probe::End { namespace: &self.namespace, address: self.overlay() }
    }

    pub(crate) fn process(&self) -> String {
        format!("the daemon of {}", self.name())
    }
}

impl Mesh {
    /// Makes the underlay and its nodes, without daemons.
    pub(crate) fn build(kind: &'static str, daemon: &Path) -> Result<Self> {
        let mut lab = Lab::open(kind)?;
        let router = lab.add_namespace("router")?;
        netns::inside(&router, || {
            // A file of the namespace that the thread is in.
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("failed to turn on forwarding")
        })?;
        let mut nodes = Vec::new();
        for number in 1..=3 {
            stop::check()?;
            let node = Node::new(&mut lab, number)?;
            plug_in(&router, &node)?;
            nodes.push(node);
        }
        Ok(Self { lab, nodes, router, daemon: daemon.into() })
    }

    /// Starts the daemon of a node; all but the first join the first.
    pub(crate) fn start(&mut self, at: usize) -> Result<()> {
        let node = &self.nodes[at];
        let log = File::options()
            .create(true)
            .append(true)
            .open(&node.log)
            .with_context(|| format!("failed to open {}", node.log.display()))?;
        let mut server = netns::command(&node.namespace, &self.daemon.to_string_lossy());
        server.arg("--socket").arg(&node.socket).args(["server", "--node-name", &node.name()]);
        server.arg("--pin-dir").arg(&node.pins);
        server.arg("--state-dir").arg(node.socket.with_extension("state"));
        if at > 0 {
            let seed = self.nodes[0].underlay();
            server.arg("--join").arg(format!("{seed}:{GOSSIP_PORT}"));
        }
        server.stdin(Stdio::null());
        server.stderr(log.try_clone().context("failed to share a log file")?).stdout(log);
        self.lab.start(&node.process(), &mut server).map(drop)
    }

    /// Starts a process in a node's namespace; what it prints can be read.
    pub(crate) fn spawn(&mut self, at: usize, name: &str, line: &[&str]) -> Result<&mut Child> {
        let [program, args @ ..] = line else { bail!("no program to run as {name}") };
        let mut command = netns::command(&self.nodes[at].namespace, program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        self.lab.start(name, &mut command)
    }

    /// Cuts a node's cable at the router, or mends it.
    pub(crate) fn set_cable(&self, at: usize, up: bool) -> Result<()> {
        let cable = self.nodes[at].cable();
        let state = if up { "up" } else { "down" };
        netns::ip_batch(&self.router, &format!("link set {cable} {state}\n"))
    }

    /// Gives each node's bridge its address.
    pub(crate) fn address_bridges(&self) -> Result<()> {
        for node in &self.nodes {
            let address = node.overlay();
            let line = format!("addr add {address}/24 brd + dev marengo\nlink set marengo up\n");
            netns::ip_batch(&node.namespace, &line)?;
        }
        Ok(())
    }

    /// What a client subcommand of a node's daemon prints; nothing while the daemon does not answer.
    pub(crate) fn ask(&self, at: usize, args: &[&str]) -> Result<Option<String>> {
        let mut client = exec::command(&self.daemon.to_string_lossy());
        client.arg("--socket").arg(&self.nodes[at].socket).args(args);
        let output = exec::capture_any(&mut client)?;
        if output.status.success() {
            Ok(Some(String::from_utf8(output.stdout).context("the daemon's answer is not UTF-8")?))
        } else {
            Ok(None)
        }
    }

    fn ask_json(&self, at: usize, what: &str) -> Result<Option<Value>> {
        let Some(answer) = self.ask(at, &[what, "--json"])? else {
            return Ok(None);
        };
        serde_json::from_str(&answer)
            .map(Some)
            .with_context(|| format!("`marengo {what} --json` did not print JSON: {answer}"))
    }

    /// The state of one node as another's daemon sees it.
    pub(crate) fn state_of(&self, whose: usize, seen_by: usize) -> Result<String> {
        let members = self.ask_json(seen_by, "members")?;
        Ok(members
            .and_then(|members| state_in(&members, &self.nodes[whose].name()))
            .unwrap_or_else(|| "unknown".to_owned()))
    }

    /// Waits until every daemon sees every node alive and has put that into its kernel.
    pub(crate) fn wait_converged(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            stop::check()?;
            for node in &self.nodes {
                if let Some(status) = self.lab.ended(&node.process())? {
                    bail!("{} ended early ({status})", node.process());
                }
            }
            // Not `all`: an error of one must not pass for "not yet".
            let converged = (0..self.nodes.len()).map(|at| self.is_converged(at));
            if converged.collect::<Result<Vec<bool>>>()?.into_iter().all(|converged| converged) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("the nodes did not converge within {} s", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_converged(&self, at: usize) -> Result<bool> {
        let (Some(members), Some(status)) =
            (self.ask_json(at, "members")?, self.ask_json(at, "status")?)
        else {
            return Ok(false);
        };
        let all_alive = self
            .nodes
            .iter()
            .all(|node| state_in(&members, &node.name()).is_some_and(|state| state == "alive"));
        Ok(all_alive && status["converged"] == true)
    }

    /// Prints the end of each daemon's log.
    pub(crate) fn print_logs(&self) {
        for node in &self.nodes {
            let log = fs::read_to_string(&node.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines.len().saturating_sub(25);
            eprintln!("--- log of {}, last lines", node.name());
            for line in &lines[end..] {
                eprintln!("{line}");
            }
        }
    }
}

fn plug_in(router: &str, node: &Node) -> Result<()> {
    let (cable, namespace) = (node.cable(), &node.namespace);
    let (gateway, address) = (node.gateway(), node.underlay());
    netns::ip_batch(
        router,
        &format!("link add {cable} type veth peer name eth0 netns {namespace}\n"),
    )?;
    for (namespace, device) in [(router, cable.as_str()), (namespace.as_str(), "eth0")] {
        let mut cap = netns::command(namespace, "tc");
        cap.args(["qdisc", "add", "dev", device, "root"]).args(CAP.split(' '));
        exec::capture(&mut cap)?;
    }
    netns::ip_batch(router, &format!("addr add {gateway}/31 dev {cable}\nlink set {cable} up\n"))?;
    netns::ip_batch(
        namespace,
        &format!(
            "addr add {address}/31 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n"
        ),
    )
}

fn state_in(members: &Value, name: &str) -> Option<String> {
    let member = members.as_array()?.iter().find(|member| member["name"] == name)?;
    member["state"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn underlay_carries_a_probe_between_nodes_and_loses_what_a_cut_cable_loses() {
        if !crate::lab::possible_here() {
            return;
        }
        let mut mesh = Mesh::build("test-mesh", Path::new("/bin/false")).unwrap();
        let end = |at: usize| probe::End {
            namespace: &mesh.nodes[at].namespace,
            address: mesh.nodes[at].underlay(),
        };
        let (whole, cut) = (
            probe::Probe::start(end(0), end(1)).unwrap(),
            probe::Probe::start(end(0), end(2)).unwrap(),
        );
        std::thread::sleep(Duration::from_millis(500));
        mesh.set_cable(2, false).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let (whole, cut) = (whole.finish(), cut.finish());

        assert!(whole.sent >= 900, "{whole:?}");
        assert_eq!(whole.lost, 0, "{whole:?}");
        // It went on being sent while the other was counted.
        let first = cut.first_lost.unwrap().as_millis();
        assert!((400..=800).contains(&first) && cut.lost > 400, "{cut:?}");
        mesh.lab.close().unwrap();
    }

    #[test]
    fn state_is_found_by_name() {
        let members = serde_json::json!([
            {"name": "node-1", "state": "alive"},
            {"name": "node-3", "state": "suspect"},
        ]);

        assert_eq!(state_in(&members, "node-3"), Some("suspect".to_owned()));
        assert_eq!(state_in(&members, "node-2"), None);
    }
}
