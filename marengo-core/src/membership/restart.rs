//! Members whose daemon said that it is back soon.
//!
//! To foca they are suspects that nothing refutes but their next start. This node neither declares
//! them down nor believes others who do, until the time is over.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use foca::{Member, State};

use super::{DatagramError, Membership, codec::RESTARTING, drive::note};
use crate::identity::{Generation, Identity};

/// How long a restart may take before the node is treated like any that does not answer.
const BACK_WITHIN: Duration = Duration::from_mins(1);

/// The members that are restarted, by address: which start of them said so, and until when it is
/// believed.
#[derive(Debug, Default)]
pub(super) struct Restarting(BTreeMap<SocketAddr, (Generation, Instant)>);

impl Restarting {
    pub(super) fn has(&self, identity: &Identity) -> bool {
        self.0.get(&identity.addr).is_some_and(|(generation, _)| *generation == identity.generation)
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.0.values().map(|(_, until)| *until).min()
    }

    fn note(&mut self, identity: &Identity, until: Instant) {
        let entry = self.0.entry(identity.addr).or_insert((identity.generation, until));
        if entry.0 < identity.generation {
            *entry = (identity.generation, until);
        }
    }

    /// Ends what is not so any more.
    pub(super) fn retain(&mut self, is_so: impl Fn(SocketAddr, Generation) -> bool) {
        self.0.retain(|addr, (generation, _)| is_so(*addr, *generation));
    }

    fn take_due(&mut self, now: Instant) -> Vec<SocketAddr> {
        self.0.extract_if(.., |_, (_, until)| *until <= now).map(|(addr, _)| addr).collect()
    }
}

/// Whether an update says that a member is restarted.
pub(super) fn is_restart(update: &Member<Identity>) -> bool {
    update.state() == State::Suspect && update.incarnation() == RESTARTING
}

impl Membership {
    pub(super) fn handle_back_soon(
        &mut self,
        now: Instant,
        from: SocketAddr,
        mut body: &[u8],
    ) -> Result<(), DatagramError> {
        let leaver = self.check_leaver(now, from, &mut body)?;
        if self.roster.knows(leaver.addr) {
            let update = Member::new(leaver, RESTARTING, State::Suspect);
            self.note_restart(now, &update);
            self.suspects_stale = true;
            note(self.foca.apply_many([update].into_iter(), true, &mut self.outbox));
            self.settle(now, None);
        }
        Ok(())
    }

    /// Notes that an update about to be applied says that a member is restarted.
    pub(super) fn note_restart(&mut self, now: Instant, update: &Member<Identity>) {
        let identity = update.id();
        let earlier = self.roster.get(identity.addr);
        let is_news = earlier.is_some_and(|known| known.identity.generation <= identity.generation);
        if is_restart(update) && is_news {
            self.restarting.note(identity, now + BACK_WITHIN);
        }
    }

    /// Declares those down that are not back in time.
    pub(super) fn end_restarts(&mut self, now: Instant) {
        let overdue = self.restarting.take_due(now);
        let overdue: Vec<_> = overdue
            .into_iter()
            .filter(|addr| self.suspects.contains(addr))
            .filter_map(|addr| self.roster.get(addr))
            .map(|record| Member::down(record.identity.clone()))
            .collect();
        if !overdue.is_empty() {
            note(self.foca.apply_many(overdue.into_iter(), true, &mut self.outbox));
        }
    }
}
