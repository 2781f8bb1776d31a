//! Some nodes around a router.
//!
//! The underlay is a router with a /31 and a /127 to each node, so it has no layer-2 segment in which
//! a frame could circle; every veth has a rate cap before it is up, in case an overlay does.

use std::{sync::Arc, time::Duration};

use crate::{
    diagnostics::Subject,
    netns::Namespace,
    node::Node,
    sandbox::{Sandbox, TEST_LIMIT},
    wait,
};

/// How long a mesh may take until everybody knows everybody.
const CONVERGE_LIMIT: Duration = Duration::from_secs(15);

/// The router and the nodes. Nodes are numbered from 1.
#[derive(Debug)]
pub struct Mesh {
    // Before the sandbox: daemons end before their namespaces go.
    nodes: Vec<Node>,
    pub router: Namespace,
    sandbox: Arc<Sandbox>,
}

impl Mesh {
    /// Makes the underlay and its nodes, without daemons.
    pub fn new(nodes: u8) -> Self {
        Self::within(nodes, TEST_LIMIT)
    }

    /// As [`Mesh::new`], for a test that takes longer than most.
    pub fn within(nodes: u8, limit: Duration) -> Self {
        let sandbox = Arc::new(Sandbox::open(limit));
        let router = sandbox.namespace("router");
        sandbox.add_subject(Subject {
            name: "router".to_owned(),
            namespace: router.clone(),
            node: None,
        });
        router.sysctl("net.ipv4.ip_forward", "1");
        router.sysctl("net.ipv6.conf.all.forwarding", "1");
        let nodes = (1..=nodes).map(|number| Node::plug_in(&sandbox, &router, number)).collect();
        Self { nodes, router, sandbox }
    }

    /// A mesh whose daemons run and know each other, and whose bridges have addresses.
    pub fn running(nodes: u8) -> Self {
        let mesh = Self::new(nodes);
        mesh.start_all(&[]);
        mesh
    }

    /// Starts every daemon, all but the first joining the first; waits until they know each other,
    /// and gives the bridges their addresses.
    pub fn start_all(&self, args: &[&str]) {
        for node in &self.nodes {
            let seed = self.node(1).seed();
            let mut args = args.to_vec();
            if node.number != 1 {
                args.extend(["-j", &seed]);
            }
            node.launch(&[], &args);
        }
        self.wait_converged();
        for node in &self.nodes {
            node.address_bridge();
        }
    }

    /// Waits until every running daemon sees every other alive and in its maps.
    pub fn wait_converged(&self) -> Duration {
        let running: Vec<&Node> = self.nodes.iter().filter(|node| node.is_running()).collect();
        let names: Vec<String> = running.iter().map(|node| node.name()).collect();
        wait::until("every node knows every node", CONVERGE_LIMIT, || {
            running.iter().all(|node| {
                let peers: Vec<&String> =
                    names.iter().filter(|name| **name != node.name()).collect();
                let view = node.view();
                assert!(node.is_running(), "the daemon of {} has ended", node.name());
                view.alive() == names
                    && view.peer_names().iter().collect::<Vec<_>>() == peers
                    && view.is_converged()
            })
        })
    }

    /// A node, numbered from 1.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }
}
