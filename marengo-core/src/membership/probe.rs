//! Pings beyond foca's: the same one again while it is not answered, and questions to suspects.
//!
//! foca sends one ping in a probe, and one request to each of three others. On a network that loses
//! every twentieth packet one probe in a thousand fails although all are well, and on one that loses
//! two in five almost every second does. And a suspect that nobody happens to talk to does not learn
//! that it has to refute.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use foca::{Member, Message, State, Timer};
use rand::RngExt as _;

use super::{
    Membership, Transmit,
    codec::{self, Payload},
    envelope::{self, Kind},
};
use crate::{control::Control, identity::Identity};

/// How often a ping is sent at most.
const PINGS: u32 = 5;

/// How often a suspect is asked at most, in the time that it has.
const QUESTIONS: u32 = 8;

/// How many nodes, about, ask a suspect, beside those who missed an answer of it.
const ASKERS: usize = 10;

/// A ping of foca's that has not been answered.
#[derive(Debug)]
pub(super) struct Unanswered {
    to: SocketAddr,
    number: u8,
    datagram: Bytes,
    sent: u32,
    next_at: Instant,
}

impl Unanswered {
    pub(super) fn next_deadline(&self) -> Instant {
        self.next_at
    }
}

/// Whom to ask, because it is suspected.
#[derive(Debug, Default)]
pub(super) struct Inquiries(BTreeMap<SocketAddr, Inquiry>);

#[derive(Debug)]
struct Inquiry {
    left: u32,
    next_at: Instant,
}

impl Inquiries {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.0.values().map(|inquiry| inquiry.next_at).min()
    }

    /// A suspect is asked from then on, or from before if that was said already.
    fn open(&mut self, from: Instant, addr: SocketAddr) {
        let inquiry = self.0.entry(addr).or_insert(Inquiry { left: QUESTIONS, next_at: from });
        inquiry.next_at = inquiry.next_at.min(from);
    }

    pub(super) fn retain(&mut self, is_suspect: impl Fn(SocketAddr) -> bool) {
        self.0.retain(|addr, _| is_suspect(*addr));
    }

    fn take_due(&mut self, now: Instant, pause: Duration) -> Vec<SocketAddr> {
        let mut due = Vec::new();
        self.0.retain(|addr, inquiry| {
            if inquiry.next_at <= now {
                due.push(*addr);
                inquiry.left -= 1;
                inquiry.next_at = now + pause;
            }
            inquiry.left > 0
        });
        due
    }
}

impl Membership {
    /// Notes what foca sends: pings are to be answered.
    pub(super) fn note_ping(&mut self, now: Instant, to: SocketAddr, payload: &[u8], sent: &Bytes) {
        if !self.config.has(Control::RepeatPings) {
            return;
        }
        if let Some(Message::Ping(number)) = codec::message_of(payload) {
            self.unanswered = Some(Unanswered {
                to,
                number,
                datagram: sent.clone(),
                sent: 1,
                next_at: now + self.config.profile.pace().probe_rtt / 3,
            });
        }
    }

    pub(super) fn note_answer(&mut self, from: SocketAddr, message: &Message<Identity>) {
        let answered = if let Message::Ack(number) = message {
            (from, *number)
        } else if let Message::ForwardedAck { origin, probe_number } = message {
            (origin.addr, *probe_number)
        } else {
            return;
        };
        if self.unanswered.as_ref().is_some_and(|ping| answered == (ping.to, ping.number)) {
            self.unanswered = None;
        }
    }

    pub(super) fn ping_again(&mut self, now: Instant) {
        let pause = self.config.profile.pace().probe_rtt / 3;
        let Some(ping) = self.unanswered.as_mut().filter(|ping| ping.next_at <= now) else {
            return;
        };
        if ping.sent >= PINGS || !self.roster.is_active(ping.to) {
            self.unanswered = None;
            return;
        }
        ping.sent += 1;
        ping.next_at = now + pause;
        self.transmits.push_back(Transmit { to: ping.to, data: ping.datagram.clone() });
    }

    /// foca wants to be reminded of something: of a suspicion of its own, maybe.
    pub(super) fn note_suspicion(&mut self, now: Instant, timer: &Timer<Identity>) {
        if let Timer::ChangeSuspectToDown { member_id, .. } = timer
            && self.config.has(Control::TellSuspects)
            && !self.restarting.has(member_id)
        {
            self.inquiries.open(now, member_id.addr);
            self.suspects_stale = true;
        }
    }

    /// Others suspect somebody.
    pub(super) fn join_inquiry(&mut self, now: Instant, addr: SocketAddr) {
        let others = self.roster.active_count().max(1);
        let is_restarting =
            self.roster.get(addr).is_some_and(|record| self.restarting.has(&record.identity));
        if !self.config.has(Control::TellSuspects) || is_restarting {
            return;
        }
        // The others wait: until then it is declared down, or they hear that it has refuted. Who
        // missed both asks, too; nobody tells it again.
        let is_asker = self.rng.random_range(0..others) < ASKERS;
        let from = if is_asker { now } else { now + self.config.node_timeout * 2 };
        self.inquiries.open(from, addr);
    }

    /// Asks suspects, and tells them that they are.
    pub(super) fn ask_suspects(&mut self, now: Instant) {
        let pause = self.config.node_timeout / (QUESTIONS + 1);
        for addr in self.inquiries.take_due(now, pause) {
            let suspect = self
                .foca
                .iter_members()
                .find(|member| member.state() == State::Suspect && member.id().addr == addr);
            if let Some(suspect) = suspect.cloned() {
                self.greet_member(suspect.id().clone(), vec![suspect]);
            }
        }
    }

    /// Sends a ping of our own, so that a member hears of this identity, and of `updates`, and
    /// answers.
    pub(super) fn greet_member(&mut self, dst: Identity, updates: Vec<Member<Identity>>) {
        let to = dst.addr;
        let header = foca::Header {
            src: self.identity.clone(),
            src_incarnation: 0,
            dst,
            // foca takes the answer for its own probe's only if it was to come anyway.
            message: Message::Ping(0),
        };
        if let Ok(payload) = (Payload { header, updates }).emit() {
            let data = envelope::emit(Kind::Gossip, &self.config.cluster, &payload);
            self.transmits.push_back(Transmit { to, data });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::testing::{identity, start};

    #[test]
    fn who_waits_to_ask_a_suspect_asks_at_once_when_it_suspects_it_itself() {
        let (now, mut inquiries) = (start(), Inquiries::default());
        let (pause, later) = (Duration::from_millis(100), now + Duration::from_secs(6));
        let (one, two) = (identity(1).addr, identity(2).addr);
        inquiries.open(later, one);
        inquiries.open(later, two);
        assert_eq!(inquiries.take_due(now, pause), []);

        inquiries.open(now, one);

        assert_eq!(inquiries.take_due(now, pause), [one]);
        assert_eq!(inquiries.take_due(later, pause), [one, two]);
        inquiries.retain(|_| false);
        assert_eq!(inquiries.next_deadline(), None);
    }
}
