//! A change of this node's address while it runs, and how the others take it.
//!
//! An identity names the data plane. Who hears of one whose data plane it knows at another address,
//! with a lower generation, puts the new one in place of the old one at once, by itself. Nobody
//! tells that the old address is down: such news could overtake those of the new one.
//!
//! Everybody is told directly, until they answer to the new address: see [`super::telling`].

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use bytes::Bytes;
use foca::{Member, State};
use tracing::info;

use super::{DatagramError, Membership, Phase, codec, drive::note};
use crate::identity::{Generation, Identity, IdentityError};

impl Membership {
    /// Goes on under other addresses, with the same name and data plane.
    ///
    /// Everybody known is told directly. To the others the node was never away: it takes the place
    /// of what it was. Nothing happens if the addresses are those it has.
    ///
    /// # Errors
    ///
    /// Addresses that nobody could send to are refused, and nothing changes.
    pub fn change_address(
        &mut self,
        now: Instant,
        addr: SocketAddr,
        vtep: IpAddr,
        listen: SocketAddr,
    ) -> Result<(), IdentityError> {
        self.latest = now;
        let generation = self.later_generation(now);
        let identity =
            Identity { addr, vtep, listen, generation, ..self.identity.clone() }.into_checked()?;
        let is_same = identity.with_generation(self.identity.generation) == self.identity;
        if is_same || !matches!(self.phase, Phase::Running) {
            return Ok(());
        }
        info!(old = %self.identity, new = %identity, "this node has another address");
        self.clear_address(now, identity.addr);
        self.seeds.moved(now);
        self.change_identity(now, identity, None);
        self.tell_move(now);
        self.settle(now, None);
        Ok(())
    }

    /// A generation that is later than any this node had, and, unless a clock was set back, than
    /// any that another node had at the new address.
    fn later_generation(&self, now: Instant) -> Generation {
        let (began, first) = self.began;
        let elapsed = u64::try_from(now.duration_since(began).as_millis()).unwrap_or(u64::MAX);
        Generation(first.0.saturating_add(elapsed)).max(self.identity.generation.next())
    }

    /// Forgets who was at the address that becomes this node's own.
    fn clear_address(&mut self, now: Instant, addr: SocketAddr) {
        let Some(record) = self.roster.get(addr) else { return };
        if self.roster.is_active(addr) {
            let stranger = record.identity.clone();
            self.conflicts.seen_at_own_address(&stranger, now);
            let gone = [Member::down(stranger)];
            note(self.foca.apply_many(gone.into_iter(), false, &mut self.outbox));
            self.drain(now, None);
        }
        if let Some(forgotten) = self.roster.forget_gone(addr) {
            self.forget(forgotten);
        }
    }

    /// Whether an identity is what this node was before it had another address.
    pub(super) fn is_former_self(&self, identity: &Identity) -> bool {
        identity.data_plane == self.identity.data_plane
            && identity.addr != self.identity.addr
            && identity.generation < self.identity.generation
            && !self.roster.is_active(identity.addr)
    }

    /// Somebody with this node's data plane is down. If it was this node, before its clock was set
    /// back, the others hold that one for the later: go above it.
    pub(super) fn may_be_former_self(&mut self, gone: &Identity) {
        if gone.data_plane == self.identity.data_plane {
            self.renewals.observe(gone.generation);
        }
    }

    /// Refuses a sender that is known to have another address since. foca is told that this
    /// identity is down, so that it lets a sender that does live know; that one renews itself, and
    /// is then a second node with one data plane.
    pub(super) fn check_not_superseded(
        &mut self,
        now: Instant,
        src: &Identity,
    ) -> Result<(), DatagramError> {
        let is_old = self.is_former_self(src) || self.roster.is_superseded(src);
        if !is_old || self.roster.knows(src.addr) {
            return Ok(());
        }
        self.roster.remember_superseded(src, now);
        let gone = [Member::down(src.clone())];
        note(self.foca.apply_many(gone.into_iter(), false, &mut self.outbox));
        self.drain(now, None);
        Err(DatagramError::Superseded)
    }

    /// Tells foca of active identities that were superseded. It spreads no word of them.
    pub(super) fn retire(&mut self, now: Instant) {
        let retired = self.roster.take_retired();
        if !retired.is_empty() {
            let gone = retired.into_iter().map(Member::down);
            note(self.foca.apply_many(gone, false, &mut self.outbox));
            self.drain(now, None);
        }
    }

    /// Keeps foca from telling others that what this node was is down. They find out by themselves
    /// that it is another, and in one step.
    pub(super) fn without_former_selves(&self, payload: Bytes) -> Bytes {
        if self.identity.generation == self.began.1 {
            return payload;
        }
        let is_former = |update: &Member<Identity>| {
            let id = update.id();
            update.state() == State::Down
                && id.data_plane == self.identity.data_plane
                && id.generation < self.identity.generation
        };
        codec::without_updates(&payload, is_former).map_or(payload, Bytes::from)
    }
}
