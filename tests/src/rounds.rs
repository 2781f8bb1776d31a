//! Everything that makes a daemon write to the kernel, and whether all is right afterwards: the stage
//! of the sweeps over faults.

use std::{fmt, thread, time::Duration};

use marengo_common::VtepKey;
use nix::sys::signal::Signal;

use crate::{
    HostState, Mesh, Node, Saboteur,
    bpf::{self, Maps},
    node::{BRIDGE, DEVICE},
};

/// What makes the daemon write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Round {
    Start,
    StartWithAdoption,
    PeerJoins,
    PeerGoes,
    DeviceDeleted,
    BridgeDeleted,
    MtuChange,
    Stop,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Start => "a start from nothing",
            Self::StartWithAdoption => "a start that takes over",
            Self::PeerJoins => "a peer joins",
            Self::PeerGoes => "a peer goes",
            Self::DeviceDeleted => "the device was deleted",
            Self::BridgeDeleted => "the bridge was deleted",
            Self::MtuChange => "the underlay's MTU changed",
            Self::Stop => "a clean stop",
        })
    }
}

/// Three nodes; the first is the one that suffers.
#[derive(Debug)]
pub struct Stage {
    pub mesh: Mesh,
    saboteur: &'static str,
    /// More arguments for its daemon.
    pub more: Vec<&'static str>,
    /// What there is without a daemon: the users' bridge.
    pub empty: HostState,
}

impl Stage {
    /// Sets it. `saboteur` is `env!("CARGO_BIN_EXE_saboteur")`.
    pub fn set(saboteur: &'static str, limit: Duration) -> Self {
        let mesh = Mesh::within(3, limit);
        let node = mesh.node(1);
        node.namespace.ip(&format!("link add {BRIDGE} type bridge\nlink set {BRIDGE} mtu 1450"));
        node.address_bridge();
        let empty = HostState::of(node);
        mesh.node(2).start(&[]);
        mesh.node(2).address_bridge();
        Self { mesh, saboteur, more: Vec::new(), empty }
    }

    /// The node that suffers.
    pub fn node(&self) -> &Node {
        self.mesh.node(1)
    }

    fn args(&self) -> Vec<String> {
        let join = ["-j".to_owned(), self.mesh.node(2).seed()];
        join.into_iter().chain(self.more.iter().map(|arg| (*arg).to_owned())).collect()
    }

    /// Starts its daemon.
    pub fn start(&self) {
        let args = self.args();
        self.node().start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Starts its daemon under the saboteur, without waiting for it.
    pub fn launch(&self, order: Option<&str>) -> Saboteur {
        let args = self.args();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Saboteur::launch(self.saboteur, self.node(), &args, order)
    }

    /// Brings the node to where the round begins, sets the saboteur beside it, and begins.
    pub fn bring_about(&self, round: Round, order: Option<&str>) -> Saboteur {
        let node = self.node();
        let (second, third) = (self.mesh.node(2), self.mesh.node(3));
        if matches!(round, Round::Start | Round::StartWithAdoption) {
            if round == Round::StartWithAdoption {
                self.start();
                self.settle(&["node-2"]);
                node.kill();
            }
            return self.launch(order);
        }
        self.start();
        if round == Round::PeerGoes {
            third.start(&["-j", &second.seed()]);
            self.settle(&["node-2", "node-3"]);
        } else {
            self.settle(&["node-2"]);
        }
        let mut saboteur = Saboteur::attach(self.saboteur, node.pid());
        if let Some(order) = order {
            saboteur.order(order);
        }
        match round {
            Round::Start | Round::StartWithAdoption => {}
            Round::PeerJoins => third.start(&["-j", &second.seed()]),
            Round::PeerGoes => assert!(third.stop().success()),
            Round::DeviceDeleted => node.namespace.ip(&format!("link del {DEVICE}")),
            Round::BridgeDeleted => node.namespace.ip(&format!("link del {BRIDGE}")),
            Round::MtuChange => node.namespace.ip("link set eth0 mtu 1400"),
            Round::Stop => node.signal(Signal::SIGTERM),
        }
        saboteur
    }

    /// Undoes on the host what is not the daemon's.
    pub fn restore(&self, round: Round) {
        let node = self.node();
        match round {
            Round::MtuChange => node.namespace.ip("link set eth0 mtu 1500"),
            Round::BridgeDeleted => {
                if node.namespace.link(BRIDGE).is_none() {
                    node.namespace
                        .ip(&format!("link add {BRIDGE} type bridge\nlink set {BRIDGE} mtu 1450"));
                }
                node.address_bridge();
            }
            _ => {}
        }
    }

    /// Waits until exactly these are peers and nothing moves.
    pub fn settle(&self, peers: &[&str]) {
        self.node().wait_until("it is at rest", Duration::from_secs(20), |view| {
            view.is_converged() && view.peer_names() == peers
        });
        thread::sleep(Duration::from_millis(250));
    }

    /// Compares the kernel with what the daemon says it wants and with what is there.
    pub fn is_right(&self, with_third: bool, mtu: u16) -> Result<(), String> {
        let node = self.node();
        if !node.view().is_converged() {
            return Err(format!("not converged: {}", node.view().status()["error"]));
        }
        let peers = node.view().peers();
        let mut wanted = vec![self.mesh.node(2)];
        wanted.extend(with_third.then(|| self.mesh.node(3)));
        for peer in wanted {
            let forwards =
                |p: &serde_json::Value| p["name"] == peer.name() && p["state"] == "forwarding";
            if !peers.iter().any(forwards) {
                return Err(format!("{} is no peer", peer.name()));
            }
        }
        let content = Maps::open(node).content();
        let slots: Vec<(u64, u64)> = content
            .slots
            .iter()
            .map(|(index, slot)| (u64::from(*index), u64::from(slot.generation)))
            .collect();
        let said: Vec<(u64, u64)> = peers
            .iter()
            .filter_map(|peer| Some((peer["index"].as_u64()?, peer["generation"].as_u64()?)))
            .collect();
        let vteps: Vec<u32> = peers
            .iter()
            .filter_map(|peer| {
                let vtep = peer["vtep"].as_str()?.parse().ok()?;
                content.vteps.get(&VtepKey::new(vtep)).copied()
            })
            .collect();
        let indexes: Vec<u32> = content.slots.keys().copied().collect();
        if slots != said || vteps.len() != content.vteps.len() || content.flood != indexes {
            return Err(format!("the maps hold {content:?}, the daemon says {peers:?}"));
        }
        let own = node.underlay();
        if content.settings.vtep != VtepKey::new(own.into()).vtep || content.settings.vni != 1024 {
            return Err(format!("settings {:?}", content.settings));
        }
        let attached = bpf::attachments(&node.namespace).len();
        if attached != 3 {
            return Err(format!("{attached} programs are attached"));
        }
        let device = node.namespace.link(DEVICE).ok_or("no device")?;
        let up = device["flags"].as_array().is_some_and(|flags| flags.contains(&"UP".into()));
        let alias = device["ifalias"].as_str().unwrap_or_default();
        if device["master"] != BRIDGE || device["mtu"] != mtu || !up || alias.is_empty() {
            return Err(format!("the device is {device}"));
        }
        Ok(())
    }
}
