//! Driving foca: what it wants done, and what follows from what it says.

use std::{collections::BTreeSet, mem, net::SocketAddr, time::Instant};

use bytes::Bytes;
use foca::{OwnedNotification, State, Timer};
use tracing::{debug, info};

use super::{
    ASK_LOST_EVERY, Membership, MembershipEvent, SYNC_EVERY, Transmit, codec,
    envelope::{self, Kind},
    outbox::Effect,
    roster::Presence,
    standing::standings,
};
use crate::{control::Control, identity::Identity};

impl Membership {
    /// Carries out what foca wants, in its order. foca sends to members, and to `reply_to`.
    pub(super) fn drain(&mut self, now: Instant, reply_to: Option<SocketAddr>) {
        while let Some(effect) = self.outbox.pop() {
            match effect {
                Effect::Send { to, payload } => {
                    if self.may_send(to.addr, reply_to) {
                        let payload = self.without_former_selves(payload);
                        let payload = self.tell_suspect(&to, payload);
                        let data = envelope::emit(Kind::Gossip, &self.config.cluster, &payload);
                        self.note_ping(now, to.addr, &payload, &data);
                        self.transmits.push_back(Transmit { to: to.addr, data });
                    } else {
                        self.counters.unsent += 1;
                    }
                }
                Effect::Schedule { timer, after } => {
                    self.note_suspicion(now, &timer);
                    let after = self.stretched(&timer, after);
                    self.timers.insert(now + after, timer);
                }
                Effect::Notify(notification) => self.handle_notification(now, notification),
            }
        }
    }

    /// Whether foca may send to an address: to members, and to whom it answers. Of itself it also
    /// announces to members that left, and to addresses that nodes had; those are let go.
    fn may_send(&self, to: SocketAddr, reply_to: Option<SocketAddr>) -> bool {
        let is_member = self
            .roster
            .get(to)
            .is_some_and(|record| matches!(record.presence, Presence::Active | Presence::Down));
        (is_member || reply_to == Some(to)) && to != self.identity.addr
    }

    /// Whether a timer would declare a member down that has refuted the suspicion since, or that
    /// said that it is back soon.
    ///
    /// foca 2.0.0 sees that and leaves the member alive, but still sends it `TurnUndead`, so that
    /// every refuted suspicion makes a healthy member renew itself.
    pub(super) fn is_refuted(&self, timer: &Timer<Identity>) -> bool {
        let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = timer else { return false };
        if self.restarting.has(member_id) {
            return true;
        }
        !self.foca.iter_members().any(|member| {
            member.id() == member_id
                && member.incarnation() == *incarnation
                && member.state() == State::Suspect
        })
    }

    /// Tells a suspect that it is one, in whatever is sent to it, so that it can refute in time.
    ///
    /// foca spreads a suspicion for some rounds only. A member that none of them reached would
    /// never learn why it is declared down.
    pub(super) fn tell_suspect(&self, to: &Identity, payload: Bytes) -> Bytes {
        let suspect = self
            .foca
            .iter_members()
            .find(|member| member.state() == State::Suspect && member.id().addr == to.addr);
        let Some(suspect) = suspect.filter(|_| self.config.has(Control::TellSuspects)) else {
            return payload;
        };
        codec::with_update(&payload, suspect).map_or(payload, Bytes::from)
    }

    pub(super) fn handle_notification(
        &mut self,
        now: Instant,
        notification: OwnedNotification<Identity>,
    ) {
        match notification {
            OwnedNotification::MemberUp(member) => {
                let events = self.roster.up(&member, now);
                let is_first = self.roster.active_count() == 1
                    && matches!(events[..], [MembershipEvent::MemberUp(_)]);
                if is_first {
                    self.sync_pause = SYNC_EVERY.0;
                    self.sync_at = self.sync_at.min(now + self.sync_pause);
                    self.tell_beginning(now);
                    self.events.push_back(MembershipEvent::Joined);
                }
                self.events.extend(events);
            }
            OwnedNotification::MemberDown(member) => {
                let event = self.roster.down(&member, now);
                let was_last = self.roster.active_count() == 0 && event.is_some();
                self.events.extend(event);
                self.may_be_former_self(&member);
                self.lost_at.get_or_insert(now + ASK_LOST_EVERY);
                if was_last {
                    self.seeds.hurry(now);
                    self.events.push_back(MembershipEvent::Isolated);
                }
            }
            OwnedNotification::Rename(_, new) => self.events.extend(self.roster.rename(&new, now)),
            OwnedNotification::Active => debug!("connected"),
            // foca has invalidated every timer it asked for.
            OwnedNotification::Idle | OwnedNotification::Defunct => self.timers.clear(),
            OwnedNotification::Rejoin(identity) => {
                info!(generation = %identity.generation, "declared down; renewed");
                self.timers.clear();
                self.identity = identity;
                self.renewals.record(now);
                self.renewed = true;
                self.identity_changed = true;
            }
        }
    }

    /// Brings everything into line after foca was called. `via` is the member whose datagram or
    /// answer led here.
    pub(super) fn settle(&mut self, now: Instant, via: Option<&Identity>) {
        self.drain(now, via.map(|via| via.addr));
        if mem::take(&mut self.renewed) {
            self.reconnect(now, via);
            self.tell_beginning(now);
            // Whoever was declared down was not told anything for a while.
            self.catch_up(now, SYNC_EVERY.0);
        }
        self.top_claims(now, via);
        self.roster.clear_leaving();
        self.retire(now);
        self.have_news(now);

        let roster_changed = self.roster.take_changed();
        if roster_changed {
            let roster = &self.roster;
            self.restarting.retain(|addr, generation| {
                roster.is_active(addr)
                    && roster.get(addr).is_some_and(|r| r.identity.generation == generation)
            });
            self.hearsay.retain(|addr, generation| {
                roster.is_active(addr)
                    && roster.get(addr).is_some_and(|r| r.identity.generation == generation)
            });
            let wanted = self.config.foca(self.roster.active_count() + 1);
            note(self.foca.set_config(wanted));
        }
        let changed = self.refresh_suspects(now) | roster_changed;
        if changed || mem::take(&mut self.identity_changed) || self.conflicts.is_stale(now) {
            let known = self.roster.known(&self.suspects, &self.restarting);
            let standings = standings(&self.identity, known);
            let (peers, events) = self.conflicts.refresh(now, &self.identity, standings);
            self.peers = peers.with_left(self.roster.left());
            self.events.extend(events);
        }
    }

    /// Finds out who is suspected. foca does not say when it begins or ends a suspicion. Returns
    /// whether anything changed.
    fn refresh_suspects(&mut self, now: Instant) -> bool {
        if !mem::take(&mut self.suspects_stale) {
            return false;
        }
        let suspects: BTreeSet<SocketAddr> = self
            .foca
            .iter_members()
            .filter(|member| member.state() == State::Suspect)
            .map(|member| member.id().addr)
            .collect();
        if suspects == self.suspects {
            return false;
        }
        let before = mem::replace(&mut self.suspects, suspects);
        let new: Vec<SocketAddr> = self.suspects.difference(&before).copied().collect();
        for suspect in new {
            self.join_inquiry(now, suspect);
        }
        let suspects = &self.suspects;
        self.inquiries.retain(|addr| suspects.contains(&addr));
        self.health.retain(|addr| suspects.contains(&addr));
        true
    }

    /// Arranges for news to be told, a moment after the first came in: others may follow it.
    fn have_news(&mut self, now: Instant) {
        if self.foca.updates_backlog() > 0 && self.roster.active_count() > 0 {
            let soon = now + self.config.profile.pace().gossip / 5;
            self.gossip_at.get_or_insert(soon);
        } else {
            self.gossip_at = None;
        }
    }

    /// Tells news to some, as long as there are any.
    pub(super) fn tell_news(&mut self, now: Instant) {
        if self.gossip_at.is_some_and(|at| at <= now) {
            self.gossip_at = Some(now + self.config.profile.pace().gossip);
            note(self.foca.gossip(&mut self.outbox));
            self.drain(now, None);
        }
    }

    /// Raises the own generation above what others believe it to be.
    pub(super) fn top_claims(&mut self, now: Instant, via: Option<&Identity>) {
        let Some(generation) = self.renewals.wanted(self.identity.generation) else { return };
        if self.renewals.is_resting(now) {
            return;
        }
        info!(%generation, "others know a later start of this node; going above it");
        self.renewals.record(now);
        self.change_identity(now, self.identity.with_generation(generation), via);
        self.tell_beginning(now);
    }

    /// Becomes another identity.
    pub(super) fn change_identity(
        &mut self,
        now: Instant,
        identity: Identity,
        via: Option<&Identity>,
    ) {
        self.identity = identity;
        self.identity_changed = true;
        self.timers.clear();
        note(self.foca.change_identity(self.identity.clone(), &mut self.outbox));
        self.reconnect(now, via);
    }

    /// Makes foca go on after a change of identity: by itself it waits for a datagram.
    pub(super) fn reconnect(&mut self, now: Instant, via: Option<&Identity>) {
        note(self.foca.apply_many(std::iter::empty(), false, &mut self.outbox));
        if let Some(via) = via {
            note(self.foca.announce(via.clone(), &mut self.outbox));
        }
        self.drain(now, via.map(|via| via.addr));
    }
}

/// Errors of foca leave it in order; those that datagrams cause are told apart where they arise.
pub(super) fn note(result: Result<(), foca::Error>) {
    if let Err(error) = result {
        debug!(%error, "foca");
    }
}
