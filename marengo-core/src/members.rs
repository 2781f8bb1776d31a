//! Who is there, as the operator and the data plane see it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    sync::Arc,
};

use crate::identity::{DataPlaneId, Identity};

/// How a member is seen by this node.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum MemberState {
    /// It answers.
    Alive,
    /// It missed a probe and is given time to refute. The data plane treats it as alive.
    Suspect,
    /// It said that its daemon goes and its data plane stays, and that it comes back soon.
    Restarting,
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
            Self::Restarting => "restarting",
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

/// What gossip thinks of a peer.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Standing {
    /// It answers.
    Alive,
    /// It is doubted: it missed a probe, or said that its daemon is restarted.
    Suspect,
    /// Its daemon said that it is back soon: its data plane is there meanwhile, or it is gone.
    Restarting,
    /// It was declared down. It did not leave, and nobody has taken its place: whether it is
    /// really gone, the data plane may know better.
    Lost,
}

impl Standing {
    /// The standing in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Restarting => "restarting",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A peer, and what gossip thinks of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peer {
    /// Who it is.
    pub identity: Identity,
    /// What gossip thinks of it.
    pub standing: Standing,
}

impl From<Identity> for Peer {
    fn from(identity: Identity) -> Self {
        Self { identity, standing: Standing::Alive }
    }
}

/// The peers that the data plane may forward to, by gossip address: members that are alive or
/// suspect, and lost ones as long as they are remembered.
///
/// This node is not among them, nor is who left or was superseded. As the membership makes it, no
/// two entries have one data plane, and no two have one VTEP.
///
/// The table also tells which data planes left: of those, unlike of ones that nobody speaks of, it
/// is known that they are gone.
///
/// A clone shares the table. One entry a peer.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PeerTable {
    peers: Arc<BTreeMap<SocketAddr, Peer>>,
    left: Arc<BTreeSet<DataPlaneId>>,
}

impl PeerTable {
    /// How many peers there are, the lost ones included.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// The peer at a gossip address.
    pub fn get(&self, addr: SocketAddr) -> Option<&Peer> {
        self.peers.get(&addr)
    }

    /// The peers in the order of their gossip addresses.
    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values()
    }

    /// The same peers, and the data planes among `left` that are none of theirs.
    #[must_use]
    pub fn with_left(self, left: impl Iterator<Item = DataPlaneId>) -> Self {
        let here: BTreeSet<_> = self.iter().map(|peer| peer.identity.data_plane).collect();
        let left = left.filter(|data_plane| !here.contains(data_plane)).collect();
        Self { left: Arc::new(left), ..self }
    }

    /// Whether the node of a data plane said that it leaves.
    pub fn has_left(&self, data_plane: DataPlaneId) -> bool {
        self.left.contains(&data_plane)
    }

    /// The peers that gossip vouches for: those that answer, or are only suspected not to.
    pub fn vouched(&self) -> impl Iterator<Item = &Identity> {
        let vouched = |peer: &&Peer| matches!(peer.standing, Standing::Alive | Standing::Suspect);
        self.iter().filter(vouched).map(|peer| &peer.identity)
    }

    /// The peers that are not lost, in the order of their gossip addresses.
    pub fn live(&self) -> impl Iterator<Item = &Identity> {
        self.iter().filter(|peer| peer.standing != Standing::Lost).map(|peer| &peer.identity)
    }
}

impl FromIterator<Peer> for PeerTable {
    fn from_iter<I: IntoIterator<Item = Peer>>(peers: I) -> Self {
        let peers = peers.into_iter().map(|peer| (peer.identity.addr, peer)).collect();
        Self { peers: Arc::new(peers), left: Arc::default() }
    }
}

/// A table in which everybody is alive.
impl FromIterator<Identity> for PeerTable {
    fn from_iter<I: IntoIterator<Item = Identity>>(peers: I) -> Self {
        peers.into_iter().map(Peer::from).collect()
    }
}
