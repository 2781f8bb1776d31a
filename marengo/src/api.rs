//! What the daemon answers: the JSON of the control socket and of the commands. These types are the
//! contract; fields are added, never renamed.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

/// A member as gossip sees it: `GET /v1/members`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct MemberView {
    pub name: String,
    /// Gossip address.
    pub address: SocketAddr,
    pub vtep: IpAddr,
    /// Where its HTTP service listens.
    pub listen: SocketAddr,
    /// `alive`, `suspect`, `restarting`, `down` or `left`.
    pub state: String,
    /// Which start of the node this is, in milliseconds since 1970 by its clock.
    pub generation: u64,
    /// Whether it is the node that answers.
    pub this_node: bool,
}

/// A peer as the data plane sees it: `GET /v1/peers`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PeerView {
    /// Empty for a slot of an earlier run whose peer has not been heard of yet.
    pub name: String,
    /// Key of the peer in the maps.
    pub index: u32,
    pub vtep: IpAddr,
    /// The stamp that makes a MAC entry valid.
    pub generation: u32,
    /// `forwarding`; `held`: gossip lost it, but its data plane answers, and it is forwarded to as
    /// before; or `adopted` for a slot of an earlier run that gossip has not told of yet.
    pub state: String,
    /// Why it is held, as a sentence; `null`: it is not.
    pub held: Option<String>,
    /// The identity of its data plane, in hexadecimal; empty: not known yet.
    pub data_plane: String,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub rx_bytes: u64,
    /// Seconds since a frame of the peer last arrived; `null`: none has.
    pub heard_seconds_ago: Option<f64>,
}

/// How this node is: `GET /v1/status`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StatusView {
    pub node: String,
    pub version: String,
    pub commit: String,
    pub cluster: String,
    pub address: SocketAddr,
    pub vtep: IpAddr,
    /// The identity of this node's data plane, in hexadecimal.
    pub data_plane: String,
    pub listen: SocketAddr,
    pub bridge: String,
    pub device: String,
    pub pin_dir: String,
    pub vni: u32,
    pub vxlan_port: u16,
    pub mtu: u16,
    /// Whether the kernel was as it should be after the last round.
    pub converged: bool,
    /// Rounds that found something changed by another hand and put it right.
    pub repairs: u64,
    /// Rounds in all.
    pub rounds: u64,
    /// Why the last round failed; `null`: it did not.
    pub error: Option<String>,
    /// `tcx` or `clsact`.
    pub attach: String,
    /// Members by state, this node among them.
    pub members: BTreeMap<String, u64>,
    /// Peers in the data plane.
    pub peers: u64,
    /// Peers among them that gossip lost and the data plane hears.
    pub held: u64,
    /// How many times a peer began to be held.
    pub holds: u64,
    /// Those that are held, and why, as sentences.
    pub held_reasons: Vec<String>,
    /// Names of peers for which the data plane has no room (`--max-peers`).
    pub peers_without_slot: Vec<String>,
    /// What is wrong with this node's address: it is gone from the host, say; `null`: nothing.
    pub address_problem: Option<String>,
    /// Members that have something in common that they must not, as sentences.
    pub conflicts: Vec<String>,
    /// What another hand keeps undoing at present.
    pub fights: Vec<FightView>,
    /// Fights since the start, those that are over included.
    pub fights_total: u64,
    /// Frames dropped by the programs, by reason.
    pub drops: BTreeMap<String, u64>,
    pub gossip: GossipView,
}

/// Something that another hand keeps undoing.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct FightView {
    /// What it is over.
    pub object: String,
    /// How often the object was put right.
    pub repairs: u64,
    /// How long it lasts.
    pub since_seconds: u64,
    /// Who was seen at it, or `unknown`. Evidence, no proof.
    pub suspect: String,
}

/// Gossip's counters.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct GossipView {
    pub datagrams_received: u64,
    pub datagrams_sent: u64,
    /// Datagrams that were refused, by reason; reasons that never occurred are left out.
    pub rejected: BTreeMap<String, u64>,
}

/// What this build is: `GET /v1/version`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct VersionView {
    pub version: String,
    pub commit: String,
    /// Version of the gossip protocol.
    pub protocol: u32,
    /// Version of the maps' layout.
    pub abi: u32,
}

impl VersionView {
    /// This build's.
    pub fn this_build() -> Self {
        Self {
            version: crate::version::VERSION.to_owned(),
            commit: crate::version::COMMIT.to_owned(),
            protocol: u32::from(marengo_core::membership::envelope::PROTOCOL),
            abi: marengo_common::ABI_VERSION,
        }
    }
}
