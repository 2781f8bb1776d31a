//! The second witness: what the data plane itself says of peers that gossip doubts.
//!
//! Gossip travels on a port of its own, from process to process. That it fails says nothing of the
//! tunnels, which work while a daemon is stopped, starved or dead. So a peer that gossip declares
//! down stays in its slot, *held*, for as long as its data plane is heard; only what both witnesses
//! miss is taken out. A peer that gossip doubts is asked through the tunnel
//! ([`marengo_common::question`]), and its ingress program answers by itself, with the identity of
//! its data plane: another machine at a dead one's address is no witness for it.
//!
//! ```text
//!             gossip:   alive        suspect         lost           left
//!  heard                forward      forward, ask    hold, ask      take out
//!  silent               forward      forward, ask    take out       take out
//! ```
//!
//! A peer whose daemon said that it is back soon is judged like a lost one: its data plane stays
//! meanwhile, so its silence is no part of the restart.
//!
//! While nobody is doubted, nobody is asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use marengo_common::PeerIndex;

use crate::{
    control::{Control, Without},
    identity::{DataPlaneId, NodeName},
    members::{PeerTable, Standing},
    slots::{Slot, Slots},
};

/// How the second witness is questioned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WitnessConfig {
    /// Between two questions to a peer that does not answer.
    pub ask_every: Duration,
    /// Between two questions to a peer that is heard.
    pub ask_heard_every: Duration,
    /// A peer that is asked all this time and not heard is silent.
    pub silence: Duration,
    /// What a test takes away.
    #[doc(hidden)]
    pub without: Without,
}

impl WitnessConfig {
    /// Seven questions or more in the silence that takes a peer out: one in five lost each way
    /// leaves a working path one chance in 1,300 to be taken for a silent one, at a moment when
    /// gossip has declared the peer down as well.
    pub const DEFAULT: Self = Self {
        ask_every: Duration::from_millis(150),
        ask_heard_every: Duration::from_millis(500),
        silence: Duration::from_millis(1500),
        without: Without::NOTHING,
    };
    /// For underlays that lose next to nothing.
    pub const FAST: Self = Self {
        ask_every: Duration::from_millis(40),
        ask_heard_every: Duration::from_millis(100),
        silence: Duration::from_millis(300),
        without: Without::NOTHING,
    };

    /// A daemon that is so much later than it wanted to ask was away: stopped, or without a
    /// processor.
    fn away(&self) -> Duration {
        self.silence / 2
    }

    /// How many questions in a row must stay without an answer: seven of the ten that fit.
    fn questions(&self) -> u32 {
        let fit = self.silence.as_millis() / self.ask_every.as_millis().max(1);
        u32::try_from(fit * 7 / 10).unwrap_or(u32::MAX).max(1)
    }
}

/// What the ingress program has heard from a peer's address.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Sighting {
    /// How long ago a frame came from there; `None`: never.
    pub ago: Option<Duration>,
    /// The data plane that answered from there last is not the peer's.
    pub is_stranger: bool,
}

/// Why a peer is held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// Gossip declared it down, and its data plane is heard.
    Lost,
    /// Its daemon said that it is back soon, and its data plane is heard.
    Restarting,
    /// Gossip has not told of it since this daemon took over its slot, and its data plane is heard.
    Unknown,
}

/// Something that happened to a doubted peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum WitnessEvent {
    /// Gossip lost it, the data plane has not: it stays.
    Held {
        /// Its name, if gossip ever told.
        name: Option<NodeName>,
        /// Where it is.
        vtep: IpAddr,
        /// Why: never [`Reason::Restarting`].
        reason: Reason,
    },
    /// Gossip knows it again.
    Released {
        /// Its name.
        name: Option<NodeName>,
        /// Where it is.
        vtep: IpAddr,
        /// How long it was held.
        after: Duration,
    },
    /// Both witnesses miss it.
    Silent {
        /// Its name, if gossip ever told.
        name: Option<NodeName>,
        /// Where it was.
        vtep: IpAddr,
        /// How long it was held before; `None`: not at all.
        held: Option<Duration>,
    },
}

/// A peer that gossip does not vouch for.
#[derive(Clone, Debug)]
struct Doubt {
    generation: u32,
    since: Instant,
    /// Since when it has been asked whenever it was time.
    asked_from: Instant,
    /// The latest sign of the peer itself.
    heard: Option<Instant>,
    asked: Option<Instant>,
    ask_at: Instant,
    /// Questions that nothing was heard after.
    unanswered: u32,
    /// When the first of those was asked.
    unanswered_since: Option<Instant>,
    /// When it began to be held, and why.
    held: Option<(Instant, Reason)>,
    /// It was found silent, and this was told.
    is_silent: bool,
}

/// Judges which of the peers that gossip does not vouch for stay.
#[derive(Clone, Debug)]
pub struct Witness {
    config: WitnessConfig,
    doubts: BTreeMap<PeerIndex, Doubt>,
    keep: BTreeSet<PeerIndex>,
    /// How many times a peer began to be held.
    holds: u64,
    events: Vec<WitnessEvent>,
}

impl Witness {
    /// Nobody is doubted.
    pub fn new(config: WitnessConfig) -> Self {
        Self {
            config,
            doubts: BTreeMap::new(),
            keep: BTreeSet::new(),
            holds: 0,
            events: Vec::new(),
        }
    }

    /// Compares what gossip thinks with what the data plane has heard, and returns the slots that
    /// stay although gossip does not vouch for them, for [`Slots::assign`].
    ///
    /// No slot stays at `own`, this node's address: frames for it would come back, as that peer's.
    ///
    /// `gossip_speaks` is false while gossip has told of nobody for so short a time that silence on
    /// its side means nothing: then slots that it has not told of stay unasked.
    pub fn judge(
        &mut self,
        now: Instant,
        peers: &PeerTable,
        slots: &Slots,
        own: IpAddr,
        gossip_speaks: bool,
        sighting: impl Fn(&Slot) -> Sighting,
    ) -> &BTreeSet<PeerIndex> {
        let standings: BTreeMap<DataPlaneId, Standing> =
            peers.iter().map(|peer| (peer.identity.data_plane, peer.standing)).collect();
        let addresses: BTreeSet<IpAddr> = peers.vouched().map(|peer| peer.vtep).collect();
        let mut before = std::mem::take(&mut self.doubts);
        self.keep.clear();
        for (index, slot) in slots.iter() {
            let doubt = before.remove(&index).filter(|doubt| doubt.generation == slot.generation);
            let standing = slot.data_plane.and_then(|id| standings.get(&id).copied());
            match standing {
                Some(Standing::Alive) => self.release(now, slot, doubt),
                None if slot.data_plane.is_some_and(|id| peers.has_left(id)) => {}
                Some(Standing::Suspect | Standing::Restarting | Standing::Lost) | None => {
                    // A slot that does not say whose it is goes to the peer at its address, and
                    // one whose address another peer has goes.
                    let is_taken = standing.is_none() && addresses.contains(&slot.vtep);
                    if slot.vtep == own || is_taken {
                        continue;
                    }
                    if standing.is_none() && !gossip_speaks {
                        self.keep.insert(index);
                        continue;
                    }
                    let doubt = doubt.unwrap_or_else(|| Doubt::new(now, slot.generation));
                    let sighting = sighting(slot);
                    self.weigh(now, index, slot, standing, doubt, sighting);
                }
            }
        }
        &self.keep
    }

    /// Takes out whom to ask now. Each is asked again until it is no longer doubted.
    ///
    /// When one is due, so is who would be in a moment: after half a cluster was lost, each look at
    /// all of them would else be followed by another one a millisecond later.
    pub fn poll_ask(&mut self, now: Instant) -> Vec<PeerIndex> {
        let mut due = Vec::new();
        if self.poll_timeout().is_none_or(|first| first > now) {
            return due;
        }
        let WitnessConfig { ask_every, ask_heard_every, .. } = self.config;
        let is_due = |doubt: &Doubt| {
            let every = if doubt.is_answered() { ask_heard_every } else { ask_every };
            doubt.ask_at <= now + every / 2
        };
        let asked = self.doubts.iter_mut().filter(|(_, doubt)| !doubt.is_silent);
        for (index, doubt) in asked.filter(|(_, doubt)| is_due(doubt)) {
            doubt.asked = Some(now);
            doubt.unanswered = doubt.unanswered.saturating_add(1);
            doubt.unanswered_since.get_or_insert(now);
            doubt.ask_at = now + ask_every;
            due.push(*index);
        }
        due
    }

    /// A question that was taken out could not be sent: it does not count.
    pub fn not_asked(&mut self, index: PeerIndex) {
        if let Some(doubt) = self.doubts.get_mut(&index) {
            doubt.unanswered = doubt.unanswered.saturating_sub(1);
        }
    }

    /// A peer that was found silent has not been taken out: it is asked anew.
    pub fn ask_anew(&mut self, index: PeerIndex) {
        self.doubts.remove(&index);
    }

    /// When to call [`Witness::judge`] and [`Witness::poll_ask`] next. `None`: nobody is doubted.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.doubts.values().filter(|doubt| !doubt.is_silent).map(|doubt| doubt.ask_at).min()
    }

    /// Takes out what happened.
    pub fn poll_event(&mut self) -> Option<WitnessEvent> {
        if self.events.is_empty() { None } else { Some(self.events.remove(0)) }
    }

    /// Why a slot is held and for how long, if it is.
    pub fn held(&self, index: PeerIndex, now: Instant) -> Option<(Reason, Duration)> {
        let (since, reason) = self.doubts.get(&index)?.held?;
        Some((reason, now.duration_since(since)))
    }

    /// Whether a slot's peer is doubted.
    pub fn is_doubted(&self, index: PeerIndex) -> bool {
        self.doubts.contains_key(&index)
    }

    /// How many peers are held.
    pub fn held_count(&self) -> usize {
        self.doubts.values().filter(|doubt| doubt.held.is_some()).count()
    }

    /// How many times a peer began to be held.
    pub fn holds(&self) -> u64 {
        self.holds
    }

    fn release(&mut self, now: Instant, slot: &Slot, doubt: Option<Doubt>) {
        let held = doubt.and_then(|doubt| doubt.held);
        if let Some((since, _)) = held.filter(|(_, reason)| *reason != Reason::Restarting) {
            let after = now.duration_since(since);
            self.events.push(WitnessEvent::Released { name: slot.name, vtep: slot.vtep, after });
        }
    }

    fn weigh(
        &mut self,
        now: Instant,
        index: PeerIndex,
        slot: &Slot,
        standing: Option<Standing>,
        mut doubt: Doubt,
        sighting: Sighting,
    ) {
        let is_stranger = sighting.is_stranger && self.config.without.has(Control::Strangers);
        if let Some(ago) = sighting.ago.filter(|_| !is_stranger) {
            let heard = now.checked_sub(ago);
            doubt.heard = doubt.heard.max(heard);
        }
        if let Some(asked) = doubt.asked.filter(|_| doubt.is_answered()) {
            doubt.ask_at = asked + self.config.ask_heard_every;
        }
        // A daemon that was away has not asked for a while: its own silence is no one else's, and
        // what stayed without an answer before says nothing of now.
        if !doubt.is_silent && now.duration_since(doubt.ask_at) >= self.config.away() {
            doubt.asked_from = now;
            (doubt.unanswered, doubt.unanswered_since) = (0, None);
        }
        if doubt.heard >= doubt.unanswered_since {
            (doubt.unanswered, doubt.unanswered_since) = (0, None);
        }
        let quiet_since = doubt.heard.map_or(doubt.asked_from, |heard| heard.max(doubt.asked_from));
        let is_silent = now.duration_since(quiet_since) >= self.config.silence
            && doubt.unanswered >= self.config.questions()
            || !self.config.without.has(Control::Witness);
        let reason = match standing {
            Some(Standing::Lost) => Some(Reason::Lost),
            Some(Standing::Restarting) => Some(Reason::Restarting),
            None => Some(Reason::Unknown),
            Some(Standing::Alive | Standing::Suspect) => None,
        };
        match (reason, is_silent) {
            (None, _) => {
                self.release(now, slot, Some(doubt.clone()));
                doubt.held = None;
            }
            (Some(reason), false) => {
                self.keep.insert(index);
                let was_heard = doubt.heard.is_some_and(|heard| heard >= doubt.since);
                // Not yet asked long enough to know: kept, and nothing to tell.
                let is_reason = doubt.held.is_some_and(|(_, before)| before == reason);
                if was_heard && reason == Reason::Restarting {
                    // What was announced is no news.
                    doubt.held = Some((doubt.held.map_or(now, |(since, _)| since), reason));
                } else if was_heard && !is_reason {
                    doubt.held = Some((now, reason));
                    self.holds += 1;
                    let (name, vtep) = (slot.name, slot.vtep);
                    self.events.push(WitnessEvent::Held { name, vtep, reason });
                }
            }
            (Some(_), true) if !doubt.is_silent => {
                let held = doubt.held.take().map(|(since, _)| now.duration_since(since));
                let (name, vtep) = (slot.name, slot.vtep);
                self.events.push(WitnessEvent::Silent { name, vtep, held });
            }
            (Some(_), true) => {}
        }
        doubt.is_silent = is_silent && reason.is_some();
        self.doubts.insert(index, doubt);
    }
}

impl Doubt {
    fn new(now: Instant, generation: u32) -> Self {
        Self {
            generation,
            since: now,
            asked_from: now,
            heard: None,
            asked: None,
            ask_at: now,
            unanswered: 0,
            unanswered_since: None,
            held: None,
            is_silent: false,
        }
    }

    /// Whether the peer was heard since it was asked last.
    fn is_answered(&self) -> bool {
        self.asked.is_some() && self.heard >= self.asked
    }
}

#[cfg(test)]
mod tests;
