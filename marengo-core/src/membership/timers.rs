//! foca's timers, in the order in which it wants them.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use foca::Timer;

use crate::identity::Identity;

/// Timers that foca wants back, earliest first; of those with one deadline in the order that foca
/// defines for them.
///
/// Their number is bounded by what foca does: three periodic ones, two of the running probe, and
/// one for each member suspected within the last `node_timeout`. What belongs to an earlier
/// connection is dropped with [`Timers::clear`].
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<Entry>>,
    inserted: u64,
}

#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Entry {
    deadline: Instant,
    timer: Timer<Identity>,
    /// foca's order puts timers of one kind at one place; this makes it total.
    inserted: u64,
}

impl Timers {
    pub(super) fn insert(&mut self, deadline: Instant, timer: Timer<Identity>) {
        self.inserted += 1;
        self.heap.push(Reverse(Entry { deadline, timer, inserted: self.inserted }));
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(entry)| entry.deadline)
    }

    /// Takes the next timer whose deadline has passed.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Timer<Identity>> {
        if self.next_deadline()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry.timer)
    }

    /// Drops all timers. Only for when foca has invalidated them itself.
    pub(super) fn clear(&mut self) {
        self.heap.clear();
    }

    /// Postpones all timers by the time for which the process was stopped, if it was for longer than
    /// `stall`, and by `grace` on top.
    ///
    /// A node that was stopped has no right to an opinion about who answered meanwhile. For foca,
    /// that time did not pass. Returns for how long the process was stopped, if it was.
    pub(super) fn forgive_stall(
        &mut self,
        now: Instant,
        stall: Duration,
        grace: Duration,
    ) -> Option<Duration> {
        let late = now.checked_duration_since(self.next_deadline()?)?;
        if late <= stall {
            return None;
        }
        self.heap = self
            .heap
            .drain()
            .map(|Reverse(entry)| {
                Reverse(Entry { deadline: entry.deadline + late + grace, ..entry })
            })
            .collect();
        Some(late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::testing::{identity, start};

    #[test]
    fn timers_of_one_deadline_come_in_the_order_foca_wants() {
        let (now, mut timers) = (start(), Timers::default());
        let probe = Timer::ProbeRandomMember(0);
        let indirect = Timer::SendIndirectProbe { probed_id: identity(1), token: 0 };

        timers.insert(now, Timer::PeriodicGossip(0));
        timers.insert(now, probe.clone());
        timers.insert(now, indirect.clone());

        assert_eq!(timers.take_due(now), Some(indirect));
        assert_eq!(timers.take_due(now), Some(probe));
        assert_eq!(timers.take_due(now), Some(Timer::PeriodicGossip(0)));
        assert_eq!(timers.take_due(now), None);
    }

    #[test]
    fn a_timer_waits_for_its_deadline() {
        let (now, mut timers) = (start(), Timers::default());
        let later = now + Duration::from_millis(1);

        timers.insert(later, Timer::PeriodicGossip(0));

        assert_eq!(timers.take_due(now), None);
        assert_eq!(timers.next_deadline(), Some(later));
        assert!(timers.take_due(later).is_some());
    }

    #[test]
    fn the_time_of_a_stall_does_not_count() {
        let (now, mut timers) = (start(), Timers::default());
        let second = Duration::from_secs(1);
        timers.insert(now + second, Timer::ProbeRandomMember(0));
        timers.insert(now + 2 * second, Timer::PeriodicGossip(0));

        let woken = now + 9 * second;
        let stalled = timers.forgive_stall(woken, second, second);

        assert_eq!(stalled, Some(8 * second));
        assert_eq!(timers.take_due(woken), None);
        assert_eq!(timers.next_deadline(), Some(woken + second));
        assert_eq!(timers.take_due(woken + second), Some(Timer::ProbeRandomMember(0)));
        assert_eq!(timers.next_deadline(), Some(woken + 2 * second));
    }

    #[test]
    fn being_a_little_late_is_no_stall() {
        let (now, mut timers) = (start(), Timers::default());
        let second = Duration::from_secs(1);
        timers.insert(now, Timer::PeriodicGossip(0));

        assert_eq!(timers.forgive_stall(now + second, second, second), None);
        assert!(timers.take_due(now + second).is_some());
    }
}
