//! Why a datagram was refused, and how often.

use thiserror::Error;

use super::codec::CodecError;
use crate::identity::ClusterName;

/// Why a datagram was refused. Unless a variant says otherwise, it had no effect on membership.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum DatagramError {
    /// It is longer than any datagram of ours.
    #[error("the datagram is too long")]
    TooLong,
    /// It does not begin as a datagram of ours does.
    #[error("not a datagram of Marengo")]
    NotMarengo,
    /// Its checksum does not fit.
    #[error("the datagram is damaged")]
    Damaged,
    /// The sender speaks another protocol version. A who-is request is still answered.
    #[error("the sender speaks protocol {theirs}")]
    OtherProtocol {
        /// The version it speaks.
        theirs: u8,
    },
    /// The sender belongs to another cluster. A who-is request is still answered.
    #[error("the sender belongs to cluster \"{theirs}\"")]
    OtherCluster {
        /// The cluster it belongs to.
        theirs: ClusterName,
    },
    /// It is authenticated with a key, and this node has none.
    #[error("the datagram needs a key that this node does not have")]
    UnknownKey,
    /// It is of a kind that this protocol version does not have.
    #[error("unknown kind of datagram")]
    UnknownKind,
    /// Its contents could not be read.
    #[error("malformed datagram")]
    Malformed,
    /// It was not sent from the address that its sender claims.
    #[error("the datagram does not come from where its sender says it is")]
    SpoofedSource,
    /// It claims to come from this node's own address.
    #[error("the datagram claims to come from this node")]
    FromOurselves,
    /// It is meant for another address.
    #[error("the datagram is meant for another node")]
    WrongRecipient,
    /// Its sender claims a generation that no clock could have given it.
    #[error("the sender's generation is absurd")]
    AbsurdGeneration,
    /// Its sender's data plane is known at another address, with a higher generation: either the
    /// datagram is old, or there are two. If the sender goes on to live, it becomes a member.
    #[error("the sender has another address since")]
    Superseded,
    /// Its sender is unknown, and the table of members is full.
    #[error("there is no room for another member")]
    MemberLimit,
    /// It asks to send to a node that is not a known member.
    #[error("the datagram asks to send to a node that is not a member")]
    UnknownTarget,
    /// It answers a question that was not asked, or not lately.
    #[error("nobody asked for this answer")]
    UnknownNonce,
    /// It is a request shorter than its answer.
    #[error("the request is shorter than its answer")]
    ShortRequest,
    /// It says that this node is down, and this node has renewed itself too often of late.
    #[error("this node was declared down too often to renew itself again")]
    RenewedTooOften,
}

impl DatagramError {
    const COUNT: usize = 18;

    const NAMES: [&str; Self::COUNT] = [
        "too_long",
        "not_marengo",
        "damaged",
        "other_protocol",
        "other_cluster",
        "unknown_key",
        "unknown_kind",
        "malformed",
        "spoofed_source",
        "from_ourselves",
        "wrong_recipient",
        "absurd_generation",
        "member_limit",
        "unknown_target",
        "unknown_nonce",
        "short_request",
        "renewed_too_often",
        "superseded",
    ];

    /// The reason as a metric label or JSON key.
    pub fn name(&self) -> &'static str {
        Self::NAMES.get(self.index()).copied().unwrap_or_default()
    }

    const fn index(&self) -> usize {
        match self {
            Self::TooLong => 0,
            Self::NotMarengo => 1,
            Self::Damaged => 2,
            Self::OtherProtocol { .. } => 3,
            Self::OtherCluster { .. } => 4,
            Self::UnknownKey => 5,
            Self::UnknownKind => 6,
            Self::Malformed => 7,
            Self::SpoofedSource => 8,
            Self::FromOurselves => 9,
            Self::WrongRecipient => 10,
            Self::AbsurdGeneration => 11,
            Self::MemberLimit => 12,
            Self::UnknownTarget => 13,
            Self::UnknownNonce => 14,
            Self::ShortRequest => 15,
            Self::RenewedTooOften => 16,
            Self::Superseded => 17,
        }
    }
}

impl From<CodecError> for DatagramError {
    fn from(_: CodecError) -> Self {
        Self::Malformed
    }
}

/// How many datagrams came and went.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Datagrams handed to `handle_datagram`.
    pub received: u64,
    /// Datagrams handed out by `poll_transmit`.
    pub sent: u64,
    /// Datagrams that foca wanted to send to an address that is not a member's, or to a member
    /// that left.
    pub unsent: u64,
    /// Updates about other members that were left out of an accepted datagram or exchange:
    /// absurd generations, and unknown members when the table is full.
    pub skipped_updates: u64,
    rejected: [u64; DatagramError::COUNT],
}

impl Counters {
    /// The refused datagrams by reason, also those reasons that never occurred.
    pub fn rejected(&self) -> impl Iterator<Item = (&'static str, u64)> {
        DatagramError::NAMES.into_iter().zip(self.rejected)
    }

    /// How many datagrams were refused.
    pub fn rejected_total(&self) -> u64 {
        self.rejected.iter().sum()
    }

    pub(super) fn reject(&mut self, error: &DatagramError) {
        if let Some(count) = self.rejected.get_mut(error.index()) {
            *count += 1;
        }
    }
}
