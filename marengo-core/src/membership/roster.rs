//! Everybody this node has heard of, with what foca does not remember: who left, and since when.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{event::MembershipEvent, standing::Known};
use crate::{
    identity::{Generation, Identity},
    members::Standing,
};

/// For how long a member that is down or left is remembered.
const REMEMBER: Duration = Duration::from_hours(24);

/// For how long a member that left is shown.
const SHOW_LEFT: Duration = Duration::from_hours(1);

/// Whether a member is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Presence {
    /// Alive or suspect.
    Active,
    Down,
    Left,
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
}

impl Roster {
    pub(super) fn new(limit: usize) -> Self {
        let (records, leaving) = (BTreeMap::new(), BTreeMap::new());
        Self { records, limit, active: 0, changed: true, leaving }
    }

    pub(super) fn get(&self, addr: SocketAddr) -> Option<&Record> {
        self.records.get(&addr)
    }

    pub(super) fn knows(&self, addr: SocketAddr) -> bool {
        self.records.contains_key(&addr)
    }

    pub(super) fn is_active(&self, addr: SocketAddr) -> bool {
        self.get(addr).is_some_and(|record| record.presence == Presence::Active)
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
    ) -> impl Iterator<Item = Known<'a>> {
        self.records.values().map(|record| {
            let standing = match record.presence {
                Presence::Active if suspects.contains(&record.identity.addr) => {
                    Some(Standing::Suspect)
                }
                Presence::Active => Some(Standing::Alive),
                Presence::Down => Some(Standing::Lost),
                Presence::Left => None,
            };
            (&record.identity, standing)
        })
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
        self.records.values().filter(move |record| {
            record.presence != Presence::Left || now.duration_since(record.since) < SHOW_LEFT
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

    /// foca: an identity is active that was not.
    pub(super) fn up(&mut self, identity: &Identity, now: Instant) -> Option<MembershipEvent> {
        self.leaving.remove(&identity.addr);
        let record = Record { identity: identity.clone(), presence: Presence::Active, since: now };
        let old = self.records.insert(identity.addr, record);
        if let Some(Record { identity: old, presence: Presence::Active, .. }) = old {
            let new = identity.clone();
            self.changed |= old != new;
            return (old != new).then_some(MembershipEvent::MemberChanged { old, new });
        }
        self.active += 1;
        self.changed = true;
        Some(MembershipEvent::MemberUp(identity.clone()))
    }

    /// foca: an active identity went down.
    pub(super) fn down(&mut self, identity: &Identity, now: Instant) -> Option<MembershipEvent> {
        let left = self.leaving.remove(&identity.addr) == Some(identity.generation);
        let presence = if left { Presence::Left } else { Presence::Down };
        let record = Record { identity: identity.clone(), presence, since: now };
        let old = self.records.insert(identity.addr, record)?;
        if old.presence != Presence::Active {
            return None;
        }
        self.active -= 1;
        self.changed = true;
        Some(if left {
            MembershipEvent::MemberLeft(identity.clone())
        } else {
            MembershipEvent::MemberDown(identity.clone())
        })
    }

    /// foca: an address has a newer identity; whether it is active is told apart from this.
    pub(super) fn rename(&mut self, new: &Identity) -> Option<MembershipEvent> {
        let record = self.records.get_mut(&new.addr)?;
        let old = std::mem::replace(&mut record.identity, new.clone());
        self.changed |= old != *new;
        if record.presence != Presence::Active || old == *new {
            return None;
        }
        Some(MembershipEvent::MemberChanged { old, new: new.clone() })
    }

    /// Remembers a member of whom only its end was heard. No event: it was never up here.
    pub(super) fn remember_gone(&mut self, identity: &Identity, left: bool, now: Instant) {
        let presence = if left { Presence::Left } else { Presence::Down };
        self.changed = true;
        self.records.entry(identity.addr).or_insert_with(|| Record {
            identity: identity.clone(),
            presence,
            since: now,
        });
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
            Presence::Down | Presence::Left => None,
        }
    }

    /// Forgets announced departures that did not come to pass.
    pub(super) fn clear_leaving(&mut self) {
        self.leaving.clear();
    }

    /// Takes out a member that was down or left for a day.
    pub(super) fn forget_old(&mut self, now: Instant) -> Option<Identity> {
        let old = self.records.values().find(|record| {
            record.presence != Presence::Active && now.duration_since(record.since) >= REMEMBER
        })?;
        let addr = old.identity.addr;
        self.changed = true;
        self.records.remove(&addr).map(|record| record.identity)
    }

    /// Takes out the member that is gone for longest, if the table is full.
    pub(super) fn make_room(&mut self) -> Option<Identity> {
        if self.room() > 0 {
            return None;
        }
        let gone = self.records.values().filter(|record| record.presence != Presence::Active);
        let addr = gone.min_by_key(|record| record.since)?.identity.addr;
        self.changed = true;
        self.records.remove(&addr).map(|record| record.identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::testing::{identity, start};

    #[test]
    fn a_member_that_is_up_twice_is_reported_once() {
        let (now, mut roster) = (start(), Roster::new(8));

        assert_eq!(roster.up(&identity(1), now), Some(MembershipEvent::MemberUp(identity(1))));
        assert_eq!(roster.up(&identity(1), now), None);
        assert_eq!(roster.active_count(), 1);
    }

    #[test]
    fn a_member_that_said_it_leaves_is_left_and_not_down() {
        let (now, mut roster) = (start(), Roster::new(8));
        roster.up(&identity(1), now);

        roster.mark_leaving(&identity(1));

        assert_eq!(roster.down(&identity(1), now), Some(MembershipEvent::MemberLeft(identity(1))));
        assert_eq!(roster.active_count(), 0);
    }

    #[test]
    fn the_departure_of_an_earlier_start_says_nothing_about_this_one() {
        let (now, mut roster) = (start(), Roster::new(8));
        let restarted = identity(1).with_generation(identity(1).generation.next());
        roster.up(&restarted, now);

        roster.mark_leaving(&identity(1));

        assert_eq!(
            roster.down(&restarted, now),
            Some(MembershipEvent::MemberDown(restarted.clone()))
        );
    }

    #[test]
    fn a_late_goodbye_corrects_a_failure() {
        let (now, mut roster) = (start(), Roster::new(8));
        roster.up(&identity(1), now);
        roster.down(&identity(1), now);

        let event = roster.mark_leaving(&identity(1));

        assert_eq!(event, Some(MembershipEvent::MemberLeft(identity(1))));
        assert_eq!(roster.mark_leaving(&identity(1)), None);
        assert_eq!(roster.next_down(None), None);
    }

    #[test]
    fn down_members_are_visited_in_turn() {
        let (now, mut roster) = (start(), Roster::new(8));
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
        let (now, mut roster) = (start(), Roster::new(2));
        roster.up(&identity(1), now);
        roster.up(&identity(2), now);
        assert_eq!(roster.make_room(), None);

        roster.down(&identity(2), now);

        assert_eq!(roster.make_room(), Some(identity(2)));
        assert_eq!(roster.room(), 1);
    }

    #[test]
    fn who_is_gone_for_a_day_is_forgotten() {
        let (now, mut roster) = (start(), Roster::new(2));
        roster.up(&identity(1), now);
        roster.down(&identity(1), now);

        assert_eq!(roster.forget_old(now + Duration::from_hours(23)), None);
        assert_eq!(roster.forget_old(now + REMEMBER), Some(identity(1)));
        assert!(!roster.knows(identity(1).addr));
    }
}
