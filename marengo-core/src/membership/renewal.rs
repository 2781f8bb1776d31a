//! How a node raises its own generation, and how often.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::identity::Generation;

/// The span in which renewals are counted.
const MINUTE: Duration = Duration::from_mins(1);

/// Renewals at will in that span; after each further one, a node rests.
const PER_MINUTE: usize = 3;

/// For how long it rests: a link that flaps may need a renewal each time it comes back, and must
/// not wait for it longer than any other.
const REST: Duration = Duration::from_secs(6);

/// The most that a generation may lie above what this node started with: 139 years of
/// milliseconds.
///
/// A wrong clock must not keep a node out (it may start in 1970), so the bound is far; and it does
/// not move with what others claim, so nobody can push a node to the end of the numbers.
const SPAN: u64 = 1 << 42;

/// What this node remembers of its own generations.
#[derive(Debug)]
pub(super) struct Renewals {
    ceiling: Generation,
    /// The highest generation that anybody claimed for this node's address, unless absurd.
    claimed: Generation,
    recent: VecDeque<Instant>,
    resting_until: Option<Instant>,
}

impl Renewals {
    pub(super) fn new(own: Generation) -> Self {
        let ceiling = Generation(own.0.saturating_add(SPAN));
        let claimed = Generation(0);
        Self { ceiling, claimed, recent: VecDeque::new(), resting_until: None }
    }

    /// Whether no clock could have given this generation.
    pub(super) fn is_absurd(&self, generation: Generation) -> bool {
        generation > self.ceiling
    }

    /// Notes that somebody knows this node's address at another start.
    pub(super) fn observe(&mut self, generation: Generation) {
        if generation < self.ceiling {
            self.claimed = self.claimed.max(generation);
        }
    }

    /// The generation to change to, when others know a later start than `own`.
    pub(super) fn wanted(&self, own: Generation) -> Option<Generation> {
        (self.claimed >= own).then(|| self.claimed.next())
    }

    /// Whether this node renewed itself too often of late and accepts no reason to do it again.
    ///
    /// Two nodes at one address would declare each other down for ever.
    pub(super) fn is_resting(&self, now: Instant) -> bool {
        self.resting_until.is_some_and(|until| now < until)
    }

    /// Notes that this node renewed itself.
    pub(super) fn record(&mut self, now: Instant) {
        self.recent.retain(|at| now.duration_since(*at) < MINUTE);
        self.recent.push_back(now);
        if self.recent.len() >= PER_MINUTE {
            self.resting_until = Some(now + REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::testing::start;

    #[test]
    fn after_three_renewals_in_a_minute_a_node_rests_after_each() {
        let (mut now, mut renewals) = (start(), Renewals::new(Generation(1)));

        for _ in 0..3 {
            assert!(!renewals.is_resting(now));
            renewals.record(now);
        }

        for _ in 0..20 {
            assert!(renewals.is_resting(now + REST.mul_f64(0.99)));
            now += REST;
            assert!(!renewals.is_resting(now));
            renewals.record(now);
        }
    }

    #[test]
    fn renewals_now_and_then_are_no_reason_to_rest() {
        let (mut now, mut renewals) = (start(), Renewals::new(Generation(1)));

        for _ in 0..10 {
            renewals.record(now);
            now += MINUTE / 2;
            assert!(!renewals.is_resting(now));
        }
    }

    #[test]
    fn a_claim_is_topped_unless_it_is_absurd() {
        let mut renewals = Renewals::new(Generation(100));
        assert_eq!(renewals.wanted(Generation(100)), None);

        renewals.observe(Generation(500));
        renewals.observe(Generation(u64::MAX));

        assert_eq!(renewals.wanted(Generation(100)), Some(Generation(501)));
        assert_eq!(renewals.wanted(Generation(501)), None);
        assert!(renewals.is_absurd(Generation(u64::MAX)));
    }
}
