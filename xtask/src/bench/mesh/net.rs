//! The hosts of the benchmark: one router, and behind each of its cables a namespace with a daemon.
//!
//! The underlay is routed, a /31 to each node, so it has no layer-2 segment in which a frame could
//! circle; every veth has a rate cap before it is up, in case an overlay does.

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result};

use crate::{exec, lab::Lab, netns, stop};

/// What one cable carries: enough for a flooded frame's ninety-nine copies at once.
const CAP: &str = "tbf rate 50mbit burst 256k latency 50ms";
const GOSSIP_PORT: u16 = 7946;
/// Shared by all namespaces of a machine: 100 nodes that all know 99 neighbours need more than the
/// kernel's 1,024.
const NEIGHBOURS: &str = "/proc/sys/net/ipv4/neigh/default/gc_thresh";

/// A host: a namespace, and where its daemon keeps its things.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) number: u16,
    pub(super) namespace: String,
    pub(super) pins: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) log: PathBuf,
}

impl Node {
    pub(super) fn name(&self) -> String {
        format!("node-{}", self.number)
    }

    /// In the network that RFC 2544 gives to benchmarks.
    pub(super) fn underlay(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 1).to_bits() + 2 * u32::from(self.number))
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.underlay().to_bits() - 1)
    }

    pub(super) fn overlay(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 42, 0, 0).to_bits() + u32::from(self.number))
    }

    /// The name of the router's device that leads to this node.
    fn cable(&self) -> String {
        format!("to-{}", self.number)
    }

    pub(super) fn process(&self) -> String {
        process(self.number)
    }
}

/// What the lab calls a node's daemon.
pub(super) fn process(number: u16) -> String {
    format!("the daemon of node-{number}")
}

/// Makes the underlay and its nodes, without daemons.
pub(super) fn build(lab: &mut Lab, count: u16) -> Result<(String, Vec<Node>)> {
    let router = lab.add_namespace("router")?;
    netns::inside(&router, || {
        // A file of the namespace that the thread is in.
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("failed to turn on forwarding")
    })?;
    let mut nodes = Vec::new();
    for number in 1..=count {
        stop::check()?;
        let namespace = lab.add_namespace(&number.to_string())?;
        let run = lab.run_folder();
        nodes.push(Node {
            number,
            namespace,
            pins: lab.pins().join(number.to_string()),
            socket: run.join(format!("{number}.sock")),
            log: run.join(format!("{number}.log")),
        });
    }
    let (mut cables, mut caps, mut addresses) = (String::new(), String::new(), String::new());
    for node in &nodes {
        let (cable, namespace) = (node.cable(), &node.namespace);
        writeln!(cables, "link add {cable} type veth peer name eth0 netns {namespace}")?;
        writeln!(caps, "qdisc add dev {cable} root {CAP}")?;
        writeln!(addresses, "addr add {}/31 dev {cable}\nlink set {cable} up", node.gateway())?;
    }
    netns::ip_batch(&router, &cables)?;
    netns::feed(netns::command(&router, "tc").args(["-batch", "-"]), &caps)?;
    for node in &nodes {
        stop::check()?;
        let mut cap = netns::command(&node.namespace, "tc");
        cap.args(["qdisc", "add", "dev", "eth0", "root"]).args(CAP.split(' '));
        exec::capture(&mut cap)?;
        let (address, gateway) = (node.underlay(), node.gateway());
        netns::ip_batch(
            &node.namespace,
            &format!(
                "addr add {address}/31 dev eth0\nlink set eth0 up\n\
                 route add default via {gateway}\n"
            ),
        )?;
    }
    netns::ip_batch(&router, &addresses)?;
    Ok((router, nodes))
}

/// Starts a node's daemon; it joins by `seed`, if it is not itself the seed.
pub(super) fn start(lab: &mut Lab, daemon: &Path, node: &Node, seed: &Node) -> Result<u32> {
    let log = File::create(&node.log)
        .with_context(|| format!("failed to make {}", node.log.display()))?;
    let mut server = netns::command(&node.namespace, &daemon.to_string_lossy());
    server.env("MARENGO_CONFIG", "/dev/null");
    server.arg("--socket").arg(&node.socket).args(["server", "--node-name", &node.name()]);
    server.arg("--pin-dir").arg(&node.pins);
    server.arg("--state-dir").arg(node.socket.with_extension("state"));
    if node.number != seed.number {
        server.arg("--join").arg(format!("{}:{GOSSIP_PORT}", seed.underlay()));
    }
    server.stdin(Stdio::null());
    server.stderr(log.try_clone().context("failed to share a log file")?).stdout(log);
    lab.start(&node.process(), &mut server).map(|child| child.id())
}

/// Gives the bridges their addresses in the overlay.
pub(super) fn address_bridges(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        let line = format!("addr add {}/16 brd + dev marengo\n", node.overlay());
        netns::ip_batch(&node.namespace, &line)?;
    }
    Ok(())
}

/// Cuts a node's cable: nothing passes in either direction.
pub(super) fn cut(router: &str, node: &Node) -> Result<()> {
    netns::ip_batch(router, &format!("link set {} down\n", node.cable()))
}

/// Room for the neighbours of all nodes; what the machine had comes back when it is dropped.
#[derive(Debug)]
pub(super) struct NeighbourRoom {
    before: Vec<(String, String)>,
}

impl NeighbourRoom {
    pub(super) fn make(nodes: u16) -> Result<Self> {
        let entries = u32::from(nodes) * u32::from(nodes) * 2;
        let mut room = Self { before: Vec::new() };
        // The largest first: the kernel wants them in order.
        for (which, entries) in [(3, entries * 2), (2, entries), (1, entries)] {
            let path = format!("{NEIGHBOURS}{which}");
            let before =
                fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
            if before.trim().parse().is_ok_and(|before: u32| before < entries) {
                fs::write(&path, entries.to_string())
                    .with_context(|| format!("failed to write {path}"))?;
                room.before.push((path, before));
            }
        }
        Ok(room)
    }
}

impl Drop for NeighbourRoom {
    fn drop(&mut self) {
        for (path, before) in self.before.iter().rev() {
            if let Err(error) = fs::write(path, before) {
                eprintln!("failed to set {path} back to {}: {error}", before.trim());
            }
        }
    }
}
