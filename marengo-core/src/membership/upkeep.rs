//! What is done now and then: asking seeds and lost members, exchanging, forgetting.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use foca::Timer;
use rand::{RngExt as _, seq::IteratorRandom as _};
use tracing::debug;

use super::{
    ASK_LOST, ASK_LOST_EVERY, MAX_RECENT, Membership, MembershipEvent, SYNC_EVERY, TIDY_EVERY,
    drive::note, rejoin::Seeds,
};
use crate::{control::Control, identity::Identity};

impl Membership {
    pub(super) fn ask_seeds(&mut self, now: Instant) {
        let roster = &self.roster;
        let due = self.seeds.take_due(now, |addr| roster.is_active(addr), &mut self.rng);
        for seed in due {
            self.ask(now, seed);
        }
        if !self.config.has(Control::Rejoin) {
            self.seeds = Seeds::default();
        }
    }

    pub(super) fn ask_lost(&mut self, now: Instant) {
        if self.lost_at.is_none_or(|at| now < at) {
            return;
        }
        let lost = self.roster.down_count();
        self.lost_at = (lost > 0 && self.config.has(Control::Rejoin)).then(|| now + ASK_LOST_EVERY);
        if !self.config.has(Control::Rejoin) {
            return;
        }
        for _ in 0..lost.min(ASK_LOST) {
            self.lost_cursor = self.roster.next_down(self.lost_cursor).map(|lost| lost.addr);
            if let Some(addr) = self.lost_cursor {
                self.ask(now, addr);
            }
        }
    }

    pub(super) fn sync_now_and_then(&mut self, now: Instant) {
        if now < self.sync_at {
            return;
        }
        let partner = self.roster.active().choose(&mut self.rng).map(|member| member.listen);
        self.sync_at = now + self.sync_pause.mul_f64(self.rng.random_range(0.8..1.2));
        if let Some(with) = partner {
            self.want_sync(now, with);
        }
    }

    /// Exchanges the membership within `within`, and more often for a while: news may have been told
    /// while this node did not hear them, and are not told again.
    pub(super) fn catch_up(&mut self, now: Instant, within: Duration) {
        self.sync_pause = SYNC_EVERY.0;
        self.sync_at = self.sync_at.min(now + within.mul_f64(self.rng.random()));
    }

    pub(super) fn want_sync(&mut self, now: Instant, with: SocketAddr) {
        if is_allowed(&mut self.recent_syncs, now, with, SYNC_EVERY.0 / 2) {
            self.events.push_back(MembershipEvent::SyncWanted { with });
        }
    }

    pub(super) fn tidy(&mut self, now: Instant) {
        if now < self.tidy_at {
            return;
        }
        self.tidy_at = now + TIDY_EVERY;
        while let Some(forgotten) = self.roster.forget_old(now, self.config.remember) {
            self.forget(forgotten);
        }
    }

    /// Whether an unknown member can be added; forgets one that is gone if that helps.
    pub(super) fn has_room(&mut self) -> bool {
        if let Some(forgotten) = self.roster.make_room() {
            self.forget(forgotten);
        }
        self.roster.room() > 0
    }

    pub(super) fn forget(&mut self, forgotten: Identity) {
        debug!(node = %forgotten.name, "forgotten");
        note(self.foca.handle_timer(Timer::RemoveDown(forgotten), &mut self.outbox));
    }
}

/// Whether `pause` has passed since this was last allowed for `addr`.
pub(super) fn is_allowed(
    recent: &mut BTreeMap<SocketAddr, Instant>,
    now: Instant,
    addr: SocketAddr,
    pause: Duration,
) -> bool {
    recent.retain(|_, at| now.duration_since(*at) < pause);
    if recent.contains_key(&addr) || recent.len() >= MAX_RECENT {
        return false;
    }
    recent.insert(addr, now);
    true
}
