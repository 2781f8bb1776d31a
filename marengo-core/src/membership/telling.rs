//! Telling everybody who this node is, until they answer.
//!
//! Gossip spreads news for some rounds only. Whoever loses all of them hears of a node that began by
//! its next exchange, half a minute later, and of a node that has another address not before its
//! frames are lost. So who begins or becomes somebody else tells everybody itself.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{RngExt as _, seq::SliceRandom as _};

use super::Membership;
use crate::{
    control::Control,
    identity::{Generation, Identity},
};

/// The first and the last pause between two rounds.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// After so many rounds, a quarter of a minute or more, whoever has not answered is left to gossip.
const ROUNDS: u32 = 17;

/// The time that gossip gets before, or up to half as much again.
const GOSSIP_FIRST: Duration = Duration::from_secs(2);

/// How many are told at once by a node that is in no hurry, and the share of the members if that is
/// more: a round takes five seconds at most.
const FEW: (usize, usize) = (8, 50);

/// From this round on, nodes are asked who they are as well: one of them may hold an earlier owner
/// of our address for later than us, and its answer says so.
const ASK_FROM: u32 = 2;

/// Why others are told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Occasion {
    /// This node has another address: what is sent to the former one is lost.
    Moved,
    /// This node began, or has another generation. Almost all hear of it by gossip.
    Began,
}

/// Who has heard of this node's present identity.
#[derive(Debug)]
pub(super) struct Telling {
    occasion: Occasion,
    /// Which start of whom has sent something to it.
    answered: BTreeMap<SocketAddr, Generation>,
    /// Who is yet to be told in this round.
    left: Vec<SocketAddr>,
    round: u32,
    pause: Duration,
    next_at: Instant,
}

impl Telling {
    fn new(occasion: Occasion, from: Instant) -> Self {
        Self {
            occasion,
            answered: BTreeMap::new(),
            left: Vec::new(),
            round: 0,
            pause: PAUSE.0,
            next_at: from,
        }
    }

    pub(super) fn next_deadline(&self) -> Instant {
        self.next_at
    }

    fn is_answered_by(&self, member: &Identity) -> bool {
        self.answered.get(&member.addr) == Some(&member.generation)
    }
}

/// How many of so many members are told at once.
fn few_of(members: usize) -> usize {
    FEW.0.max(members.div_ceil(FEW.1))
}

impl Membership {
    /// Tells everybody at once that this node has another address.
    pub(super) fn tell_move(&mut self, now: Instant) {
        self.telling = Some(Telling::new(Occasion::Moved, now));
        self.tell_identity(now);
    }

    /// This node began, or has another generation. Gossip has its time, and then those are told who
    /// have not answered to that; but while others are told of another address, all are told of
    /// both, at once.
    pub(super) fn tell_beginning(&mut self, now: Instant) {
        if !self.config.has(Control::TellBeginning) {
            return;
        }
        let has_moved =
            self.telling.as_ref().is_some_and(|telling| telling.occasion == Occasion::Moved);
        self.telling = Some(if has_moved {
            Telling::new(Occasion::Moved, now)
        } else {
            let pause = GOSSIP_FIRST.mul_f64(self.rng.random_range(1.0..1.5));
            Telling::new(Occasion::Began, now + pause)
        });
    }

    /// Tells some of those who have not answered to this node's present identity.
    pub(super) fn tell_identity(&mut self, now: Instant) {
        let Some(telling) = self.telling.as_mut().filter(|telling| telling.next_at <= now) else {
            return;
        };
        if telling.left.is_empty() {
            let open = self.roster.active().filter(|member| !telling.is_answered_by(member));
            telling.left = open.map(|member| member.addr).collect();
            // Many that begin together do not all tell the same ones first.
            telling.left.shuffle(&mut self.rng);
            telling.round += 1;
            // Who begins does not know all yet, and waits for whom it will hear of.
            let is_over = telling.left.is_empty() && telling.occasion == Occasion::Moved;
            if is_over || telling.round > ROUNDS {
                self.telling = None;
                return;
            }
        }
        let at_once = match telling.occasion {
            Occasion::Moved => telling.left.len(),
            Occasion::Began => few_of(self.roster.active_count()),
        };
        let told = telling.left.split_off(telling.left.len().saturating_sub(at_once));
        if telling.left.is_empty() {
            telling.next_at = now + telling.pause;
            telling.pause = (telling.pause * 2).min(PAUSE.1);
        } else {
            telling.next_at = now + PAUSE.0;
        }
        let asks = telling.occasion == Occasion::Moved && telling.round >= ASK_FROM;
        let told = told.into_iter().filter_map(|addr| self.roster.active_at(addr));
        let told: Vec<_> = told.filter(|member| !telling.is_answered_by(member)).cloned().collect();
        for member in told {
            if asks {
                self.ask(now, member.addr);
            }
            self.greet_member(member, Vec::new());
        }
    }

    /// Notes that a member sent to this node's present identity.
    pub(super) fn knows_us(&mut self, member: &Identity) {
        if let Some(telling) = &mut self.telling {
            telling.answered.insert(member.addr, member.generation);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use foca::{Header, Message};

    use super::*;

    use crate::membership::{
        codec::Payload,
        envelope::{self, Envelope, Kind},
        sync::{SyncMember, SyncState},
        testing::{exchange, identity, node, start, transmits},
    };

    const GOSSIP_AND_A_ROUND: Duration = Duration::from_secs(9);

    /// Node 1, which has joined through node 2 and heard of others there, who have not heard of it.
    fn newcomer(now: Instant, others: u8, without: Option<Control>) -> Membership {
        let (mut newcomer, mut second) = (node(now, 1), node(now, 2));
        newcomer.config.without = without.into_iter().collect();
        newcomer.set_seeds(now, vec![second.identity().addr]);
        exchange(now, &mut [&mut newcomer, &mut second]);
        let mut reply = second.sync_request();
        let others = (3..3 + others).map(identity);
        let others = others.map(|other| SyncMember::new(&other, 0, SyncState::Alive));
        reply.members.extend(others);
        newcomer.handle_sync_reply(now, &reply).unwrap();
        newcomer
    }

    /// Lets time pass. The others answer pings or do nothing. Returns whom the node sent anything,
    /// and whom it told who it is, and when.
    fn run(
        node: &mut Membership,
        begin: Instant,
        lasts: Duration,
        answers: bool,
    ) -> (BTreeSet<SocketAddr>, Vec<(Instant, SocketAddr)>) {
        let (mut sent, mut told) = (BTreeSet::new(), Vec::new());
        let mut now = begin;
        loop {
            for transmit in transmits(node) {
                sent.insert(transmit.to);
                let envelope = Envelope::parse(&transmit.data).unwrap();
                let Ok(payload) = Payload::parse(envelope.body) else { continue };
                let Message::Ping(number) = payload.header.message else { continue };
                if number == 0 && payload.updates.is_empty() {
                    told.push((now, transmit.to));
                }
                if answers {
                    let header = Header {
                        src: payload.header.dst,
                        src_incarnation: 0,
                        dst: payload.header.src,
                        message: Message::Ack(number),
                    };
                    let answer = Payload { header, updates: Vec::new() }.emit().unwrap();
                    let answer = envelope::emit(Kind::Gossip, &node.config.cluster, &answer);
                    node.handle_datagram(now, transmit.to, &answer).unwrap();
                }
            }
            now = node.poll_timeout().unwrap().max(now);
            if now >= begin + lasts {
                return (sent, told);
            }
            node.handle_timeout(now);
        }
    }

    #[test]
    fn who_begins_tells_all_who_have_not_heard_of_it() {
        let now = start();
        let all: BTreeSet<_> = (2..203).map(|number| identity(number).addr).collect();

        let mut with = newcomer(now, 200, None);
        let (sent, told) = run(&mut with, now, GOSSIP_AND_A_ROUND, true);
        assert_eq!(sent, all);
        let twice = told.len() - told.iter().map(|(_, to)| to).collect::<BTreeSet<_>>().len();
        assert_eq!(twice, 0, "who answered is told again");

        let mut without = newcomer(now, 200, Some(Control::TellBeginning));
        let (sent, told) = run(&mut without, now, GOSSIP_AND_A_ROUND, true);
        assert!(sent.len() < all.len() / 2, "{}", sent.len());
        assert_eq!(told, []);
    }

    /// Somebody sends a message to the node as it holds it for. The node has a later generation then.
    fn raise(node: &mut Membership, now: Instant, held_for: Identity, message: Message<Identity>) {
        let header = Header { src: identity(3), src_incarnation: 0, dst: held_for, message };
        let payload = Payload { header, updates: Vec::new() }.emit().unwrap();
        let datagram = envelope::emit(Kind::Gossip, &node.config.cluster, &payload);
        let before = node.identity().generation;
        node.handle_datagram(now, identity(3).addr, &datagram).unwrap();
        assert!(node.identity().generation > before);
    }

    /// Somebody tells the node that it was declared down.
    fn declare_down(node: &mut Membership, now: Instant) {
        raise(node, now, node.identity().clone(), Message::TurnUndead);
    }

    /// Somebody knows a later start of the node.
    fn know_later_start(node: &mut Membership, now: Instant) {
        let generation = node.identity().generation.next();
        raise(node, now, node.identity().with_generation(generation), Message::Ping(1));
    }

    #[test]
    fn who_has_another_generation_tells_all_again() {
        let now = start();
        let wait = Duration::from_secs(30);
        let all: BTreeSet<_> = (2..103).map(|number| identity(number).addr).collect();
        for change in [declare_down, know_later_start] {
            let mut node = newcomer(now, 100, None);
            run(&mut node, now, wait, true);
            assert!(node.telling.is_none());

            change(&mut node, now + wait);
            let (sent, told) = run(&mut node, now + wait, GOSSIP_AND_A_ROUND, true);

            assert!(sent.is_superset(&all));
            assert!(told.len() > 50, "{}", told.len());
        }
    }

    #[test]
    fn who_has_moved_tells_all_at_once_and_of_its_next_generation_too() {
        let now = start();
        let mut node = newcomer(now, 100, None);
        let (moved, moment) = (identity(200), Duration::from_millis(50));
        node.change_address(now, moved.addr, moved.vtep, moved.listen).unwrap();
        let (_, told) = run(&mut node, now, moment, false);
        assert_eq!(told.len(), 101);

        declare_down(&mut node, now + moment);
        let (_, told) = run(&mut node, now + moment, moment, false);
        assert_eq!(told.len(), 101);

        let (_, told) = run(&mut node, now + 2 * moment, Duration::from_mins(1), true);
        assert_eq!(told.len(), 101, "who answered is told again");
        assert!(node.telling.is_none());
    }

    #[test]
    fn a_round_takes_five_seconds_at_most() {
        for members in [1_usize, 449, 1000, 4096] {
            let batches = u32::try_from(members.div_ceil(few_of(members))).unwrap();
            assert!(batches * PAUSE.0 <= Duration::from_secs(5), "{members}");
        }
    }

    #[test]
    fn few_are_told_at_once_and_nobody_without_end() {
        let now = start();
        let mut newcomer = newcomer(now, 100, None);

        let (_, told) = run(&mut newcomer, now, Duration::from_mins(1), false);

        let at = |moment: Instant| told.iter().filter(|(at, _)| *at == moment).count();
        assert!(told.len() > 100);
        assert!(told.iter().all(|(moment, _)| at(*moment) <= FEW.0));
        assert!(told.iter().all(|(moment, _)| *moment < now + Duration::from_secs(45)));
        assert!(newcomer.telling.is_none());
    }
}
