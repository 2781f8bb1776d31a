//! What a node tells its shell.

use std::net::SocketAddr;

use bytes::Bytes;

use super::conflict::Conflict;
use crate::identity::Identity;

/// A datagram to send.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// The whole datagram.
    pub data: Bytes,
}

/// Something that happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MembershipEvent {
    /// A member is there that was not.
    MemberUp(Identity),
    /// A member was declared failed.
    MemberDown(Identity),
    /// A member left. Follows a `MemberDown` of the same identity when the goodbye came late.
    MemberLeft(Identity),
    /// An active member is there with another identity: it was restarted, or it renewed itself.
    MemberChanged {
        /// What it was.
        old: Identity,
        /// What it is.
        new: Identity,
    },
    /// This node knows at least one active member, and knew none before.
    Joined,
    /// This node knows no active member any more. It keeps on trying.
    Isolated,
    /// Asks the shell to exchange the full membership with the node that listens there.
    SyncWanted {
        /// The listen address.
        with: SocketAddr,
    },
    /// A seed answered that it does not fit. Told again only when the reason is another.
    SeedRefused {
        /// The address that was asked.
        seed: SocketAddr,
        /// What differs, as a sentence.
        reason: String,
    },
    /// Two live members have something in common that they must not. Told once.
    Conflict(Conflict),
    /// A conflict is gone.
    ConflictResolved(Conflict),
}
