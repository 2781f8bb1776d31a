//! Everybody this node has heard of, with what foca does not remember: who left, and since when.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{event::MembershipEvent, restart::Restarting, standing::Known};
use crate::{
    identity::{DataPlaneId, Generation, Identity},
    members::Standing,
};

/// For how long a member that left is shown.
const SHOW_LEFT: Duration = Duration::from_hours(1);

/// Whether a member is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Presence {
    /// Alive or suspect.
    Active,
    Down,
    Left,
    /// Its node has another address.
    Superseded,
}

#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) identity: Identity,
    pub(super) presence: Presence,
    /// Since when it is down or left; meaningless while it is active.
    since: Instant,
}

/// The other members by gossip address, one record each. Agrees with foca on who is active.
///
/// It says each thing once: between two "up" of a member there is a "down" or a "left".
#[derive(Debug)]
pub(super) struct Roster {
    records: BTreeMap<SocketAddr, Record>,
    limit: usize,
    active: usize,
    /// Whether the records changed since [`Roster::take_changed`], other than by time.
    changed: bool,
    /// The start of a node that is known to leave; makes its next "down" a "left".
    leaving: BTreeMap<SocketAddr, Generation>,
    /// Where the latest identity of each data plane is. An entry counts only as long as the record
    /// at that address has that data plane.
    latest: BTreeMap<DataPlaneId, SocketAddr>,
    /// Active identities that were superseded, for foca to be told.
    retired: Vec<Identity>,
    /// Whether identities are superseded at all.
    supersede: bool,
}

impl Roster {
    pub(super) fn new(limit: usize, supersede: bool) -> Self {
        Self {
            records: BTreeMap::new(),
            limit,
            active: 0,
            changed: true,
            leaving: BTreeMap::new(),
            latest: BTreeMap::new(),
            retired: Vec::new(),
            supersede,
        }
    }

    pub(super) fn get(&self, addr: SocketAddr) -> Option<&Record> {
        self.records.get(&addr)
    }

    pub(super) fn knows(&self, addr: SocketAddr) -> bool {
        self.records.contains_key(&addr)
    }

    pub(super) fn is_active(&self, addr: SocketAddr) -> bool {
        self.active_at(addr).is_some()
    }

    /// The active member at an address.
    pub(super) fn active_at(&self, addr: SocketAddr) -> Option<&Identity> {
        let record = self.get(addr)?;
        (record.presence == Presence::Active).then_some(&record.identity)
    }

    pub(super) fn active_count(&self) -> usize {
        self.active
    }

    pub(super) fn active(&self) -> impl Iterator<Item = &Identity> {
        self.records
            .values()
            .filter(|record| record.presence == Presence::Active)
            .map(|record| &record.identity)
    }

    /// Everybody, with what gossip thinks of them.
    pub(super) fn known<'a>(
        &'a self,
        suspects: &'a BTreeSet<SocketAddr>,
        restarting: &'a Restarting,
    ) -> impl Iterator<Item = Known<'a>> {
        self.records.values().map(|record| {
            let standing = match record.presence {
                Presence::Active if restarting.has(&record.identity) => Some(Standing::Restarting),
                Presence::Active if suspects.contains(&record.identity.addr) => {
                    Some(Standing::Suspect)
                }
                Presence::Active => Some(Standing::Alive),
                Presence::Down => Some(Standing::Lost),
                Presence::Left | Presence::Superseded => None,
            };
            (&record.identity, standing)
        })
    }

    /// The latest identity of a data plane, wherever it is.
    pub(super) fn latest(&self, data_plane: DataPlaneId) -> Option<&Identity> {
        let record = self.get(*self.latest.get(&data_plane)?)?;
        (record.identity.data_plane == data_plane).then_some(&record.identity)
    }

    /// Whether the node of this identity has another address since, as far as is known, and nothing
    /// speaks for the contrary.
    pub(super) fn is_superseded(&self, identity: &Identity) -> bool {
        self.supersede
            && !self.is_active(identity.addr)
            && self.latest(identity.data_plane).is_some_and(|latest| {
                latest.addr != identity.addr && latest.generation > identity.generation
            })
    }

    pub(super) fn take_retired(&mut self) -> Vec<Identity> {
        std::mem::take(&mut self.retired)
    }

    /// The data planes of those that left.
    pub(super) fn left(&self) -> impl Iterator<Item = DataPlaneId> {
        self.records
            .values()
            .filter(|record| record.presence == Presence::Left)
            .map(|record| record.identity.data_plane)
    }

    /// How many more members fit.
    pub(super) fn room(&self) -> usize {
        self.limit.saturating_sub(self.records.len())
    }

    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The records to show at `now`.
    pub(super) fn shown(&self, now: Instant) -> impl Iterator<Item = &Record> {
        self.records.values().filter(move |record| match record.presence {
            Presence::Active | Presence::Down => true,
            Presence::Left => now.duration_since(record.since) < SHOW_LEFT,
            Presence::Superseded => false,
        })
    }

    /// The first down member behind `cursor` in the order of addresses, going round.
    pub(super) fn next_down(&self, cursor: Option<SocketAddr>) -> Option<&Identity> {
        let is_down = |record: &&Record| record.presence == Presence::Down;
        let behind = cursor.and_then(|cursor| {
            use std::ops::Bound::{Excluded, Unbounded};
            self.records.range((Excluded(cursor), Unbounded)).map(|(_, r)| r).find(is_down)
        });
        behind.or_else(|| self.records.values().find(is_down)).map(|record| &record.identity)
    }

    pub(super) fn down_count(&self) -> usize {
        self.records.values().filter(|record| record.presence == Presence::Down).count()
    }

    /// foca: an identity is active that was not, or an active one has another in its place.
    pub(super) fn up(&mut self, identity: &Identity, now: Instant) -> Vec<MembershipEvent> {
        self.leaving.remove(&identity.addr);
        let before = self.records.get(&identity.addr);
        let before = before.filter(|before| before.presence == Presence::Active);
        let before = before.map(|before| before.identity.clone());
        if before.as_ref() == Some(identity) {
            return Vec::new();
        }
        // Who goes on where it was supersedes nobody: if somebody else has its data plane, that
        // one is no former self of it.
        let goes_on =
            before.as_ref().is_some_and(|before| before.data_plane == identity.data_plane);
        let former = if goes_on { None } else { self.retire_former(identity, now) };
        self.insert(identity, Presence::Active, now);
        self.active += usize::from(before.is_none());
        let new = identity.clone();
        match (before, former) {
            (Some(displaced), Some(old)) => vec![
                MembershipEvent::MemberDown(displaced),
                MembershipEvent::MemberChanged { old, new },
            ],
            (Some(old), None) | (None, Some(old)) => {
                vec![MembershipEvent::MemberChanged { old, new }]
            }
            (None, None) => vec![MembershipEvent::MemberUp(new)],
        }
    }

    /// Takes note that a node has another address. Returns what it was, if it was active.
    fn retire_former(&mut self, new: &Identity, now: Instant) -> Option<Identity> {
        let former = self.latest(new.data_plane)?;
        let is_former = former.addr != new.addr && former.generation < new.generation;
        if !is_former || !self.supersede {
            return None;
        }
        let former = former.addr;
        let record = self.records.get_mut(&former)?;
        let presence = std::mem::replace(&mut record.presence, Presence::Superseded);
        record.since = now;
        let former = record.identity.clone();
        (presence == Presence::Active).then(|| {
            self.active -= 1;
            self.retired.push(former.clone());
            former
        })
    }

    fn insert(&mut self, identity: &Identity, presence: Presence, now: Instant) {
        self.changed = true;
        let latest = self.latest(identity.data_plane);
        if latest.is_none_or(|latest| latest.generation <= identity.generation) {
            self.latest.insert(identity.data_plane, identity.addr);
        }
        let record = Record { identity: identity.clone(), presence, since: now };
        let old = self.records.insert(identity.addr, record);
        if let Some(old) = old.filter(|old| old.identity.data_plane != identity.data_plane) {
            self.forget_latest(&old.identity);
        }
    }

    /// An identity is not at its address any more.
    fn forget_latest(&mut self, identity: &Identity) {
        if self.latest.get(&identity.data_plane) != Some(&identity.addr) {
            return;
        }
        self.latest.remove(&identity.data_plane);
        let others = self.records.values().map(|record| &record.identity);
        let others = others.filter(|other| other.data_plane == identity.data_plane);
        if let Some(addr) = others.max_by_key(|other| other.generation).map(|other| other.addr) {
            self.latest.insert(identity.data_plane, addr);
        }
    }

    fn remove(&mut self, addr: SocketAddr) -> Option<Identity> {
        let record = self.records.remove(&addr)?;
        self.changed = true;
        self.forget_latest(&record.identity);
        Some(record.identity)
    }

    /// Forgets who is not active at an address.
    pub(super) fn forget_gone(&mut self, addr: SocketAddr) -> Option<Identity> {
        if self.is_active(addr) { None } else { self.remove(addr) }
    }

    /// foca: an active identity went down.
    pub(super) fn down(&mut self, identity: &Identity, now: Instant) -> Option<MembershipEvent> {
        let left = self.leaving.remove(&identity.addr) == Some(identity.generation);
        let record = self.records.get(&identity.addr)?;
        let was_active = record.presence == Presence::Active;
        if record.presence == Presence::Superseded {
            return None;
        }
        self.insert(identity, if left { Presence::Left } else { Presence::Down }, now);
        if !was_active {
            return None;
        }
        self.active -= 1;
        Some(if left {
            MembershipEvent::MemberLeft(identity.clone())
        } else {
            MembershipEvent::MemberDown(identity.clone())
        })
    }

    /// foca: an address has a newer identity; whether it is active is told apart from this.
    pub(super) fn rename(&mut self, new: &Identity, now: Instant) -> Vec<MembershipEvent> {
        match self.records.get(&new.addr).map(|record| record.presence) {
            Some(Presence::Active) => self.up(new, now),
            // Whoever was here moved away in the same batch, and to foca the address never was
            // without a live member.
            Some(Presence::Superseded) if self.retired.iter().any(|old| old.addr == new.addr) => {
                self.retired.retain(|old| old.addr != new.addr);
                self.up(new, now)
            }
            Some(presence) => {
                self.insert(new, presence, now);
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// Remembers a member of whom only its end was heard. No event: it was never up here.
    pub(super) fn remember_gone(&mut self, identity: &Identity, left: bool, now: Instant) {
        if !self.knows(identity.addr) {
            self.insert(identity, if left { Presence::Left } else { Presence::Down }, now);
        }
    }

    /// Remembers a former self of a node of which only the present one was known.
    pub(super) fn remember_superseded(&mut self, identity: &Identity, now: Instant) {
        if !self.knows(identity.addr) {
            self.insert(identity, Presence::Superseded, now);
        }
    }

    /// Notes that this start of a node leaves. A member already taken for failed is corrected.
    pub(super) fn mark_leaving(&mut self, identity: &Identity) -> Option<MembershipEvent> {
        let record = self.records.get_mut(&identity.addr)?;
        if identity.generation < record.identity.generation {
            return None;
        }
        match record.presence {
            Presence::Active => {
                self.leaving.insert(identity.addr, identity.generation);
                None
            }
            Presence::Down if record.identity == *identity => {
                record.presence = Presence::Left;
                self.changed = true;
                Some(MembershipEvent::MemberLeft(identity.clone()))
            }
            Presence::Down | Presence::Left | Presence::Superseded => None,
        }
    }

    /// Forgets announced departures that did not come to pass.
    pub(super) fn clear_leaving(&mut self) {
        self.leaving.clear();
    }

    /// Takes out a member that was down or left for so long.
    pub(super) fn forget_old(&mut self, now: Instant, remember: Duration) -> Option<Identity> {
        let old = self.records.values().find(|record| {
            record.presence != Presence::Active && now.duration_since(record.since) >= remember
        })?;
        let addr = old.identity.addr;
        self.remove(addr)
    }

    /// Takes out the member that is gone for longest, if the table is full.
    pub(super) fn make_room(&mut self) -> Option<Identity> {
        if self.room() > 0 {
            return None;
        }
        let gone = self.records.values().filter(|record| record.presence != Presence::Active);
        let addr = gone.min_by_key(|record| record.since)?.identity.addr;
        self.remove(addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::testing::{identity, start};

    #[test]
    fn a_member_that_is_up_twice_is_reported_once() {
        let (now, mut roster) = (start(), Roster::new(8, true));

        assert_eq!(roster.up(&identity(1), now), [MembershipEvent::MemberUp(identity(1))]);
        assert_eq!(roster.up(&identity(1), now), []);
        assert_eq!(roster.active_count(), 1);
    }

    #[test]
    fn a_member_that_said_it_leaves_is_left_and_not_down() {
        let (now, mut roster) = (start(), Roster::new(8, true));
        roster.up(&identity(1), now);

        roster.mark_leaving(&identity(1));

        assert_eq!(roster.down(&identity(1), now), Some(MembershipEvent::MemberLeft(identity(1))));
        assert_eq!(roster.active_count(), 0);
    }

    #[test]
    fn the_departure_of_an_earlier_start_says_nothing_about_this_one() {
        let (now, mut roster) = (start(), Roster::new(8, true));
        let restarted = identity(1).with_generation(identity(1).generation.next());
        roster.up(&restarted, now);

        roster.mark_leaving(&identity(1));

        assert_eq!(
            roster.down(&restarted, now),
            Some(MembershipEvent::MemberDown(restarted.clone()))
        );
    }

    #[test]
    fn two_that_exchange_their_addresses_in_one_batch_are_both_active() {
        let (now, mut roster) = (start(), Roster::new(8, true));
        let (one, two) = (identity(1), identity(2));
        let at = |node: &Identity, other: &Identity| Identity {
            addr: other.addr,
            vtep: other.vtep,
            generation: node.generation.next(),
            ..node.clone()
        };
        roster.up(&one, now);
        roster.up(&two, now);

        roster.rename(&at(&one, &two), now);
        roster.rename(&at(&two, &one), now);

        assert!(roster.is_active(one.addr) && roster.is_active(two.addr));
        assert_eq!((roster.active_count(), roster.take_retired()), (2, vec![]));
    }

    #[test]
    fn a_late_goodbye_corrects_a_failure() {
        let (now, mut roster) = (start(), Roster::new(8, true));
        roster.up(&identity(1), now);
        roster.down(&identity(1), now);

        let event = roster.mark_leaving(&identity(1));

        assert_eq!(event, Some(MembershipEvent::MemberLeft(identity(1))));
        assert_eq!(roster.mark_leaving(&identity(1)), None);
        assert_eq!(roster.next_down(None), None);
    }

    /// Node 1 at another address.
    fn renumbered() -> Identity {
        let (old, new) = (identity(1), identity(9));
        Identity {
            name: old.name,
            data_plane: old.data_plane,
            generation: old.generation.next(),
            ..new
        }
    }

    #[test]
    fn a_node_at_another_address_takes_the_place_of_what_it_was() {
        let (now, mut roster) = (start(), Roster::new(8, true));
        roster.up(&identity(1), now);

        let events = roster.up(&renumbered(), now);

        let (old, new) = (identity(1), renumbered());
        assert_eq!(events, [MembershipEvent::MemberChanged { old, new }]);
        assert_eq!(roster.take_retired(), [identity(1)]);
        assert_eq!(roster.active().collect::<Vec<_>>(), [&renumbered()]);
        assert_eq!((roster.active_count(), roster.down(&identity(1), now)), (1, None));
        assert!(roster.is_superseded(&identity(1)));
        assert_eq!((roster.next_down(None), roster.shown(now).count()), (None, 1));
    }

    #[test]
    fn a_lost_node_that_comes_at_another_address_is_not_lost_any_more() {
        let (now, mut roster) = (start(), Roster::new(8, true));
        roster.up(&identity(1), now);
        roster.down(&identity(1), now);

        assert_eq!(roster.up(&renumbered(), now), [MembershipEvent::MemberUp(renumbered())]);

        assert_eq!((roster.take_retired(), roster.down_count()), (vec![], 0));
    }

    #[test]
    fn who_has_the_data_plane_of_another_and_lives_is_no_former_self() {
        let (now, mut roster) = (start(), Roster::new(8, true));
        roster.up(&renumbered(), now);
        let clone = identity(1);

        assert!(roster.is_superseded(&clone));
        assert_eq!(roster.up(&clone, now), [MembershipEvent::MemberUp(clone.clone())]);
        assert!(!roster.is_superseded(&clone));
        let renewed = renumbered().with_generation(renumbered().generation.next());
        roster.rename(&renewed, now);

        assert_eq!((roster.active_count(), roster.take_retired()), (2, vec![]));
    }

    #[test]
    fn down_members_are_visited_in_turn() {
        let (now, mut roster) = (start(), Roster::new(8, true));
        for number in 1..=3 {
            roster.up(&identity(number), now);
            roster.down(&identity(number), now);
        }

        let mut cursor = None;
        let mut visited = Vec::new();
        for _ in 0..4 {
            cursor = roster.next_down(cursor).map(|down| down.addr);
            visited.push(cursor);
        }

        let addrs = [1, 2, 3, 1].map(|number| Some(identity(number).addr));
        assert_eq!(visited, addrs);
    }

    #[test]
    fn a_full_table_forgets_who_is_gone_for_longest_and_nobody_else() {
        let (now, mut roster) = (start(), Roster::new(2, true));
        roster.up(&identity(1), now);
        roster.up(&identity(2), now);
        assert_eq!(roster.make_room(), None);

        roster.down(&identity(2), now);

        assert_eq!(roster.make_room(), Some(identity(2)));
        assert_eq!(roster.room(), 1);
    }

    #[test]
    fn who_is_gone_for_a_day_is_forgotten() {
        let (now, mut roster) = (start(), Roster::new(2, true));
        roster.up(&identity(1), now);
        roster.down(&identity(1), now);

        let day = Duration::from_hours(24);
        assert_eq!(roster.forget_old(now + Duration::from_hours(23), day), None);
        assert_eq!(roster.forget_old(now + day, day), Some(identity(1)));
        assert!(!roster.knows(identity(1).addr));
    }
}
