//! Whom to ask "who are you?", and when: seeds and lost members, without end.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt as _};

use crate::identity::canonical;

/// The first and the last pause between two questions to one seed. The last one bounds how long
/// halves that have forgotten each other take to heal.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// The most seeds that are remembered.
const MAX_SEEDS: usize = 64;

/// For how long an answer is waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The most questions that may be open at once.
const MAX_OPEN: usize = 256;

/// An address from which the node joins the cluster.
#[derive(Debug)]
struct Seed {
    addr: SocketAddr,
    /// The gossip address of the node that answered for it last.
    answered_as: Option<SocketAddr>,
    pause: Duration,
    next_at: Instant,
    refusal: Option<String>,
    is_ourselves: bool,
}

/// The addresses the operator gave, each asked again until an active member stands behind it.
#[derive(Debug, Default)]
pub(super) struct Seeds(Vec<Seed>);

impl Seeds {
    /// Replaces the list. What is known about addresses that stay is kept; new ones are due.
    pub(super) fn replace(&mut self, now: Instant, addrs: Vec<SocketAddr>) {
        let mut old = std::mem::take(&mut self.0);
        for addr in addrs {
            if self.0.len() >= MAX_SEEDS || self.0.iter().any(|seed| seed.addr == addr) {
                continue;
            }
            let seed = match old.iter().position(|seed| seed.addr == addr) {
                Some(position) => old.swap_remove(position),
                None => Seed {
                    addr,
                    answered_as: None,
                    pause: BACKOFF.0,
                    next_at: now,
                    refusal: None,
                    is_ourselves: false,
                },
            };
            self.0.push(seed);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.0.iter().filter(|seed| !seed.is_ourselves).map(|seed| seed.next_at).min()
    }

    /// The seeds to ask at `now`. One that is covered by an active member is not asked, and once
    /// it is not covered any more it is asked at the first pace again.
    pub(super) fn take_due(
        &mut self,
        now: Instant,
        is_active: impl Fn(SocketAddr) -> bool,
        rng: &mut impl Rng,
    ) -> Vec<SocketAddr> {
        let mut due = Vec::new();
        for seed in self.0.iter_mut().filter(|seed| !seed.is_ourselves && seed.next_at <= now) {
            let behind = seed.answered_as.unwrap_or_else(|| canonical(seed.addr));
            if is_active(behind) {
                seed.pause = BACKOFF.0;
                seed.next_at = now + seed.pause;
            } else {
                due.push(seed.addr);
                // Between three quarters of the pause and all of it: nodes that were cut off
                // together do not ask together, and none waits longer than the last pause.
                seed.next_at = now + seed.pause.mul_f64(rng.random_range(0.75..1.0));
                seed.pause = (seed.pause * 3 / 2).min(BACKOFF.1);
            }
        }
        due
    }

    /// Asks all again soon.
    pub(super) fn hurry(&mut self, now: Instant) {
        for seed in &mut self.0 {
            seed.pause = BACKOFF.0;
            seed.next_at = seed.next_at.min(now + BACKOFF.0);
        }
    }

    /// A node answered for a seed.
    pub(super) fn answered(&mut self, seed: SocketAddr, by: SocketAddr) {
        if let Some(seed) = self.get_mut(seed) {
            seed.answered_as = Some(by);
            seed.refusal = None;
        }
    }

    /// The seed is this node itself: it is not asked again.
    pub(super) fn is_ourselves(&mut self, seed: SocketAddr) {
        if let Some(seed) = self.get_mut(seed) {
            seed.is_ourselves = true;
        }
    }

    /// This node has another address: what was its own may be somebody else's.
    pub(super) fn moved(&mut self, now: Instant) {
        for seed in self.0.iter_mut().filter(|seed| seed.is_ourselves) {
            seed.is_ourselves = false;
            seed.next_at = now;
        }
    }

    /// A seed does not fit. Returns whether that is news.
    pub(super) fn refused(&mut self, seed: SocketAddr, reason: &str) -> bool {
        let Some(seed) = self.get_mut(seed) else { return false };
        let is_news = seed.refusal.as_deref() != Some(reason);
        seed.refusal = Some(reason.to_owned());
        is_news
    }

    fn get_mut(&mut self, addr: SocketAddr) -> Option<&mut Seed> {
        self.0.iter_mut().find(|seed| seed.addr == addr)
    }
}

/// The open questions by nonce. An answer counts by its nonce and not by where it comes from: a
/// node may answer from another of its addresses than the one that was asked.
#[derive(Debug, Default)]
pub(super) struct Questions(BTreeMap<u64, Question>);

#[derive(Clone, Copy, Debug)]
struct Question {
    asked: SocketAddr,
    at: Instant,
}

impl Questions {
    /// Opens a question and returns its nonce.
    pub(super) fn open(&mut self, now: Instant, asked: SocketAddr, rng: &mut impl Rng) -> u64 {
        self.0.retain(|_, question| now.duration_since(question.at) < ANSWER_WITHIN);
        if self.0.len() >= MAX_OPEN
            && let Some(oldest) = self.0.iter().min_by_key(|(_, q)| q.at).map(|(nonce, _)| *nonce)
        {
            self.0.remove(&oldest);
        }
        let nonce = rng.random();
        self.0.insert(nonce, Question { asked, at: now });
        nonce
    }

    /// Closes a question. Returns the address that was asked.
    pub(super) fn close(&mut self, now: Instant, nonce: u64) -> Option<SocketAddr> {
        let question = self.0.remove(&nonce)?;
        (now.duration_since(question.at) < ANSWER_WITHIN).then_some(question.asked)
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;
    use crate::membership::testing::start;

    fn addr(number: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], number))
    }

    #[test]
    fn a_silent_seed_is_asked_for_ever_and_ever_more_seldom() {
        let (mut now, mut seeds, mut rng) = (start(), Seeds::default(), StdRng::seed_from_u64(1));
        seeds.replace(now, vec![addr(1)]);
        let mut pauses = Vec::new();

        for _ in 0..20 {
            assert_eq!(seeds.take_due(now, |_| false, &mut rng), [addr(1)]);
            let next = seeds.next_deadline().unwrap();
            pauses.push(next - now);
            now = next;
        }

        assert!(pauses[0] <= BACKOFF.0);
        assert!(pauses[10..].iter().all(|pause| *pause >= BACKOFF.1 * 3 / 4));
        assert!(pauses.iter().all(|pause| *pause <= BACKOFF.1));
    }

    #[test]
    fn a_seed_behind_which_a_member_stands_is_not_asked() {
        let (now, mut seeds, mut rng) = (start(), Seeds::default(), StdRng::seed_from_u64(1));
        seeds.replace(now, vec![addr(1), addr(2)]);
        seeds.answered(addr(1), addr(9));

        let due = seeds.take_due(now, |active| active == addr(9), &mut rng);

        assert_eq!(due, [addr(2)]);
    }

    #[test]
    fn naming_the_same_seeds_again_changes_nothing() {
        let (now, mut seeds, mut rng) = (start(), Seeds::default(), StdRng::seed_from_u64(1));
        seeds.replace(now, vec![addr(1)]);
        seeds.take_due(now, |_| false, &mut rng);
        let before = seeds.next_deadline();

        seeds.replace(now, vec![addr(1), addr(1)]);

        assert_eq!(seeds.next_deadline(), before);
    }

    #[test]
    fn a_refusal_is_news_once() {
        let (now, mut seeds) = (start(), Seeds::default());
        seeds.replace(now, vec![addr(1)]);

        assert!(seeds.refused(addr(1), "other cluster"));
        assert!(!seeds.refused(addr(1), "other cluster"));
        assert!(seeds.refused(addr(1), "other protocol"));
    }

    #[test]
    fn a_question_is_answered_once_and_in_time() {
        let (now, mut questions, mut rng) =
            (start(), Questions::default(), StdRng::seed_from_u64(1));
        let first = questions.open(now, addr(1), &mut rng);
        let second = questions.open(now, addr(2), &mut rng);

        assert_eq!(questions.close(now, first), Some(addr(1)));
        assert_eq!(questions.close(now, first), None);
        assert_eq!(questions.close(now + ANSWER_WITHIN, second), None);
    }

    #[test]
    fn open_questions_are_bounded() {
        let (now, mut questions, mut rng) =
            (start(), Questions::default(), StdRng::seed_from_u64(1));

        for _ in 0..2 * MAX_OPEN {
            questions.open(now, addr(1), &mut rng);
        }

        assert_eq!(questions.0.len(), MAX_OPEN);
    }
}
