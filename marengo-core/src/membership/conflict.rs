//! Members that get in each other's way, because of how somebody set them up.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{event::MembershipEvent, standing::Standings};
use crate::{
    identity::Identity,
    members::{Peer, PeerTable, Standing},
};

/// For how long a conflict about the own address is shown after the last sign of it.
const ADDRESS_MEMORY: Duration = Duration::from_mins(1);

/// What two members have in common that they must not.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ConflictKind {
    /// A name.
    Name,
    /// A VTEP. The data plane uses one of the two at most.
    Vtep,
    /// A gossip address.
    Address,
    /// A data plane: one is a copy of the other, made while it ran. The data plane of the others
    /// uses one of the two at most.
    DataPlane,
}

impl ConflictKind {
    /// The kind in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Vtep => "vtep",
            Self::Address => "address",
            Self::DataPlane => "data plane",
        }
    }
}

impl fmt::Display for ConflictKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Two live members that have something in common that they must not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Conflict {
    /// What they have in common.
    pub kind: ConflictKind,
    /// This node; or, of two peers with one VTEP, the one that is in the peer table.
    pub ours: Identity,
    /// The other one.
    pub theirs: Identity,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} and {} have one {}", self.ours, self.theirs, self.kind)
    }
}

type Key = (ConflictKind, SocketAddr, SocketAddr);

impl Conflict {
    fn key(&self) -> Key {
        (self.kind, self.ours.addr, self.theirs.addr)
    }
}

/// The conflicts that are present. Each is reported when it appears and when it is gone.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    present: BTreeMap<Key, Conflict>,
    /// A node at this node's own address, and until when to believe in it.
    at_own_address: Option<(Identity, Instant)>,
}

impl Conflicts {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Conflict> {
        self.present.values()
    }

    /// Notes a sign of another node at this node's own address.
    pub(super) fn seen_at_own_address(&mut self, theirs: &Identity, now: Instant) {
        self.at_own_address = Some((theirs.clone(), now + ADDRESS_MEMORY));
    }

    /// Whether `refresh` is needed although nobody came or went.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        let shown = self.present.keys().any(|(kind, ..)| *kind == ConflictKind::Address);
        let wanted = self.at_own_address.as_ref().is_some_and(|(_, until)| now < *until);
        shown != wanted
    }

    /// Finds the conflicts among the members that stand, and the peers that remain without them.
    ///
    /// A member with this node's VTEP is no peer. Of several members with one VTEP the one that
    /// was there first is; a lost one only if nobody else is there, and it conflicts with nobody.
    pub(super) fn refresh(
        &mut self,
        now: Instant,
        own: &Identity,
        standings: Standings<'_>,
    ) -> (PeerTable, Vec<MembershipEvent>) {
        let mut found = Vec::new();
        let conflict = |kind, ours: &Identity, theirs: &Identity| Conflict {
            kind,
            ours: ours.clone(),
            theirs: theirs.clone(),
        };
        if let Some((theirs, until)) = &self.at_own_address {
            if now < *until {
                found.push(conflict(ConflictKind::Address, own, theirs));
            } else {
                self.at_own_address = None;
            }
        }
        for (ours, theirs) in standings.clones {
            found.push(conflict(ConflictKind::DataPlane, ours, theirs));
        }
        let (lost, live): (Vec<_>, Vec<_>) =
            standings.members.into_iter().partition(|(_, standing)| *standing == Standing::Lost);
        let mut by_vtep: BTreeMap<IpAddr, (&Identity, Standing)> = BTreeMap::new();
        let mut losers = Vec::new();
        for (member, standing) in live {
            if member.name == own.name {
                found.push(conflict(ConflictKind::Name, own, member));
            }
            if member.vtep == own.vtep {
                found.push(conflict(ConflictKind::Vtep, own, member));
                continue;
            }
            let seniority = |identity: &Identity| (identity.generation, identity.name);
            let (holder, its_standing) = by_vtep.entry(member.vtep).or_insert((member, standing));
            if seniority(member) < seniority(holder) {
                losers.push(std::mem::replace(holder, member));
                *its_standing = standing;
            } else if member.addr != holder.addr {
                losers.push(member);
            }
        }
        for loser in losers {
            if let Some((holder, _)) = by_vtep.get(&loser.vtep) {
                found.push(conflict(ConflictKind::Vtep, holder, loser));
            }
        }
        // Of several lost ones, the latest that was there.
        let mut lost_by_vtep: BTreeMap<IpAddr, &Identity> = BTreeMap::new();
        for (member, _) in lost.into_iter().filter(|(member, _)| member.vtep != own.vtep) {
            let holder = lost_by_vtep.entry(member.vtep).or_insert(member);
            if (member.generation, member.addr) > (holder.generation, holder.addr) {
                *holder = member;
            }
        }
        for (vtep, member) in lost_by_vtep {
            by_vtep.entry(vtep).or_insert((member, Standing::Lost));
        }
        let found: BTreeMap<Key, Conflict> =
            found.into_iter().map(|conflict| (conflict.key(), conflict)).collect();

        let appeared = found.iter().filter(|(key, _)| !self.present.contains_key(key));
        let gone = self.present.iter().filter(|(key, _)| !found.contains_key(key));
        let events = appeared
            .map(|(_, conflict)| MembershipEvent::Conflict(conflict.clone()))
            .chain(gone.map(|(_, conflict)| MembershipEvent::ConflictResolved(conflict.clone())))
            .collect();
        let peers = by_vtep
            .into_values()
            .map(|(member, standing)| Peer { identity: member.clone(), standing })
            .collect();
        self.present = found;
        (peers, events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::Generation,
        membership::testing::{identity, start},
    };

    fn members<'a>(members: impl Into<Vec<(&'a Identity, Standing)>>) -> Standings<'a> {
        Standings { members: members.into(), clones: Vec::new() }
    }

    fn kinds(conflicts: &Conflicts) -> Vec<ConflictKind> {
        conflicts.iter().map(|conflict| conflict.kind).collect()
    }

    #[test]
    fn a_name_used_twice_is_reported_once_and_again_when_it_is_gone() {
        let (now, mut conflicts) = (start(), Conflicts::default());
        let own = identity(1);
        let twin = Identity { name: own.name, ..identity(2) };

        let (peers, events) = conflicts.refresh(now, &own, members([(&twin, Standing::Alive)]));
        assert_eq!(peers.len(), 1);
        assert!(matches!(&events[..], [MembershipEvent::Conflict(c)] if c.theirs == twin));

        let renewed = twin.with_generation(twin.generation.next());
        let (_, events) = conflicts.refresh(now, &own, members([(&renewed, Standing::Alive)]));
        assert_eq!(events, []);
        assert_eq!(kinds(&conflicts), [ConflictKind::Name]);

        let (_, events) = conflicts.refresh(now, &own, Standings::default());
        assert!(matches!(&events[..], [MembershipEvent::ConflictResolved(_)]));
    }

    #[test]
    fn a_member_with_the_own_vtep_is_no_peer() {
        let (now, mut conflicts) = (start(), Conflicts::default());
        let own = identity(1);
        let thief = Identity { vtep: own.vtep, ..identity(2) };

        let (peers, _) = conflicts.refresh(now, &own, members([(&thief, Standing::Alive)]));

        assert!(peers.is_empty());
        assert_eq!(kinds(&conflicts), [ConflictKind::Vtep]);
    }

    #[test]
    fn of_two_peers_with_one_vtep_the_older_is_kept_in_whatever_order_they_come() {
        let now = start();
        let older = Identity { generation: Generation(1), ..identity(2) };
        let younger = Identity { generation: Generation(2), vtep: older.vtep, ..identity(3) };
        for pair in [[&older, &younger], [&younger, &older]] {
            let mut conflicts = Conflicts::default();

            let pair = pair.map(|identity| (identity, Standing::Alive));
            let (peers, _) = conflicts.refresh(now, &identity(1), members(pair));

            assert_eq!(peers.live().collect::<Vec<_>>(), [&older]);
            let conflict = conflicts.iter().next().unwrap();
            assert_eq!((&conflict.ours, &conflict.theirs), (&older, &younger));
        }
    }

    #[test]
    fn a_copy_of_a_running_node_is_reported() {
        let (now, mut conflicts) = (start(), Conflicts::default());
        let (own, stands) = (identity(1), identity(2));
        let copy = Identity { data_plane: stands.data_plane, ..identity(3) };

        let members = vec![(&stands, Standing::Alive)];
        let clones = vec![(&stands, &copy)];
        let (peers, events) = conflicts.refresh(now, &own, Standings { members, clones });

        assert_eq!(peers.live().collect::<Vec<_>>(), [&stands]);
        assert!(matches!(&events[..], [MembershipEvent::Conflict(c)] if c.theirs == copy));
        assert_eq!(kinds(&conflicts), [ConflictKind::DataPlane]);
    }

    #[test]
    fn a_lost_member_is_a_peer_unless_somebody_has_its_vtep() {
        let (now, mut conflicts) = (start(), Conflicts::default());
        let (lost, heir) = (identity(2), Identity { vtep: identity(2).vtep, ..identity(3) });

        let (peers, _) = conflicts.refresh(now, &identity(1), members([(&lost, Standing::Lost)]));
        assert_eq!(peers.get(lost.addr).map(|peer| peer.standing), Some(Standing::Lost));
        assert_eq!(peers.live().count(), 0);

        let both = [(&lost, Standing::Lost), (&heir, Standing::Suspect)];
        let (peers, events) = conflicts.refresh(now, &identity(1), members(both));
        assert_eq!((peers.len(), events), (1, Vec::new()));
        assert_eq!(peers.get(heir.addr).map(|peer| peer.standing), Some(Standing::Suspect));

        let (peers, _) = conflicts.refresh(now, &heir, members([(&lost, Standing::Lost)]));
        assert!(peers.is_empty(), "its VTEP is our own");
    }

    #[test]
    fn a_stranger_at_the_own_address_is_shown_for_a_minute_after_its_last_sign() {
        let (now, mut conflicts) = (start(), Conflicts::default());
        let own = identity(1);
        let stranger = Identity { addr: own.addr, ..identity(2) };

        conflicts.seen_at_own_address(&stranger, now);
        assert!(conflicts.is_stale(now));
        conflicts.refresh(now, &own, Standings::default());
        assert_eq!(kinds(&conflicts), [ConflictKind::Address]);
        assert!(!conflicts.is_stale(now));

        assert!(conflicts.is_stale(now + ADDRESS_MEMORY));
        conflicts.refresh(now + ADDRESS_MEMORY, &own, Standings::default());
        assert_eq!(kinds(&conflicts), []);
    }
}
