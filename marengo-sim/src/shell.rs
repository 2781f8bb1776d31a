//! What the daemon's converge task does, without its runtime: observe, plan and apply in rounds,
//! ask the peers that gossip doubts, and keep what an earlier daemon left until gossip speaks.

use std::{
    collections::{BTreeSet, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use marengo_common::PeerIndex;
use marengo_core::{
    control::{Control, Without},
    converge::{Cause, Converger, Outcome, is_overdue},
    desired::desired,
    members::PeerTable,
    op::{Hook, Op},
    plan::plan,
    settings::DataPlane,
    slots::{Slot, Slots},
    state::DesiredState,
    witness::{Witness, WitnessConfig, WitnessEvent},
};
use rand::rngs::StdRng;

use crate::host_kernel::{Adopted, HostKernel};

/// As in the daemon.
const KEEP_ADOPTED: Duration = Duration::from_secs(15);
/// The default of `--converge-interval`.
const INTERVAL: Duration = Duration::from_secs(6);

/// What becomes of slots that an earlier daemon left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Adoption {
    Waiting,
    Until(Instant),
    Over,
}

/// A round that has begun.
#[derive(Debug)]
enum Round {
    Observing { until: Instant, judged: Instant, fails: bool },
    Applying(Applying),
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "what has gone wrong, each for itself")]
struct Applying {
    until: Instant,
    /// When it was judged who stays.
    judged: Instant,
    want: DesiredState,
    ops: VecDeque<Op>,
    count: usize,
    /// The device was up when this round began.
    open: bool,
    failed: bool,
    /// Who was to be taken out has to be judged again.
    unfinished: bool,
    links_failed: bool,
    vteps_failed: bool,
    obstacle: bool,
    /// The kernel failed an operation that it should not.
    disturbed: bool,
}

/// The converge task's state.
#[derive(Debug)]
pub struct Shell {
    data_plane: DataPlane,
    converger: Converger,
    slots: Slots,
    witness: Witness,
    keep: BTreeSet<PeerIndex>,
    adopted: Adoption,
    rejudges: bool,
    /// What was desired when the kernel was last as it should be.
    settled: Option<DesiredState>,
    round: Option<Round>,
    /// What was reported during this round: the daemon looks at it afterwards.
    reported: Option<Cause>,
    /// What gossip tells.
    peers: PeerTable,
    /// What the witness told since this was last looked at.
    pub(crate) events: Vec<WitnessEvent>,
    /// Rounds that ended.
    pub(crate) rounds: u64,
}

impl Shell {
    /// Takes over the kernel.
    pub(crate) fn new(
        now: Instant,
        kernel: &HostKernel,
        data_plane: DataPlane,
        without: Without,
    ) -> Self {
        let adopts = without.has(Control::Adoption);
        let Adopted { slots: adopted, flood, led_to, generation } =
            if adopts { kernel.adopted() } else { Adopted::default() };
        let adoption = if adopted.is_empty() { Adoption::Over } else { Adoption::Waiting };
        let mut slots = Slots::new(data_plane.max_peers);
        slots.adopt(adopted, &flood, generation);
        slots.avoid(led_to);
        Self {
            data_plane,
            converger: Converger::new(now, INTERVAL),
            slots,
            witness: Witness::new(WitnessConfig { without, ..WitnessConfig::DEFAULT }),
            keep: BTreeSet::new(),
            adopted: adoption,
            rejudges: without.has(Control::Rejudge),
            settled: None,
            round: None,
            reported: None,
            peers: PeerTable::default(),
            events: Vec::new(),
            rounds: 0,
        }
    }

    /// The slots.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// How many peers are held.
    pub fn held(&self) -> usize {
        self.witness.held_count()
    }

    /// What was desired when the kernel was last as it should be, unless something is being done. (A
    /// round that looks has not found anything to do yet.)
    pub(crate) fn settled(&self) -> Option<&DesiredState> {
        self.settled.as_ref()
    }

    /// As [`Shell::settled`], if that is what gossip last told.
    pub(crate) fn settled_on(&self, peers: &PeerTable) -> Option<&DesiredState> {
        self.settled().filter(|_| self.peers == *peers)
    }

    /// The tunnel address of a slot.
    pub(crate) fn vtep(&self, index: PeerIndex) -> Option<IpAddr> {
        self.slots.get(index).map(|slot| slot.vtep)
    }

    /// Tells what gossip knows.
    pub(crate) fn handle_peers(&mut self, now: Instant, peers: PeerTable) {
        if self.peers != peers {
            self.peers = peers;
            self.mark_dirty(now, Cause::Membership);
        }
    }

    /// The machine has another address.
    pub(crate) fn change_vtep(&mut self, now: Instant, vtep: IpAddr) {
        self.data_plane.vtep = vtep;
        self.mark_dirty(now, Cause::Membership);
    }

    /// Tells that the kernel reported something.
    pub(crate) fn handle_report(&mut self, now: Instant) {
        self.mark_dirty(now, Cause::Kernel);
    }

    fn mark_dirty(&mut self, now: Instant, cause: Cause) {
        if self.round.is_none() {
            self.converger.mark_dirty(now, cause);
        } else if self.reported != Some(Cause::Membership) {
            self.reported = Some(cause);
        }
    }

    /// A round has ended.
    fn end_round(&mut self, now: Instant, outcome: Outcome) {
        self.converger.handle_outcome(now, outcome);
        self.rounds += 1;
        if let Some(cause) = self.reported.take() {
            self.converger.mark_dirty(now, cause);
        }
    }

    /// When to call [`Shell::run`] next.
    pub(crate) fn deadline(&self) -> Instant {
        match &self.round {
            Some(Round::Observing { until, .. }) => return *until,
            Some(Round::Applying(round)) => return round.until,
            None => {}
        }
        let adopted_until = match self.adopted {
            Adoption::Until(until) => Some(until),
            Adoption::Waiting | Adoption::Over => None,
        };
        let others = [adopted_until, self.witness.poll_timeout()].into_iter().flatten();
        others.fold(self.converger.poll_timeout(), Instant::min)
    }

    /// Does what is due, and returns whom to ask.
    pub(crate) fn run(
        &mut self,
        now: Instant,
        kernel: &mut HostKernel,
        rng: &mut StdRng,
    ) -> Vec<PeerIndex> {
        let mut ask = Vec::new();
        while self.deadline() <= now {
            match self.round.take() {
                Some(round) => self.go_on(now, round, kernel, rng),
                None => ask.extend(self.look(now, kernel, rng)),
            }
        }
        ask
    }

    /// Between two rounds.
    fn look(&mut self, now: Instant, kernel: &HostKernel, rng: &mut StdRng) -> Vec<PeerIndex> {
        if matches!(self.adopted, Adoption::Until(until) if until <= now) {
            self.adopted = Adoption::Over;
            self.converger.mark_dirty(now, Cause::Membership);
        }
        let mut ask = Vec::new();
        if self.witness.poll_timeout().is_some_and(|deadline| deadline <= now) {
            if self.judge(now, kernel) {
                self.converger.mark_dirty(now, Cause::Membership);
            }
            ask = self.witness.poll_ask(now);
        }
        if self.converger.due(now).is_some() {
            if self.adopted == Adoption::Waiting && !self.peers.is_empty() {
                self.adopted = Adoption::Until(now + KEEP_ADOPTED);
            }
            self.judge(now, kernel);
            self.slots.assign(self.peers.vouched(), &self.keep);
            let (time, fails) = kernel.next_operation(rng);
            let until = now + time + kernel.reading_time();
            self.round = Some(Round::Observing { until, judged: now, fails });
        }
        ask
    }

    /// Finds out who stays although gossip does not vouch for it. Returns whether that changed.
    fn judge(&mut self, now: Instant, kernel: &HostKernel) -> bool {
        let speaks = self.adopted == Adoption::Over;
        let sighting = |slot: &Slot| kernel.sighting(now, slot.vtep);
        let own = self.data_plane.vtep;
        let keep = self.witness.judge(now, &self.peers, &self.slots, own, speaks, sighting);
        let changed = *keep != self.keep;
        self.keep.clone_from(keep);
        while let Some(event) = self.witness.poll_event() {
            self.events.push(event);
        }
        changed
    }

    /// Gives a slot that was freed and is still in the kernel back to its holder, who is asked anew.
    fn judge_again(&mut self, freed: PeerIndex) {
        self.slots.take_back(freed);
        self.witness.ask_anew(freed);
    }

    fn go_on(&mut self, now: Instant, round: Round, kernel: &mut HostKernel, rng: &mut StdRng) {
        let mut round = match round {
            Round::Observing { fails: true, .. } => {
                for index in self.slots.freed() {
                    self.judge_again(index);
                }
                self.end_round(now, Outcome::Failed);
                return;
            }
            Round::Observing { judged, .. } => {
                let observed = kernel.observe();
                let want = desired(&self.data_plane, &self.slots, observed.underlay_mtu);
                let plan = plan(&want, observed);
                self.settled = None;
                Applying {
                    until: now,
                    judged,
                    want,
                    count: plan.ops.len(),
                    ops: plan.ops.into(),
                    open: observed.device.as_ref().is_some_and(|device| device.up),
                    failed: false,
                    unfinished: false,
                    links_failed: false,
                    vteps_failed: false,
                    obstacle: plan.obstacle.is_some(),
                    disturbed: false,
                }
            }
            Round::Applying(mut round) => {
                // A daemon that was stopped meanwhile had not made the call yet, and looks again at
                // what time it is: see below.
                let flood = &kernel.state().flood;
                let is_late = |op: &Op| is_overdue(op, flood, round.judged, now);
                let was_stopped = now > round.until;
                let is_void =
                    was_stopped && self.rejudges && round.ops.front().is_some_and(is_late);
                if !is_void
                    && let Some(op) = round.ops.pop_front()
                    && round.apply(now, &op, kernel)
                    && let Some(index) = op.deleted_peer()
                {
                    self.slots.taken_out(index);
                }
                round
            }
        };
        while let Some(op) = round.ops.front() {
            let flood = &kernel.state().flood;
            let is_late = self.rejudges && is_overdue(op, flood, round.judged, now);
            if is_late {
                round.unfinished = true;
                if let Some(index) = op.deleted_peer() {
                    self.judge_again(index);
                }
            }
            let raises = op.raises_generation(&kernel.state().peers);
            let is_skipped =
                round.links_failed && !op.is_map_write() || round.vteps_failed && raises;
            if !is_late && !is_skipped {
                break;
            }
            round.ops.pop_front();
        }
        if round.ops.is_empty() {
            let failed = round.failed || round.obstacle;
            let outcome = match (failed, round.unfinished) {
                (true, _) => Outcome::Failed,
                (false, true) => Outcome::Unfinished,
                (false, false) => Outcome::Settled { ops: round.count },
            };
            self.end_round(now, outcome);
            let is_settled = matches!(outcome, Outcome::Settled { .. });
            self.settled = is_settled.then_some(round.want);
            if is_settled {
                self.slots.settled();
            }
            return;
        }
        let (time, fails) = kernel.next_operation(rng);
        round.until = now + time;
        round.disturbed |= fails;
        if fails {
            // As if the kernel said no: nothing is done.
            if let Some(op) = round.ops.pop_front() {
                round.fail(now, &op, kernel);
            }
        }
        self.round = Some(Round::Applying(round));
    }
}

impl Applying {
    /// Returns whether it is done.
    fn apply(&mut self, now: Instant, op: &Op, kernel: &mut HostKernel) -> bool {
        let Err(refusal) = kernel.apply(now, op) else { return true };
        let excused = self.disturbed || kernel.was_meddled_with();
        assert!(excused, "invariant: the kernel refused {op}: {refusal}");
        self.fail(now, op, kernel);
        false
    }

    fn fail(&mut self, now: Instant, op: &Op, kernel: &mut HostKernel) {
        self.failed = true;
        self.links_failed |= !op.is_map_write();
        self.vteps_failed |= matches!(op, Op::PutVtep(..));
        if *op == Op::Attach(Hook::DeviceIngress) && self.open {
            // Nothing stands at the door: close it.
            kernel.apply(now, &Op::SetDeviceDown).ok();
        }
    }
}
