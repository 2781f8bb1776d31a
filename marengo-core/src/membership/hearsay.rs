//! Members that others hold for dead.
//!
//! A death is told for some rounds of gossip. Who was asleep or cut off meanwhile would find it out
//! only when the turn of that member comes to be probed: in a large cluster, minutes later. An
//! exchange tells at once, but it may come from the far side of a cut, where everybody here looks
//! dead. So such a member is asked directly, and is taken for dead if it does not answer either.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use foca::{Member, State};
use tracing::info;

use super::{Membership, drive::note};
use crate::{
    control::Control,
    identity::{Generation, Identity},
};

/// How often it is asked, in the time that a suspect has.
const QUESTIONS: u32 = 8;

/// The most that are asked at a time. After a split all of the other side are said to be dead; they
/// answer, and the rest is left to the next exchange.
const MAX_ASKED: usize = 16;

/// Whom to ask whether it lives.
#[derive(Debug, Default)]
pub(super) struct Hearsay(BTreeMap<SocketAddr, Rumour>);

#[derive(Debug)]
struct Rumour {
    generation: Generation,
    asked: u32,
    next_at: Instant,
}

impl Hearsay {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.0.values().map(|rumour| rumour.next_at).min()
    }

    /// Somebody holds an active member for dead.
    pub(super) fn heard(&mut self, now: Instant, of: &Identity) {
        if self.0.len() < MAX_ASKED {
            let rumour = Rumour { generation: of.generation, asked: 0, next_at: now };
            self.0.entry(of.addr).or_insert(rumour);
        }
    }

    /// It has spoken.
    pub(super) fn refuted(&mut self, by: SocketAddr) {
        self.0.remove(&by);
    }

    /// Whoever was asked before has to be asked again: this node did not listen.
    pub(super) fn start_over(&mut self) {
        for rumour in self.0.values_mut() {
            rumour.asked = 0;
        }
    }

    pub(super) fn retain(&mut self, is_active: impl Fn(SocketAddr, Generation) -> bool) {
        self.0.retain(|addr, rumour| is_active(*addr, rumour.generation));
    }

    /// Whom to ask now, and who has been asked in vain.
    fn take_due(&mut self, now: Instant, pause: Duration) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let (mut ask, mut silent) = (Vec::new(), Vec::new());
        for (addr, rumour) in self.0.iter_mut().filter(|(_, rumour)| rumour.next_at <= now) {
            let due = if rumour.asked < QUESTIONS { &mut ask } else { &mut silent };
            due.push(*addr);
            rumour.asked += 1;
            rumour.next_at = now + pause;
        }
        self.0.retain(|addr, _| !silent.contains(addr));
        (ask, silent)
    }
}

impl Membership {
    /// Somebody says that a member is dead. If it is a later start of the member than this node has
    /// heard of, the one that it knows is over, too.
    pub(super) fn note_hearsay(&mut self, now: Instant, of: &Identity) {
        let Some(record) = self.roster.get(of.addr) else { return };
        let known = &record.identity;
        let is_here = self.roster.is_active(of.addr)
            && (known == of || known.generation < of.generation)
            && !self.restarting.has(known);
        if is_here && self.config.has(Control::Hearsay) {
            self.hearsay.heard(now, known);
        }
    }

    /// Asks those of whom others say that they are dead.
    pub(super) fn ask_about_hearsay(&mut self, now: Instant) {
        if self.health.is_poor() {
            self.hearsay.start_over();
        }
        let pause = self.config.node_timeout / QUESTIONS;
        let (ask, silent) = self.hearsay.take_due(now, pause);
        for addr in ask {
            if let Some(member) = self.roster.get(addr).map(|record| record.identity.clone()) {
                self.greet_member(member, Vec::new());
            }
        }
        for addr in silent {
            let member = self.foca.iter_members().find(|member| member.id().addr == addr);
            if let Some(member) = member.filter(|m| !self.restarting.has(m.id())).cloned() {
                info!(node = %member.id(), "others hold it for dead, and it does not answer");
                let (identity, incarnation) = (member.id().clone(), member.incarnation());
                let down = Member::new(identity, incarnation, State::Down);
                note(self.foca.apply_many(std::iter::once(down), true, &mut self.outbox));
                self.drain(now, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::testing::{identity, start};

    const PAUSE: Duration = Duration::from_millis(100);

    #[test]
    fn who_does_not_answer_any_question_is_dead() {
        let (mut now, mut hearsay) = (start(), Hearsay::default());
        let addr = identity(1).addr;
        hearsay.heard(now, &identity(1));

        for _ in 0..QUESTIONS {
            assert_eq!(hearsay.take_due(now, PAUSE), (vec![addr], vec![]));
            assert_eq!(hearsay.take_due(now, PAUSE), (vec![], vec![]), "not twice at once");
            now += PAUSE;
        }

        assert_eq!(hearsay.take_due(now, PAUSE), (vec![], vec![addr]));
        assert_eq!(hearsay.next_deadline(), None);
    }

    #[test]
    fn who_answers_is_asked_no_more() {
        let (now, mut hearsay) = (start(), Hearsay::default());
        hearsay.heard(now, &identity(1));
        hearsay.take_due(now, PAUSE);

        hearsay.refuted(identity(1).addr);

        assert_eq!(hearsay.take_due(now + PAUSE, PAUSE), (vec![], vec![]));
    }

    #[test]
    fn a_crowd_is_not_asked_at_once() {
        let (now, mut hearsay) = (start(), Hearsay::default());

        for number in 1..=100 {
            hearsay.heard(now, &identity(number));
        }

        assert_eq!(hearsay.take_due(now, PAUSE).0.len(), MAX_ASKED);
    }
}
