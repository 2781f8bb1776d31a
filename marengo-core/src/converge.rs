//! When to observe, plan and apply.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use marengo_common::FloodChunk;

use crate::op::Op;

/// Why a round is due. It says that something changed, never what: the round finds that out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// The daemon has just started.
    Start,
    /// The membership changed.
    Membership,
    /// The kernel reported a change of a link.
    Kernel,
    /// The kernel reported a change of an address or a route.
    Routes,
    /// The period is over.
    Resync,
    /// The round before failed.
    Retry,
}

/// How a round ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The kernel is as it should be, after so many changes.
    Settled {
        /// Changes that were applied.
        ops: usize,
    },
    /// Something could not be done; what could be is done.
    Failed,
    /// What was left out is to be judged again: see [`is_overdue`].
    Unfinished,
}

/// For so long after a round has judged who stays, it may take out who does not.
const JUDGEMENT_HOLDS: Duration = Duration::from_secs(1);

/// Whether a round that judged at `judged` comes too late to apply an operation.
///
/// A daemon may be stopped, or the kernel slow, in the middle of a plan. By the time that it goes
/// on, the peer that it is about to take out may be back.
pub fn is_overdue(
    op: &Op,
    flood: &BTreeMap<u32, FloodChunk>,
    judged: Instant,
    now: Instant,
) -> bool {
    now.saturating_duration_since(judged) > JUDGEMENT_HOLDS && op.takes_out(flood)
}

/// Decides when the next round is due: at once when something happened, after a back-off when a
/// round failed, and on a period whatever happens.
#[derive(Clone, Debug)]
pub struct Converger {
    interval: Duration,
    due: Instant,
    cause: Cause,
    /// Rounds that failed since the last one that did not.
    failures: u32,
    first_back_off: Duration,
    last_round: Option<Instant>,
}

/// Rounds that the kernel's own reports start are at least this far apart: our changes are reported
/// too, and a link that flaps must not keep the daemon busy.
const KERNEL_SPACING: Duration = Duration::from_millis(100);
/// The same for routes: on a router they change all the time, and each look-up of them costs.
const ROUTES_SPACING: Duration = Duration::from_secs(1);
/// The wait after the first failure; doubled with each further one.
const FIRST_BACK_OFF: Duration = Duration::from_millis(250);

impl Converger {
    /// The first round is due at once.
    pub fn new(now: Instant, interval: Duration) -> Self {
        Self {
            interval,
            due: now,
            cause: Cause::Start,
            failures: 0,
            first_back_off: FIRST_BACK_OFF,
            last_round: None,
        }
    }

    /// Tries again at once after a failure: for a test of what the pauses are good for.
    #[doc(hidden)]
    pub fn without_pauses(&mut self) {
        self.first_back_off = Duration::ZERO;
    }

    /// Says that something changed.
    ///
    /// After a failure the membership's changes are still acted on at once, and the kernel's wait
    /// for the back-off: the failure itself may be what the kernel reports.
    pub fn mark_dirty(&mut self, now: Instant, cause: Cause) {
        let due = match cause {
            Cause::Kernel | Cause::Routes if self.failures > 0 => return,
            Cause::Kernel => self.spaced(now, KERNEL_SPACING),
            Cause::Routes => self.spaced(now, ROUTES_SPACING),
            Cause::Start | Cause::Membership | Cause::Resync | Cause::Retry => now,
        };
        if due < self.due {
            self.due = due;
            self.cause = cause;
        }
    }

    fn spaced(&self, now: Instant, spacing: Duration) -> Instant {
        self.last_round.map_or(now, |last| (last + spacing).max(now))
    }

    /// Whether a round is due, and why.
    pub fn due(&self, now: Instant) -> Option<Cause> {
        (self.due <= now).then_some(self.cause)
    }

    /// When the next round is due.
    pub fn poll_timeout(&self) -> Instant {
        self.due
    }

    /// Sees to it that a round is due at `at`, whatever else happens.
    pub fn again_by(&mut self, at: Instant) {
        if at < self.due {
            self.due = at;
            self.cause = Cause::Retry;
        }
    }

    /// Takes note of a round that ended at `now`.
    pub fn handle_outcome(&mut self, now: Instant, outcome: Outcome) {
        self.last_round = Some(now);
        match outcome {
            Outcome::Settled { .. } => {
                self.failures = 0;
                self.due = now + self.interval;
                self.cause = Cause::Resync;
            }
            Outcome::Failed => {
                let back_off = self.first_back_off.saturating_mul(1 << self.failures.min(10));
                self.failures = self.failures.saturating_add(1);
                self.due = now + back_off.min(self.interval);
                self.cause = Cause::Retry;
            }
            Outcome::Unfinished => {
                self.due = now + KERNEL_SPACING;
                self.cause = Cause::Retry;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use marengo_common::FLOOD_CHUNK;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(6);

    #[test]
    fn a_change_of_membership_is_acted_on_at_once() {
        let (mut converger, start) = settled();
        let now = start + Duration::from_secs(1);

        converger.mark_dirty(now, Cause::Membership);

        assert_eq!(converger.due(now), Some(Cause::Membership));
    }

    #[test]
    fn without_events_a_round_is_due_each_interval() {
        let (converger, start) = settled();

        assert_eq!(converger.due(start + Duration::from_millis(5_999)), None);
        assert_eq!(converger.due(start + INTERVAL), Some(Cause::Resync));
    }

    #[test]
    fn reports_of_the_kernel_start_ten_rounds_a_second_at_most() {
        let (mut converger, start) = settled();
        let now = start + Duration::from_millis(10);

        converger.mark_dirty(now, Cause::Kernel);

        assert_eq!(converger.due(now), None);
        assert_eq!(converger.due(start + KERNEL_SPACING), Some(Cause::Kernel));
    }

    #[test]
    fn failures_back_off_up_to_the_interval() {
        let (mut converger, mut now) = settled();
        let mut waits = Vec::new();
        for _ in 0..8 {
            converger.handle_outcome(now, Outcome::Failed);
            converger.mark_dirty(now, Cause::Kernel);
            waits.push(converger.poll_timeout() - now);
            now = converger.poll_timeout();
        }

        assert!(waits.is_sorted());
        assert_eq!(waits[0], FIRST_BACK_OFF);
        assert_eq!(waits[7], INTERVAL);
    }

    #[test]
    fn who_was_judged_long_ago_is_judged_again_soon() {
        let (mut converger, judged) = settled();
        let now = judged + JUDGEMENT_HOLDS + Duration::from_millis(1);
        let chunk = |peers: &[u32]| {
            let mut chunk = FloodChunk { peers: [0; FLOOD_CHUNK] };
            chunk.peers[..peers.len()].copy_from_slice(peers);
            chunk
        };
        let flood = BTreeMap::from([(0, chunk(&[1, 2]))]);
        assert!(is_overdue(&Op::DeletePeer(1), &flood, judged, now));
        assert!(!is_overdue(&Op::DeletePeer(1), &flood, judged, judged + JUDGEMENT_HOLDS));
        assert!(!is_overdue(&Op::SetDeviceDown, &flood, judged, now));
        assert!(is_overdue(&Op::PutFlood(0, chunk(&[1, 3])), &flood, judged, now));
        assert!(!is_overdue(&Op::PutFlood(0, chunk(&[2, 1, 3])), &flood, judged, now));

        converger.handle_outcome(now, Outcome::Unfinished);

        assert_eq!(converger.due(now + KERNEL_SPACING), Some(Cause::Retry));
    }

    fn settled() -> (Converger, Instant) {
        #[expect(clippy::disallowed_methods, reason = "a test may start anywhere")]
        let now = Instant::now();
        let mut converger = Converger::new(now, INTERVAL);
        converger.handle_outcome(now, Outcome::Settled { ops: 1 });
        (converger, now)
    }
}
