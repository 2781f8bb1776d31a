//! The full exchange of the membership, over a stream that the shell owns.
//!
//! foca's own gossip takes about N seconds to teach a newcomer a cluster of N. The exchange does
//! it in one round trip, and repairs whatever gossip missed.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use foca::{Member, State};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    Membership, SYNC_EVERY, codec::LEFT, drive::note, envelope::PROTOCOL, roster::Presence,
};
use crate::identity::{
    ClusterName, DataPlaneId, Generation, Identity, IdentityError, NameError, NodeName,
};

/// A node's view of the membership as it travels.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SyncMessage {
    /// Protocol version of the sender.
    pub protocol: u32,
    /// Software version of the sender.
    pub version: String,
    /// Cluster of the sender.
    pub cluster: String,
    /// The sender.
    pub from: SyncMember,
    /// Everybody else it knows.
    pub members: Vec<SyncMember>,
}

/// A member as it travels.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SyncMember {
    /// See [`Identity::name`].
    pub name: String,
    /// See [`Identity::addr`].
    pub addr: SocketAddr,
    /// See [`Identity::vtep`].
    pub vtep: IpAddr,
    /// See [`Identity::listen`].
    pub listen: SocketAddr,
    /// See [`Identity::generation`].
    pub generation: u64,
    /// See [`Identity::data_plane`]. Earlier protocols have none; they are refused as such.
    #[serde(default)]
    pub data_plane: u64,
    /// SWIM's counter.
    pub incarnation: u16,
    /// How the sender sees the member.
    pub state: SyncState,
}

/// A member's state as it travels.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncState {
    /// See [`MemberState::Alive`](crate::members::MemberState::Alive).
    Alive,
    /// See [`MemberState::Suspect`](crate::members::MemberState::Suspect).
    Suspect,
    /// See [`MemberState::Down`](crate::members::MemberState::Down).
    Down,
    /// See [`MemberState::Left`](crate::members::MemberState::Left).
    Left,
}

/// Why an exchange was refused. It had no effect on membership.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum SyncRefusal {
    /// The two do not belong together.
    #[error(
        "this node speaks protocol {our_protocol} in cluster \"{our_cluster}\"; you speak \
         protocol {their_protocol} in cluster \"{their_cluster}\""
    )]
    Mismatch {
        /// Protocol version of this node.
        our_protocol: u32,
        /// Cluster of this node.
        our_cluster: ClusterName,
        /// Protocol version of the other.
        their_protocol: u32,
        /// Cluster of the other, cut to 32 characters.
        their_cluster: String,
    },
    /// There are more members than this node would remember.
    #[error("{count} members are too many: this node remembers {limit} at most")]
    TooMany {
        /// How many came.
        count: usize,
        /// How many may come.
        limit: usize,
    },
    /// A member has a name that is none.
    #[error("the member at {addr} has a bad name: {error}")]
    Name {
        /// The member's gossip address.
        addr: SocketAddr,
        /// What is wrong with its name.
        error: NameError,
    },
    /// A member names data plane zero.
    #[error("the member {name} has no data plane")]
    NoDataPlane {
        /// The member's name.
        name: NodeName,
    },
    /// A member has an address that nobody can send to.
    #[error("the member {name} is not usable: {error}")]
    Identity {
        /// The member's name.
        name: NodeName,
        /// What is wrong with its addresses.
        error: IdentityError,
    },
}

impl SyncMember {
    pub(super) fn new(identity: &Identity, incarnation: u16, state: SyncState) -> Self {
        Self {
            name: identity.name.to_string(),
            addr: identity.addr,
            vtep: identity.vtep,
            listen: identity.listen,
            generation: identity.generation.0,
            data_plane: identity.data_plane.get(),
            incarnation,
            state,
        }
    }

    fn identity(&self) -> Result<Identity, SyncRefusal> {
        let Self { addr, vtep, listen, .. } = *self;
        let name = NodeName::new(&self.name).map_err(|error| SyncRefusal::Name { addr, error })?;
        let data_plane =
            DataPlaneId::new(self.data_plane).ok_or(SyncRefusal::NoDataPlane { name })?;
        Identity::new(name, addr, vtep, listen, Generation(self.generation), data_plane)
            .map_err(|error| SyncRefusal::Identity { name, error })
    }
}

/// A message whose values were checked.
struct Checked {
    members: Vec<(Identity, u16, SyncState)>,
}

impl Membership {
    /// What this node says about everybody it knows.
    pub fn sync_request(&self) -> SyncMessage {
        let others = self
            .foca
            .iter_membership_state()
            .filter(|member| member.id().addr != self.identity.addr)
            .map(|member| {
                let addr = member.id().addr;
                let left =
                    self.roster.get(addr).is_some_and(|known| known.presence == Presence::Left);
                let state = match member.state() {
                    State::Alive => SyncState::Alive,
                    State::Suspect => SyncState::Suspect,
                    State::Down if left => SyncState::Left,
                    State::Down => SyncState::Down,
                };
                SyncMember::new(member.id(), member.incarnation(), state)
            });
        SyncMessage {
            protocol: u32::from(PROTOCOL),
            version: self.version.as_str().to_owned(),
            cluster: self.config.cluster.as_str().to_owned(),
            from: SyncMember::new(&self.identity, 0, SyncState::Alive),
            members: others.collect(),
        }
    }

    /// Takes a request and returns the reply. Protocol and cluster are checked before all else.
    pub fn handle_sync(
        &mut self,
        now: Instant,
        request: &SyncMessage,
    ) -> Result<SyncMessage, SyncRefusal> {
        self.latest = now;
        let request = self.check_sync(request)?;
        // What a newcomer knows, the cluster does not: pass it on.
        self.merge(now, request, true);
        Ok(self.sync_request())
    }

    /// Takes the reply to a request.
    pub fn handle_sync_reply(
        &mut self,
        now: Instant,
        reply: &SyncMessage,
    ) -> Result<(), SyncRefusal> {
        self.latest = now;
        let reply = self.check_sync(reply)?;
        self.sync_pause = (self.sync_pause * 2).min(SYNC_EVERY.1);
        self.merge(now, reply, false);
        Ok(())
    }

    fn check_sync(&self, message: &SyncMessage) -> Result<Checked, SyncRefusal> {
        let our_protocol = u32::from(PROTOCOL);
        if message.protocol != our_protocol || message.cluster != self.config.cluster.as_str() {
            return Err(SyncRefusal::Mismatch {
                our_protocol,
                our_cluster: self.config.cluster,
                their_protocol: message.protocol,
                their_cluster: message.cluster.chars().take(ClusterName::MAX_LEN).collect(),
            });
        }
        let (count, limit) = (message.members.len(), self.config.max_members);
        // The sender does not count itself, but does count this node.
        if count > limit.saturating_add(1) {
            return Err(SyncRefusal::TooMany { count, limit });
        }
        let members = std::iter::once(&message.from)
            .chain(&message.members)
            .map(|member| Ok((member.identity()?, member.incarnation, member.state)))
            .collect::<Result<_, _>>()?;
        Ok(Checked { members })
    }

    /// Adds what is new. Somebody else's "down" is not believed about others: it may come from
    /// the far side of a cut, where everybody here looks dead. It is found out here, too.
    fn merge(&mut self, now: Instant, message: Checked, pass_on: bool) {
        if !matches!(self.phase, super::Phase::Running) {
            return;
        }
        let mut updates = Vec::new();
        let mut room_for = BTreeSet::new();
        for (identity, incarnation, state) in message.members {
            if identity.addr == self.identity.addr {
                let is_down = matches!(state, SyncState::Down | SyncState::Left);
                if identity != self.identity {
                    self.handle_claim(now, &identity, !is_down);
                } else if is_down && !self.renewals.is_resting(now) {
                    updates.push(Member::down(identity));
                } else if state == SyncState::Suspect {
                    updates.push(Member::new(identity, incarnation, State::Suspect));
                }
                continue;
            }
            if self.renewals.is_absurd(identity.generation) {
                self.counters.skipped_updates += 1;
                continue;
            }
            if self.is_former_self(&identity) || self.roster.is_superseded(&identity) {
                continue;
            }
            if matches!(state, SyncState::Down | SyncState::Left) {
                self.may_be_former_self(&identity);
            }
            let is_known = self.roster.knows(identity.addr);
            match state {
                SyncState::Alive | SyncState::Suspect => {
                    if !is_known && !room_for.contains(&identity.addr) {
                        self.has_room();
                        if self.roster.room() <= room_for.len() {
                            self.counters.skipped_updates += 1;
                            continue;
                        }
                        room_for.insert(identity.addr);
                    }
                    let state = match state {
                        SyncState::Suspect => State::Suspect,
                        SyncState::Alive | SyncState::Down | SyncState::Left => State::Alive,
                    };
                    let update = Member::new(identity, incarnation, state);
                    self.note_restart(now, &update);
                    updates.push(update);
                }
                SyncState::Left if is_known => {
                    self.events.extend(self.roster.mark_leaving(&identity));
                    updates.push(Member::new(identity, LEFT, State::Down));
                }
                // Not spread further either: a member that is gone would be remembered for ever.
                SyncState::Left => {}
                SyncState::Down => self.note_hearsay(now, &identity),
            }
        }
        self.suspects_stale = true;
        note(self.foca.apply_many(updates.into_iter(), pass_on, &mut self.outbox));
        self.settle(now, None);
    }
}
