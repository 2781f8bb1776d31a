//! Gossip datagrams: what foca is allowed to see of them.

use std::{net::SocketAddr, time::Instant};

use foca::{Member, Message, State};

use super::{
    ANNOUNCE_PAUSE, DatagramError, Membership, canonical,
    codec::{LEFT, Payload},
    drive::note,
    envelope::{Envelope, Kind, PROTOCOL},
    roster::Presence,
    upkeep::is_allowed,
};
use crate::{control::Control, identity::Identity};

impl Membership {
    /// Reads the frame and hands the body to whom it concerns.
    pub(super) fn dispatch(
        &mut self,
        now: Instant,
        from: SocketAddr,
        data: &[u8],
    ) -> Result<(), DatagramError> {
        let envelope = Envelope::parse(data)?;
        if envelope.protocol != PROTOCOL {
            self.greet_stranger(now, from, &envelope, data.len())?;
            return Err(DatagramError::OtherProtocol { theirs: envelope.protocol });
        }
        if envelope.cluster != self.config.cluster {
            self.greet_stranger(now, from, &envelope, data.len())?;
            return Err(DatagramError::OtherCluster { theirs: envelope.cluster });
        }
        match envelope.kind {
            Kind::Gossip => self.handle_gossip(now, canonical(from), envelope.body),
            Kind::WhoIs => self.handle_who_is(from, envelope.body, data.len()),
            Kind::Answer => self.handle_answer(now, envelope.body),
            Kind::Leave => self.handle_leave(now, canonical(from), envelope.body),
            Kind::BackSoon => self.handle_back_soon(now, canonical(from), envelope.body),
        }
    }

    fn handle_gossip(
        &mut self,
        now: Instant,
        from: SocketAddr,
        body: &[u8],
    ) -> Result<(), DatagramError> {
        let mut payload = Payload::parse(body)?;
        let src = payload.header.src.clone();
        self.check_sender(now, from, &src)?;
        self.hearsay.refuted(src.addr);
        let dst = payload.header.dst.clone();
        if dst.addr != self.identity.addr {
            if self.is_former_self(&dst) {
                // It came to our former address, from somebody who does not know of this one.
                self.announce_restart(now, &src);
            }
            return Err(DatagramError::WrongRecipient);
        }
        if dst != self.identity {
            self.handle_claim(now, &dst, true);
            if payload.header.message != Message::Announce {
                // foca would drop it. Who sends to an earlier start of this node must hear of the
                // present one.
                self.announce_restart(now, &src);
                return Ok(());
            }
        }
        self.check_message(now, &payload)?;
        if dst == self.identity {
            self.note_answer(src.addr, &payload.header.message);
        }
        // A suspect that speaks may have refuted; an update may suspect, or pass a refutation on.
        self.suspects_stale |= !payload.updates.is_empty() || self.suspects.contains(&src.addr);

        let before = payload.updates.len();
        let mut updates = std::mem::take(&mut payload.updates);
        self.screen(now, &src, &mut updates)?;
        payload.updates = updates;
        // Who announces itself to this node asks to be told who else is there.
        if dst == self.identity && payload.header.message != Message::Announce {
            self.knows_us(&src);
        }
        if payload.updates.len() == before {
            note(self.foca.handle_data(body, &mut self.outbox));
        } else {
            note(self.foca.handle_data(&payload.emit()?, &mut self.outbox));
        }
        self.drain(now, Some(src.addr));
        self.remember_departures(now, &payload.updates);
        self.settle(now, Some(&src));
        Ok(())
    }

    /// Refuses senders that are not who they say they are, or that cannot be added.
    pub(super) fn check_sender(
        &mut self,
        now: Instant,
        from: SocketAddr,
        src: &Identity,
    ) -> Result<(), DatagramError> {
        if src.addr == self.identity.addr {
            if from == src.addr {
                self.handle_claim(now, src, true);
            }
            return Err(DatagramError::FromOurselves);
        }
        if from != src.addr {
            return Err(DatagramError::SpoofedSource);
        }
        if self.renewals.is_absurd(src.generation) {
            return Err(DatagramError::AbsurdGeneration);
        }
        if !self.roster.knows(src.addr) && !self.has_room() {
            return Err(DatagramError::MemberLimit);
        }
        self.check_not_superseded(now, src)
    }

    /// Refuses to be sent against others, and to be renewed without end.
    fn check_message(&self, now: Instant, payload: &Payload) -> Result<(), DatagramError> {
        match &payload.header.message {
            Message::PingReq { target, .. } | Message::IndirectAck { target, .. }
                if !self.roster.knows(target.addr) =>
            {
                Err(DatagramError::UnknownTarget)
            }
            Message::TurnUndead if self.renewals.is_resting(now) => {
                Err(DatagramError::RenewedTooOften)
            }
            Message::PingReq { .. }
            | Message::IndirectAck { .. }
            | Message::TurnUndead
            | Message::Ping(_)
            | Message::Ack(_)
            | Message::IndirectPing { .. }
            | Message::ForwardedAck { .. }
            | Message::Announce
            | Message::Feed
            | Message::Gossip
            | Message::Broadcast => Ok(()),
        }
    }

    /// Takes out the updates that foca must not see, and notes who is said to have left.
    fn screen(
        &mut self,
        now: Instant,
        src: &Identity,
        updates: &mut Vec<Member<Identity>>,
    ) -> Result<(), DatagramError> {
        // Who is unknown and will be added, the sender first.
        let mut room_for = Vec::new();
        room_for.extend((!self.roster.knows(src.addr)).then_some(src.addr));
        let mut kept = Vec::with_capacity(updates.len());
        for update in updates.drain(..) {
            let identity = update.id();
            if identity.addr == self.identity.addr {
                if *identity != self.identity {
                    // foca would declare it down, with a generation that may beat our own.
                    self.handle_claim(now, identity, update.state() != State::Down);
                    continue;
                }
                if update.state() == State::Down && self.renewals.is_resting(now) {
                    return Err(DatagramError::RenewedTooOften);
                }
            } else if self.renewals.is_absurd(identity.generation) {
                self.counters.skipped_updates += 1;
                continue;
            } else if self.is_former_self(identity) || self.roster.is_superseded(identity) {
                // Old news: the node has another address.
                continue;
            } else if !self.roster.knows(identity.addr) && !room_for.contains(&identity.addr) {
                self.has_room();
                if self.roster.room() <= room_for.len() {
                    self.counters.skipped_updates += 1;
                    continue;
                }
                room_for.push(identity.addr);
            }
            if update.state() == State::Down
                && !is_departure(&update)
                && self.restarting.has(identity)
            {
                continue;
            }
            self.note_restart(now, &update);
            self.note_late_start(now, &update);
            if is_departure(&update) {
                self.events.extend(self.roster.mark_leaving(identity));
            }
            kept.push(update);
        }
        *updates = kept;
        Ok(())
    }

    /// Somebody is there whom this node remembers as gone from a later start: its clock was set back.
    /// foca will not believe in it, and it must hear of that start to go above it.
    fn note_late_start(&mut self, now: Instant, update: &Member<Identity>) {
        let identity = update.id();
        let is_gone_later = self.roster.get(identity.addr).is_some_and(|known| {
            known.presence != Presence::Active && known.identity.generation > identity.generation
        });
        if update.state() != State::Down && is_gone_later {
            self.want_sync(now, identity.listen);
        }
    }

    /// foca keeps members of whom it only heard that they are down, and does not say so.
    fn remember_departures(&mut self, now: Instant, updates: &[Member<Identity>]) {
        for update in updates.iter().filter(|update| update.state() == State::Down) {
            let identity = update.id();
            if identity.addr != self.identity.addr && !self.roster.knows(identity.addr) {
                let left = is_departure(update);
                self.may_be_former_self(identity);
                self.roster.remember_gone(identity, left, now);
                if !left {
                    self.lost_at.get_or_insert(now + super::ASK_LOST_EVERY);
                }
            }
        }
    }

    /// Somebody knows this node's address under another identity: an earlier start of this node, a
    /// start that a clock set back made later, an earlier owner of the address, or a second one.
    pub(super) fn handle_claim(&mut self, now: Instant, claimed: &Identity, is_live: bool) {
        if *claimed == self.identity {
            return;
        }
        let is_stranger = claimed.name != self.identity.name;
        if is_stranger && is_live && claimed.generation >= self.identity.generation {
            self.conflicts.seen_at_own_address(claimed, now);
        }
        self.renewals.observe(claimed.generation);
    }

    fn announce_restart(&mut self, now: Instant, to: &Identity) {
        let wanted = self.config.has(Control::AnnounceRestart)
            && is_allowed(&mut self.recent_announcements, now, to.addr, ANNOUNCE_PAUSE);
        if !wanted {
            return;
        }
        self.top_claims(now, Some(to));
        note(self.foca.announce(to.clone(), &mut self.outbox));
        self.settle(now, Some(to));
        self.want_sync(now, to.listen);
    }
}

/// Whether an update says that a member left by itself.
pub(super) fn is_departure(update: &Member<Identity>) -> bool {
    update.state() == State::Down && update.incarnation() == LEFT
}
