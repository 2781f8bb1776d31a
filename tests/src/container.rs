//! A container on a node's bridge, as far as the network can tell.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use crate::{
    diagnostics::Subject,
    netns::Namespace,
    node::{BRIDGE, Node, cap},
    sandbox::Sandbox,
};

/// A namespace with a veth in a node's bridge.
#[derive(Debug)]
pub struct Container {
    pub namespace: Namespace,
    /// The end of the veth that is in the bridge.
    pub port: String,
    node: u8,
    number: u8,
}

impl Container {
    pub(crate) fn attach(sandbox: &Arc<Sandbox>, node: &Node, number: u8) -> Self {
        let what = format!("{}c{number}", node.number);
        let namespace = sandbox.namespace(&what);
        sandbox.add_subject(Subject {
            name: format!("container {number} of {}", node.name()),
            namespace: namespace.clone(),
            node: None,
        });
        let container = Self { namespace, port: format!("c{number}"), node: node.number, number };
        let port = &container.port;
        let mtu = node.namespace.link(BRIDGE).and_then(|link| link["mtu"].as_u64());
        let mtu = mtu.unwrap_or_else(|| panic!("{} has no bridge", node.name()));
        node.namespace.ip(&format!(
            "link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            container.namespace.name()
        ));
        cap(&node.namespace, port);
        cap(&container.namespace, "eth0");
        node.namespace.ip(&format!("link set {port} master {BRIDGE}\nlink set {port} up"));
        container.namespace.ip(&format!(
            "addr add {}/24 brd + dev eth0\naddr add {}/64 dev eth0 nodad\nlink set eth0 up",
            container.address(),
            container.address6(),
        ));
        container
    }

    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, 0, 100 + 10 * self.node + self.number)
    }

    pub fn address6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd42, 0, 0, 0, 0, 0, u16::from(self.node), u16::from(self.number))
    }
}
