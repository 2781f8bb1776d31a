//! The kernel of one machine: links, maps, and the programs at work.
//!
//! It outlives the daemon and ends with the machine's power. It may be slow, and it may refuse.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use marengo_common::{
    Heard, MacEntry, MoveVerdict, PeerEntry, PeerIndex, PeerState, PeerVerdict, Settings,
    VtepBytes, VtepKey, judge_mac, judge_move,
};
use marengo_core::{
    control::{Control, Without},
    identity::DataPlaneId,
    op::{Hook, Op},
    slots::Slot,
    state::ObservedState,
    witness::Sighting,
};
use rand::{RngExt as _, rngs::StdRng};

use crate::fake_kernel::FakeKernel;

/// A station of the overlay, by its number.
pub type Station = u32;

/// Supposed: about what writing one costs the real one, which `docs/benchmarks.md` measures.
const READING_A_SLOT: Duration = Duration::from_micros(3);

/// How a kernel treats its users.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mood {
    /// The most that one operation takes.
    pub slowness: Duration,
    /// Share of operations that fail.
    pub failing: f64,
}

/// Where a frame truly came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Origin {
    /// The data plane that sent it.
    pub data_plane: DataPlaneId,
    /// Its machine.
    pub host: usize,
    /// The tunnel address that it was sent from.
    pub vtep: IpAddr,
    /// How often the station had moved by then.
    pub moves: u32,
}

/// What the programs have learnt of a station, and what is true of that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Learnt {
    pub(crate) entry: MacEntry,
    pub(crate) origin: Option<Origin>,
}

/// What an earlier daemon left in a kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Adopted {
    pub(crate) slots: Vec<(PeerIndex, Slot)>,
    /// The flood list by place.
    pub(crate) flood: Vec<PeerIndex>,
    /// The indexes that addresses lead to.
    pub(crate) led_to: Vec<PeerIndex>,
    /// The highest generation that it gave out.
    pub(crate) generation: u32,
}

/// What becomes of a frame on its way out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// To the peer behind which the station was heard.
    Known { vtep: VtepBytes, index: PeerIndex, origin: Option<Origin> },
    /// To all of them.
    Flood(Vec<VtepBytes>),
    /// The device is not there, or closed.
    Nowhere,
}

/// What becomes of a frame on its way in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Entrance {
    /// It goes to the bridge.
    Accepted,
    /// It was a question: this data plane answers.
    Answer(DataPlaneId),
    /// It does not.
    Dropped,
}

/// What is in a tunnelled frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Inner {
    /// A station's frame, to another one or to all.
    Frame {
        source: Station,
        destination: Option<Station>,
        origin: Origin,
        /// It goes to all, because nobody knows where its destination is.
        is_flooded: bool,
    },
    /// Are you there?
    Question,
    /// I am.
    Answer(DataPlaneId),
}

/// A machine's kernel.
#[derive(Debug)]
pub struct HostKernel {
    fake: FakeKernel,
    /// How it treats the daemon.
    pub mood: Mood,
    pub(crate) macs: BTreeMap<Station, Learnt>,
    heard: BTreeMap<VtepKey, Heard>,
    /// For which data plane each generation was given out, as long as the maps live.
    holders: BTreeMap<u32, u64>,
    /// Stations of which a frame from their present home was let in.
    pub(crate) fresh: BTreeSet<Station>,
    boot: Instant,
    without: Without,
    /// Another hand has changed something since the daemon looked.
    meddled: bool,
    /// See [`HostKernel::changed`].
    changed: Instant,
    /// Since when each address is let in.
    let_in: BTreeMap<VtepKey, Instant>,
    /// Slots that the daemon has cleared since this was last looked at, and for how long what came
    /// from there had been let in.
    pub(crate) cleared: Vec<(PeerEntry, Duration)>,
}

impl HostKernel {
    /// The kernel of a machine that is switched on.
    pub fn new(now: Instant, without: Without) -> Self {
        let state = ObservedState { underlay_mtu: Some(1500), ..ObservedState::default() };
        Self {
            fake: FakeKernel::new(state),
            mood: Mood::default(),
            macs: BTreeMap::new(),
            heard: BTreeMap::new(),
            holders: BTreeMap::new(),
            fresh: BTreeSet::new(),
            boot: now,
            without,
            meddled: false,
            changed: now,
            let_in: BTreeMap::new(),
            cleared: Vec::new(),
        }
    }

    /// What is in it.
    pub fn state(&self) -> &ObservedState {
        &self.fake.state
    }

    /// As [`HostKernel::state`], for the daemon at the beginning of a round.
    pub(crate) fn observe(&mut self) -> &ObservedState {
        self.meddled = false;
        &self.fake.state
    }

    /// For other hands than the daemon's.
    pub fn meddle(&mut self, now: Instant) -> &mut ObservedState {
        self.meddled = true;
        self.changed = now;
        &mut self.fake.state
    }

    pub(crate) fn was_meddled_with(&self) -> bool {
        self.meddled
    }

    /// The data plane that the maps belong to, if there are maps.
    pub fn data_plane(&self) -> Option<DataPlaneId> {
        self.fake.state.settings.and_then(|settings| DataPlaneId::new(settings.data_plane))
    }

    /// The tunnel address that the programs send from.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        let Settings { vtep: [a, b, c, d, ..], .. } = self.fake.state.settings?;
        Some(IpAddr::from([a, b, c, d]))
    }

    /// What an earlier daemon left.
    pub(crate) fn adopted(&self) -> Adopted {
        let state = &self.fake.state;
        let Some(settings) = state.settings else { return Adopted::default() };
        let slots = state.peers.iter().map(|(index, entry)| {
            let slot = Slot {
                data_plane: DataPlaneId::new(entry.data_plane),
                name: None,
                vtep: entry.address(settings.family),
                generation: entry.generation,
            };
            (*index, slot)
        });
        Adopted {
            slots: slots.collect(),
            flood: state.flood.values().flat_map(|chunk| chunk.peers).collect(),
            led_to: state.vteps.values().copied().collect(),
            generation: settings.generation,
        }
    }

    /// How long a kernel in a good mood takes to tell what it holds.
    pub(crate) fn reading_time(&self) -> Duration {
        READING_A_SLOT * u32::try_from(self.fake.state.peers.len()).unwrap_or(u32::MAX)
    }

    /// How long the next operation takes, and whether it fails.
    pub(crate) fn next_operation(&self, rng: &mut StdRng) -> (Duration, bool) {
        let Mood { slowness, failing } = self.mood;
        let time =
            if slowness.is_zero() { slowness } else { slowness.mul_f64(rng.random::<f64>()) };
        (time, failing > 0.0 && rng.random_bool(failing))
    }

    /// Applies an operation; panics if two data planes get one generation.
    pub(crate) fn apply(&mut self, now: Instant, op: &Op) -> Result<(), String> {
        let before = match op {
            Op::DeletePeer(index) | Op::PutPeer(index, _) => {
                self.fake.state.peers.get(index).copied()
            }
            _ => None,
        };
        let (source, was_whole) = (self.source(), self.is_whole());
        let before = before.map(|before| {
            let family = self.fake.state.settings.map_or(4, |settings| settings.family);
            (before, self.lets_in_for(now, before.address(family)))
        });
        self.fake.apply(op)?;
        if self.source() != source || self.is_whole() != was_whole {
            self.changed = now;
        }
        match op {
            Op::DeletePeer(_) => self.cleared.extend(before),
            Op::PutPeer(_, entry) if self.without.has(Control::Generations) => {
                self.cleared
                    .extend(before.filter(|(before, _)| before.data_plane != entry.data_plane));
                let holder = *self.holders.entry(entry.generation).or_insert(entry.data_plane);
                assert!(
                    holder == entry.data_plane,
                    "invariant: generation {} was of data plane {holder:016x} and is given to \
                     {:016x}",
                    entry.generation,
                    entry.data_plane
                );
            }
            Op::PutVtep(vtep, _) => {
                self.heard.insert(*vtep, Heard::default());
                self.let_in.insert(*vtep, now);
            }
            Op::DeleteVtep(vtep) => {
                self.heard.remove(vtep);
            }
            Op::RemovePins => {
                self.macs.clear();
                self.heard.clear();
                self.let_in.clear();
                self.holders.clear();
                self.fresh.clear();
            }
            _ => {}
        }
        Ok(())
    }

    /// What the ingress program has heard from an address.
    pub(crate) fn sighting(&self, now: Instant, vtep: IpAddr) -> Sighting {
        match self.heard.get(&VtepKey::new(vtep)) {
            Some(heard) => Sighting {
                ago: heard.ago_ns(self.monotonic(now)).map(Duration::from_nanos),
                is_stranger: heard.is_stranger(),
            },
            None => Sighting::default(),
        }
    }

    /// Where a station is, as far as this data plane knows.
    pub(crate) fn knows(&self, station: Station) -> Option<Origin> {
        let learnt = self.macs.get(&station)?;
        self.slot(&learnt.entry)?;
        learnt.origin
    }

    /// Sends a station's frame out of the device.
    pub(crate) fn egress(
        &mut self,
        now: Instant,
        source: Station,
        destination: Option<Station>,
    ) -> Way {
        if !self.is_open(Hook::DeviceEgress) {
            return Way::Nowhere;
        }
        self.is_here(now, source);
        if let Some(station) = destination
            && let Some(learnt) = self.macs.get(&station)
            && let Some(peer) = self.slot(&learnt.entry)
        {
            let Learnt { entry, origin } = *learnt;
            return Way::Known { vtep: peer.vtep, index: entry.peer, origin };
        }
        let state = &self.fake.state;
        let listed = state.flood.values().flat_map(|chunk| chunk.peers);
        let vteps = listed
            .filter_map(|index| state.peers.get(&index))
            .filter(|peer| peer.state == PeerState::Forwarding as u8)
            .map(|peer| peer.vtep);
        Way::Flood(vteps.collect())
    }

    /// Takes a frame from the tunnel.
    pub(crate) fn ingress(&mut self, now: Instant, outer: &VtepKey, inner: &Inner) -> Entrance {
        if !self.is_open(Hook::DeviceIngress) {
            return Entrance::Dropped;
        }
        let state = &self.fake.state;
        let Some(&index) = state.vteps.get(outer) else { return Entrance::Dropped };
        let Some(&peer) = state.peers.get(&index) else { return Entrance::Dropped };
        if peer.state != PeerState::Forwarding as u8 {
            return Entrance::Dropped;
        }
        let tick = Heard::tick(self.monotonic(now));
        let heard = self.heard.entry(*outer).or_default();
        match inner {
            Inner::Question => {
                *heard = heard.frame(tick);
                self.data_plane().map_or(Entrance::Dropped, Entrance::Answer)
            }
            Inner::Answer(data_plane) => {
                *heard = Heard::answer(tick, data_plane.get() == peer.data_plane);
                Entrance::Dropped
            }
            Inner::Frame { source, origin, .. } => {
                *heard = heard.frame(tick);
                self.learn(now, *source, index, peer.generation, *origin)
            }
        }
    }

    /// Whether the device carries frames through the program at a hook.
    fn is_open(&self, hook: Hook) -> bool {
        let state = &self.fake.state;
        state.settings.is_some()
            && state.device.as_ref().is_some_and(|device| device.up && device.master.is_some())
            && state.bridge.as_ref().is_some_and(|bridge| bridge.up)
            && state.hooks.contains(&hook)
    }

    /// When another hand changed something last, the device was opened or closed, the address that the
    /// programs send from changed, or the machine was switched on.
    pub(crate) fn changed(&self) -> Instant {
        self.changed
    }

    /// Whether links and programs are all there.
    pub(crate) fn is_whole(&self) -> bool {
        let hooks = Hook::ALL.iter().all(|hook| self.fake.state.hooks.contains(hook));
        hooks && self.is_open(Hook::DeviceIngress)
    }

    /// For how long frames from an address have been let in and answered, as far as this machine
    /// is concerned.
    pub(crate) fn lets_in_for(&self, now: Instant, vtep: IpAddr) -> Duration {
        let key = VtepKey::new(vtep);
        let state = &self.fake.state;
        let has_slot = state.vteps.get(&key).is_some_and(|index| state.peers.contains_key(index));
        let since = self.let_in.get(&key).filter(|_| has_slot);
        let open = self.is_open(Hook::DeviceIngress) && self.is_open(Hook::DeviceEgress);
        match since {
            Some(since) if open => now - (*since).max(self.changed),
            _ => Duration::ZERO,
        }
    }

    fn monotonic(&self, now: Instant) -> u64 {
        // A machine has been up for some seconds when its first program runs.
        u64::try_from((now - self.boot).as_nanos()).unwrap_or(u64::MAX) + 5_000_000_000
    }

    /// The slot that an entry points to, if it is a valid entry.
    pub(crate) fn slot(&self, entry: &MacEntry) -> Option<&PeerEntry> {
        let peer = self.fake.state.peers.get(&entry.peer)?;
        let valid = judge_mac(entry, peer) == PeerVerdict::Send;
        (valid || !self.without.has(Control::Generations)).then_some(peer)
    }

    /// As `learn` in the ingress program.
    fn learn(
        &mut self,
        now: Instant,
        station: Station,
        peer: PeerIndex,
        generation: u32,
        origin: Origin,
    ) -> Entrance {
        let now_ns = self.monotonic(now);
        let tick = MacEntry::move_tick(now_ns);
        let mut moved_from = 0;
        if let Some(known) = self.macs.get(&station) {
            let known = known.entry;
            if known.peer == peer && known.generation == generation {
                self.macs.insert(station, Learnt { entry: known, origin: Some(origin) });
                return Entrance::Accepted;
            }
            if self.without.has(Control::Moves) {
                let is_live = known.peer == 0 || self.slot(&known).is_some();
                match judge_move(&known, is_live, peer, tick) {
                    MoveVerdict::Move if is_live => moved_from = known.peer,
                    MoveVerdict::Move => {}
                    MoveVerdict::Stay => return Entrance::Accepted,
                    MoveVerdict::Refuse => return Entrance::Dropped,
                }
            }
        }
        let entry = MacEntry { peer, generation, last_seen_ns: now_ns, moved_from, moved_at: tick };
        self.macs.insert(station, Learnt { entry, origin: Some(origin) });
        Entrance::Accepted
    }

    /// As `is_here` in the egress program.
    fn is_here(&mut self, now: Instant, station: Station) {
        if !self.without.has(Control::Moves) {
            return;
        }
        let Some(known) = self.macs.get(&station).map(|known| known.entry) else { return };
        if known.peer == 0 {
            return;
        }
        let moved_from = if self.slot(&known).is_some() { known.peer } else { 0 };
        let now_ns = self.monotonic(now);
        let moved_at = MacEntry::move_tick(now_ns);
        let entry = MacEntry { peer: 0, generation: 0, last_seen_ns: now_ns, moved_from, moved_at };
        self.macs.insert(station, Learnt { entry, origin: None });
    }
}
