//! Leaving, for good or to be back soon: told to everybody directly, and passed on by everybody.

use std::{
    mem,
    net::SocketAddr,
    time::{Duration, Instant},
};

use foca::{Member, State};
use tracing::info;

use super::{
    DatagramError, Membership, Phase, Transmit,
    codec::{self, LEFT},
    drive::note,
    envelope::{self, Kind},
};
use crate::{control::Control, identity::Identity};

/// When the goodbye is said a second time.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

impl Membership {
    /// Leaves the cluster. After this, datagrams have no effect.
    ///
    /// Every active member is told twice, at once and after 100 ms: drain the transmits now, and
    /// once more after calling [`handle_timeout`](Self::handle_timeout) at the next deadline.
    pub fn leave(&mut self, now: Instant) {
        self.latest = now;
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        info!("leaving");
        let tell = self.config.has(Control::TellLeave);
        self.go(now, tell.then_some(Kind::Leave));
    }

    /// Leaves for a restart of the daemon: its data plane stays, and the others keep it as a peer.
    ///
    /// For the rest as [`leave`](Self::leave). The others take the node for restarting, ask its data
    /// plane, and do not declare it down for a minute. Its next start ends that at once.
    pub fn leave_for_restart(&mut self, now: Instant) {
        self.latest = now;
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        info!("leaving for a restart");
        let tell = self.config.has(Control::TellRestart);
        self.go(now, tell.then_some(Kind::BackSoon));
    }

    fn go(&mut self, now: Instant, word: Option<Kind>) {
        self.timers.clear();
        let Some(word) = word else {
            self.phase = Phase::Left;
            return;
        };
        let to: Vec<SocketAddr> = self.roster.active().map(|member| member.addr).collect();
        self.say(word, &to);
        self.phase = Phase::Leaving { again_at: now + AGAIN_AFTER, to, word };
    }

    pub(super) fn repeat_leave(&mut self, now: Instant) {
        match mem::replace(&mut self.phase, Phase::Left) {
            Phase::Leaving { again_at, to, word } if again_at <= now => self.say(word, &to),
            phase @ (Phase::Running | Phase::Leaving { .. } | Phase::Left) => self.phase = phase,
        }
    }

    fn say(&mut self, word: Kind, to: &[SocketAddr]) {
        let mut body = Vec::new();
        if codec::emit_identity(&self.identity, &mut body).is_ok() {
            let data = envelope::emit(word, &self.config.cluster, &body);
            let transmits = to.iter().map(|&to| Transmit { to, data: data.clone() });
            self.transmits.extend(transmits);
        }
    }

    pub(super) fn handle_leave(
        &mut self,
        now: Instant,
        from: SocketAddr,
        mut body: &[u8],
    ) -> Result<(), DatagramError> {
        let leaver = self.check_leaver(now, from, &mut body)?;
        if !self.roster.knows(leaver.addr) {
            return Ok(());
        }
        self.events.extend(self.roster.mark_leaving(&leaver));
        let gone = Member::new(leaver, LEFT, State::Down);
        note(self.foca.apply_many([gone].into_iter(), true, &mut self.outbox));
        self.settle(now, None);
        Ok(())
    }

    pub(super) fn check_leaver(
        &mut self,
        now: Instant,
        from: SocketAddr,
        body: &mut &[u8],
    ) -> Result<Identity, DatagramError> {
        let leaver = codec::parse_identity(&mut *body)?;
        if !body.is_empty() {
            return Err(DatagramError::Malformed);
        }
        self.check_sender(now, from, &leaver)?;
        Ok(leaver)
    }
}
