//! Who is there, as the operator and the data plane see it.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc};

use crate::identity::Identity;

/// How a member is seen by this node.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum MemberState {
    /// It answers.
    Alive,
    /// It missed a probe and is given time to refute. The data plane treats it as alive.
    Suspect,
    /// It was declared failed.
    Down,
    /// It said that it leaves.
    Left,
}

impl MemberState {
    /// The state in lower case, as commands print it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Left => "left",
        }
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A member and how it is seen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// Who it is.
    pub identity: Identity,
    /// How this node sees it.
    pub state: MemberState,
}

/// The peers that the data plane forwards to: members that are alive or suspect, by gossip
/// address. This node is not among them, and no two of them have the same VTEP.
///
/// A clone shares the table. One entry a peer.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PeerTable(Arc<BTreeMap<SocketAddr, Identity>>);

impl PeerTable {
    /// How many peers there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The peer at a gossip address.
    pub fn get(&self, addr: SocketAddr) -> Option<&Identity> {
        self.0.get(&addr)
    }

    /// The peers in the order of their gossip addresses.
    pub fn iter(&self) -> impl Iterator<Item = &Identity> {
        self.0.values()
    }
}

impl FromIterator<Identity> for PeerTable {
    fn from_iter<I: IntoIterator<Item = Identity>>(peers: I) -> Self {
        Self(Arc::new(peers.into_iter().map(|peer| (peer.addr, peer)).collect()))
    }
}
