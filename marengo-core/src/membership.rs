//! The membership of a node: foca, and what foca does not do.
//!
//! ```text
//!   datagrams, deadlines, seeds, exchanges           datagrams, events, next deadline
//!              | handle_*                                        ^ poll_*
//!              v                                                 |
//!   envelope -> screen -> foca -> outbox -> roster -> peers, conflicts
//! ```
//!
//! foca detects failures and spreads news. Around it, this module joins by any address of a seed,
//! asks seeds and lost members without end, tells a restart and a departure apart from a failure,
//! exchanges the full membership, and refuses what foca would believe.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use foca::{Foca, NoCustomBroadcast, Timer};
use rand::{SeedableRng as _, rngs::StdRng};
use tracing::{trace, warn};

use self::{
    codec::WireCodec,
    conflict::Conflicts,
    health::Health,
    hearsay::Hearsay,
    outbox::Outbox,
    probe::{Inquiries, Unanswered},
    rejoin::{Questions, Seeds},
    renewal::Renewals,
    restart::Restarting,
    roster::{Presence, Roster},
    telling::Telling,
    timers::Timers,
};
pub use self::{
    config::{MembershipConfig, Profile},
    conflict::{Conflict, ConflictKind},
    error::{Counters, DatagramError},
    event::{MembershipEvent, Transmit},
    sync::{SyncMember, SyncMessage, SyncRefusal, SyncState},
};
use crate::{
    control::Control,
    identity::{Generation, Identity, Version, canonical},
    members::{Member, MemberState, PeerTable},
};

pub mod codec;
mod config;
mod conflict;
mod drive;
pub mod envelope;
mod error;
mod event;
mod gossip;
mod greet;
mod health;
mod hearsay;
mod leave;
mod outbox;
mod probe;
mod rejoin;
mod renewal;
mod renumber;
mod restart;
mod roster;
mod standing;
mod sync;
mod telling;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod timers;
mod upkeep;

/// How often lost members are asked, and how many of them at once.
const ASK_LOST_EVERY: Duration = Duration::from_secs(1);
const ASK_LOST: usize = 4;

/// How often the full membership is exchanged with somebody: at first and at last. Each exchange
/// that succeeds doubles the pause, so that a newcomer soon fills the gaps of its first view.
const SYNC_EVERY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// A node that was stopped for so long may have missed news: they are told for some rounds only.
const DEAF: Duration = Duration::from_secs(3);

/// How often old records are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(10);

/// The least pause between two announcements to one node that knows an earlier start of us.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(500);

/// The most addresses in a table of recent doings.
const MAX_RECENT: usize = 1024;

/// A node's view of the cluster, and its voice in it.
///
/// Rule of use: after every `handle_*` (and `set_seeds`, `leave`), drain [`poll_transmit`] and
/// [`poll_event`] until `None`, then read [`poll_timeout`]. When a deadline and datagrams are both
/// waiting, hand in the datagrams first: they may hold the answer whose absence the deadline would
/// declare. A call to [`handle_timeout`] that is more than a second late is taken for a process
/// that was stopped, and nobody is declared failed for that time.
///
/// [`poll_transmit`]: Self::poll_transmit
/// [`poll_event`]: Self::poll_event
/// [`poll_timeout`]: Self::poll_timeout
/// [`handle_timeout`]: Self::handle_timeout
pub struct Membership {
    config: MembershipConfig,
    version: Version,
    /// The same as foca's, but for the moment within a call in which foca changes it.
    identity: Identity,
    foca: Foca<Identity, WireCodec, StdRng, NoCustomBroadcast>,
    rng: StdRng,
    /// Empty between calls.
    outbox: Outbox,
    timers: Timers,
    roster: Roster,
    peers: PeerTable,
    /// Active members that are suspected, by address.
    suspects: BTreeSet<SocketAddr>,
    /// Something happened that may have begun or ended a suspicion.
    suspects_stale: bool,
    conflicts: Conflicts,
    renewals: Renewals,
    /// foca renewed the identity, and this has not been dealt with.
    renewed: bool,
    /// Peers and conflicts must be found anew, whatever the roster says.
    identity_changed: bool,
    /// When this node began, and as which generation.
    began: (Instant, Generation),
    /// Who has yet to hear of this node's present identity.
    telling: Option<Telling>,
    restarting: Restarting,
    unanswered: Option<Unanswered>,
    inquiries: Inquiries,
    hearsay: Hearsay,
    health: Health,
    /// When news are told next; `None` while there are none.
    gossip_at: Option<Instant>,
    seeds: Seeds,
    questions: Questions,
    lost_at: Option<Instant>,
    lost_cursor: Option<SocketAddr>,
    sync_at: Instant,
    /// Until the next exchange but one; grows while all is well.
    sync_pause: Duration,
    tidy_at: Instant,
    /// When somebody was last told that we were restarted, by its address.
    recent_announcements: BTreeMap<SocketAddr, Instant>,
    /// When an exchange was last asked for, by listen address.
    recent_syncs: BTreeMap<SocketAddr, Instant>,
    phase: Phase,
    /// The latest time anybody told.
    latest: Instant,
    transmits: VecDeque<Transmit>,
    events: VecDeque<MembershipEvent>,
    counters: Counters,
}

/// Where a node is in its life.
#[derive(Debug)]
enum Phase {
    Running,
    /// The goodbye was sent once and is sent again.
    Leaving {
        again_at: Instant,
        to: Vec<SocketAddr>,
        word: envelope::Kind,
    },
    Left,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("identity", &self.identity)
            .field("active", &self.roster.active_count())
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl Membership {
    /// Makes a node that knows nobody.
    ///
    /// `identity` should be in canonical form, as [`Identity::new`] makes it. `rng` decides every
    /// choice; the same calls with the same generator give the same results.
    pub fn new(
        now: Instant,
        config: MembershipConfig,
        identity: Identity,
        mut rng: StdRng,
    ) -> Self {
        let foca_rng = StdRng::from_rng(&mut rng);
        let foca = Foca::new(identity.clone(), config.foca(1), foca_rng, WireCodec);
        Self {
            version: Version::lossy(&config.version),
            foca,
            outbox: Outbox::default(),
            timers: Timers::default(),
            roster: Roster::new(config.max_members, config.has(Control::Supersede)),
            peers: PeerTable::default(),
            suspects: BTreeSet::new(),
            suspects_stale: false,
            conflicts: Conflicts::default(),
            renewals: Renewals::new(identity.generation),
            renewed: false,
            identity_changed: false,
            began: (now, identity.generation),
            telling: None,
            restarting: Restarting::default(),
            unanswered: None,
            inquiries: Inquiries::default(),
            hearsay: Hearsay::default(),
            health: Health::new(now),
            gossip_at: None,
            seeds: Seeds::default(),
            questions: Questions::default(),
            lost_at: None,
            lost_cursor: None,
            sync_at: now + SYNC_EVERY.0,
            sync_pause: SYNC_EVERY.0,
            tidy_at: now + TIDY_EVERY,
            recent_announcements: BTreeMap::new(),
            recent_syncs: BTreeMap::new(),
            phase: Phase::Running,
            latest: now,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            config,
            identity,
            rng,
        }
    }

    /// Takes a datagram.
    ///
    /// A node sends from its advertised address alone, so `from` must be the address that the
    /// sender claims; nodes behind address translation are not supported.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        data: &[u8],
    ) -> Result<(), DatagramError> {
        self.latest = now;
        self.counters.received += 1;
        if !matches!(self.phase, Phase::Running) {
            return Ok(());
        }
        let result = self.dispatch(now, from, data);
        if let Err(error) = &result {
            trace!(%from, %error, "datagram refused");
            self.counters.reject(error);
        }
        self.settle(now, None);
        result
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.latest = now;
        if !matches!(self.phase, Phase::Running) {
            self.repeat_leave(now);
            return;
        }
        self.examine(now);
        let pace = self.config.profile.pace();
        if self.config.has(Control::ForgiveStalls)
            && let Some(stalled) = self.timers.forgive_stall(now, pace.stall, pace.probe_rtt)
        {
            warn!(?stalled, "woken late; nobody is declared failed for that time");
            self.hearsay.start_over();
            if stalled >= DEAF {
                self.catch_up(now, SYNC_EVERY.0 / 2);
            }
        }
        while let Some(timer) = self.timers.take_due(now) {
            if self.is_refuted(&timer) || self.spares(now, &timer) {
                continue;
            }
            self.suspects_stale |= matches!(timer, Timer::ProbeRandomMember(_));
            drive::note(self.foca.handle_timer(timer, &mut self.outbox));
            self.drain(now, None);
        }
        self.tell_news(now);
        self.ping_again(now);
        self.tell_identity(now);
        self.end_restarts(now);
        self.ask_about_hearsay(now);
        self.ask_seeds(now);
        self.ask_lost(now);
        self.sync_now_and_then(now);
        self.tidy(now);
        self.settle(now, None);
        self.ask_suspects(now);
    }

    /// Replaces the addresses from which the node joins the cluster.
    ///
    /// To be called again whenever names were resolved again; addresses that stay keep their pace.
    /// At most 64 are used.
    pub fn set_seeds(&mut self, now: Instant, seeds: Vec<SocketAddr>) {
        self.latest = now;
        self.seeds.replace(now, seeds);
        if matches!(self.phase, Phase::Running) {
            self.ask_seeds(now);
            self.settle(now, None);
        }
    }

    /// Takes out a datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        let transmit = self.transmits.pop_front()?;
        self.counters.sent += 1;
        Some(transmit)
    }

    /// Takes out an event.
    pub fn poll_event(&mut self) -> Option<MembershipEvent> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next. `None` once the node has left.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running => {}
            Phase::Leaving { again_at, .. } => return Some(again_at),
            Phase::Left => return None,
        }
        let telling = self.telling.as_ref().map(Telling::next_deadline);
        let optional = [
            self.timers.next_deadline(),
            self.seeds.next_deadline(),
            self.lost_at,
            telling,
            self.restarting.next_deadline(),
            self.unanswered.as_ref().map(Unanswered::next_deadline),
            self.inquiries.next_deadline(),
            self.hearsay.next_deadline(),
            self.gossip_at,
        ];
        optional.into_iter().flatten().chain([self.sync_at, self.tidy_at]).min()
    }

    /// This node's identity. Its generation rises when others hold an older one for down.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Everybody that is known, this node included, by name.
    ///
    /// Members that are down are shown for a day, those that left for an hour.
    pub fn members(&self) -> Vec<Member> {
        let own_state = match self.phase {
            Phase::Running => MemberState::Alive,
            Phase::Leaving { .. } | Phase::Left => MemberState::Left,
        };
        let own = Member { identity: self.identity.clone(), state: own_state };
        let others = self.roster.shown(self.latest).map(|record| Member {
            identity: record.identity.clone(),
            state: match record.presence {
                Presence::Active if self.restarting.has(&record.identity) => {
                    MemberState::Restarting
                }
                Presence::Active if self.suspects.contains(&record.identity.addr) => {
                    MemberState::Suspect
                }
                Presence::Active => MemberState::Alive,
                Presence::Down => MemberState::Down,
                Presence::Left | Presence::Superseded => MemberState::Left,
            },
        });
        let mut members: Vec<Member> = others.chain([own]).collect();
        members.sort_by_key(|member| (member.identity.name, member.identity.addr));
        members
    }

    /// The peers that the data plane may forward to. The clone is cheap.
    pub fn peers(&self) -> PeerTable {
        self.peers.clone()
    }

    /// The conflicts that are present.
    pub fn conflicts(&self) -> impl Iterator<Item = &Conflict> {
        self.conflicts.iter()
    }

    /// How many datagrams came, went and were refused.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many foca timers wait; for tests of bounds.
    #[doc(hidden)]
    pub fn pending_timers(&self) -> usize {
        self.timers.len()
    }
}
