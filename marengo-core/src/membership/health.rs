//! How well this node itself is, and with it how much its opinion of others is worth.
//!
//! A process that gets little of the processor sends its pings late and reads the answers late, and
//! to it everybody else looks slow. Its own timers tell: they fire late. While they do, it probes
//! less often, and gives those it suspects more time, as Lifeguard has it (Dadgar, Phillips, Currey:
//! "Lifeguard: Local Health Awareness for More Accurate Failure Detection").

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use foca::Timer;

use super::Membership;
use crate::{control::Control, identity::Identity};

/// The worst score.
const WORST: u32 = 8;

/// From this score on nobody is declared down without more time to think.
const POOR: u32 = 4;

/// How often. Whoever is really gone, a node that is well will tell of before that.
const SPARED: u32 = 10;

/// What each point of the score adds to a time, as a part of it.
const PART: u32 = 8;

/// The score: 0 is well. It rises with each late timer and falls again with time.
#[derive(Debug)]
pub(super) struct Health {
    score: u32,
    changed_at: Instant,
    /// Suspects that were given more time at the last moment, and how often.
    spared: BTreeMap<SocketAddr, u32>,
}

impl Health {
    pub(super) fn new(now: Instant) -> Self {
        Self { score: 0, changed_at: now, spared: BTreeMap::new() }
    }

    /// Notes that a timer fired so late; `late` is from when on that counts, and `pace` how often.
    fn note(&mut self, now: Instant, lateness: Duration, late: Duration, pace: Duration) {
        let since = now.saturating_duration_since(self.changed_at);
        if lateness > late {
            if since >= pace || self.score == 0 {
                self.score = (self.score + 1).min(WORST);
                self.changed_at = now;
            }
        } else if since >= pace * 3 && self.score > 0 {
            self.score -= 1;
            self.changed_at = now;
        }
    }

    fn stretch(&self, time: Duration) -> Duration {
        time + time * self.score / PART
    }

    /// Whether this node's opinion is worth little.
    pub(super) fn is_poor(&self) -> bool {
        self.score >= POOR
    }

    /// Whether a suspect is given more time although its time is over.
    fn spares(&mut self, addr: SocketAddr) -> bool {
        if !self.is_poor() {
            return false;
        }
        let times = self.spared.entry(addr).or_default();
        *times += 1;
        *times <= SPARED
    }

    pub(super) fn retain(&mut self, is_suspect: impl Fn(SocketAddr) -> bool) {
        self.spared.retain(|addr, _| is_suspect(*addr));
    }
}

impl Membership {
    /// Looks at how late this call is.
    pub(super) fn examine(&mut self, now: Instant) {
        let pace = self.config.profile.pace();
        if let Some(deadline) = self.timers.next_deadline()
            && self.config.has(Control::LocalHealth)
        {
            let lateness = now.saturating_duration_since(deadline);
            self.health.note(now, lateness, pace.late, pace.probe_period);
        }
    }

    /// After which time a timer of foca's fires, that wants to after `after`.
    pub(super) fn stretched(&self, timer: &Timer<Identity>, after: Duration) -> Duration {
        match timer {
            Timer::SendIndirectProbe { .. }
            | Timer::ProbeRandomMember(_)
            | Timer::ChangeSuspectToDown { .. } => self.health.stretch(after),
            Timer::PeriodicAnnounce(_)
            | Timer::PeriodicAnnounceDown(_)
            | Timer::PeriodicGossip(_)
            | Timer::RemoveDown(_) => after,
        }
    }

    /// Whether a suspect whose time is over gets more of it, because this node is not well.
    pub(super) fn spares(&mut self, now: Instant, timer: &Timer<Identity>) -> bool {
        let Timer::ChangeSuspectToDown { member_id, .. } = timer else { return false };
        let spares = self.health.spares(member_id.addr);
        if spares {
            self.timers.insert(now + self.config.node_timeout / 2, timer.clone());
        }
        spares
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::testing::{identity, start};

    const LATE: Duration = Duration::from_millis(100);
    const PACE: Duration = Duration::from_millis(350);

    #[test]
    fn late_timers_stretch_all_times_up_to_twice() {
        let (mut now, mut health) = (start(), Health::new(start()));
        assert_eq!(health.stretch(PACE), PACE);

        for _ in 0..20 {
            now += PACE;
            health.note(now, LATE * 2, LATE, PACE);
        }

        assert_eq!(health.stretch(PACE), PACE * 2);
    }

    #[test]
    fn who_is_in_time_again_is_well_again() {
        let (mut now, mut health) = (start(), Health::new(start()));
        for _ in 0..20 {
            now += PACE;
            health.note(now, LATE * 2, LATE, PACE);
        }

        for _ in 0..WORST {
            now += PACE * 3;
            health.note(now, Duration::ZERO, LATE, PACE);
        }

        assert_eq!(health.stretch(PACE), PACE);
    }

    #[test]
    fn a_timer_that_is_late_once_spares_nobody_and_many_do_not_for_ever() {
        let (mut now, mut health) = (start(), Health::new(start()));
        let suspect = identity(1).addr;

        health.note(now, LATE * 2, LATE, PACE);
        assert!(!health.spares(suspect));

        for _ in 0..POOR {
            now += PACE;
            health.note(now, LATE * 2, LATE, PACE);
        }
        for _ in 0..SPARED {
            assert!(health.spares(suspect));
        }
        assert!(!health.spares(suspect));
    }
}
