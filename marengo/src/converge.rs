//! The converge task: the one owner of the kernel. It observes, plans and applies; everything else
//! only tells it that something changed, or asks what it knows.

mod contest;
mod watching;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use marengo_common::PeerIndex;
use marengo_core::{
    control::{Control, Without},
    converge::{Cause, Converger, Outcome, is_overdue},
    desired::desired,
    identity::DataPlaneId,
    members::PeerTable,
    op::{Hook, Op},
    plan::{plan, plan_teardown},
    settings::DataPlane,
    slots::Slots,
    state::{DesiredState, ObservedState},
    witness::WitnessConfig,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::{contest::Contest, watching::Watching};
use crate::{
    alarm::Alarm,
    api::{FightView, PeerView},
    doubts::{Doubts, monotonic_ns},
    kernel::{Adopted, Kernel, Monitor, bpf::ProgramLog, monitor::Changes},
    tasks::Spawner,
};

/// What others ask of the converge task.
#[derive(Debug)]
pub(crate) enum Request {
    /// The data plane's peers.
    Peers(oneshot::Sender<anyhow::Result<Vec<PeerView>>>),
    /// How the data plane is.
    Status(oneshot::Sender<DataPlaneStatus>),
    /// This node's tunnel address is another one.
    ChangeVtep(IpAddr),
}

/// How the data plane is.
#[derive(Clone, Debug, Default)]
pub(crate) struct DataPlaneStatus {
    pub converged: bool,
    pub repairs: u64,
    pub rounds: u64,
    pub mtu: u16,
    pub error: Option<String>,
    pub peers: u64,
    pub held: u64,
    pub holds: u64,
    pub held_reasons: Vec<String>,
    pub peers_without_slot: Vec<String>,
    pub drops: BTreeMap<String, u64>,
    pub attach: &'static str,
    pub fights: Vec<FightView>,
    pub fights_total: u64,
}

/// How long a peer of an earlier run is kept after gossip has told of the first one: long enough to
/// hear of all. While gossip is silent, all are kept.
const KEEP_ADOPTED: Duration = Duration::from_secs(15);
/// Repairs that are told one by one; after that, one line in [`REPAIRS_TOLD_EVERY`].
const REPAIRS_TOLD: u64 = 10;
const REPAIRS_TOLD_EVERY: Duration = Duration::from_mins(1);

/// The converge task's state.
pub(crate) struct Converge {
    kernel: Kernel,
    data_plane: DataPlane,
    converger: Converger,
    slots: Slots,
    doubts: Doubts,
    adopted: Adoption,
    /// What was desired when the kernel was last as it should be. A difference that is found while
    /// this has not changed is another hand's doing.
    settled: Option<DesiredState>,
    last_error: Option<String>,
    contest: Contest,
    /// Who was judged too long ago is judged again: always, but in a test of what that is good for.
    rejudges: bool,
    repairs: u64,
    repair_told: Option<Instant>,
    repairs_untold: u64,
    rounds: u64,
    mtu: u16,
    /// Names of peers that have no place in the data plane.
    left_out: Vec<String>,
}

/// What becomes of slots that an earlier run left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Adoption {
    /// Gossip has not told of anybody yet.
    Waiting,
    /// Gossip tells; whoever it has not told of then is gone.
    Until(Instant),
    /// There are none, or they have been claimed or freed.
    Over,
}

impl Converge {
    /// Takes over the kernel.
    pub(crate) fn new(
        kernel: Kernel,
        adopted: Adopted,
        mut data_plane: DataPlane,
        interval: Duration,
        witness: WitnessConfig,
    ) -> Self {
        let now = Instant::now();
        let mut slots = Slots::new(data_plane.max_peers);
        let adoption = if adopted.slots.is_empty() { Adoption::Over } else { Adoption::Waiting };
        data_plane.id = adopted.data_plane.unwrap_or(data_plane.id);
        slots.adopt(adopted.slots, &adopted.flood, adopted.generation);
        slots.avoid(adopted.led_to);
        Self {
            doubts: Doubts::new(witness, &data_plane),
            kernel,
            data_plane,
            converger: Converger::new(now, interval),
            slots,
            adopted: adoption,
            settled: None,
            last_error: None,
            contest: Contest::new(now, true),
            rejudges: true,
            repairs: 0,
            repair_told: None,
            repairs_untold: 0,
            rounds: 0,
            mtu: 0,
            left_out: Vec::new(),
        }
    }

    /// Runs until cancelled.
    pub(crate) async fn run(
        &mut self,
        mut peers: watch::Receiver<PeerTable>,
        monitor: Monitor,
        mut requests: mpsc::Receiver<Request>,
        cancel: CancellationToken,
        spawner: Spawner,
    ) {
        let mut seen = *monitor.borrow();
        let mut watching = Watching::Reports(monitor);
        let mut alarm = Alarm::new();
        loop {
            let adopted_until = match self.adopted {
                Adoption::Until(until) => Some(until),
                Adoption::Waiting | Adoption::Over => None,
            };
            let others = [adopted_until, self.doubts.deadline(), watching.again_at()];
            let others = others.into_iter().flatten();
            let rounds = self.converger.poll_timeout().min(self.contest.poll_timeout());
            let deadline = others.fold(rounds, Instant::min);
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                Ok(()) = peers.changed() => {
                    self.converger.mark_dirty(Instant::now(), Cause::Membership);
                }
                changes = watching.changes() => {
                    let Some(changes) = changes else {
                        watching = Watching::ended(Instant::now());
                        continue;
                    };
                    self.contest.handle_changes(Instant::now(), changes);
                    if changes.routes != seen.routes {
                        self.kernel.forget_routes();
                        self.converger.mark_dirty(Instant::now(), Cause::Routes);
                    }
                    if changes.links != seen.links {
                        self.converger.mark_dirty(Instant::now(), Cause::Kernel);
                    }
                    seen = changes;
                }
                Some(request) = requests.recv() => self.handle_request(request),
                () = alarm.ring(deadline) => {}
            }
            let now = Instant::now();
            if watching.again_at().is_some_and(|at| at <= now) {
                watching = Watching::open(&self.data_plane, &spawner, now);
                if matches!(watching, Watching::Reports(_)) {
                    // What happened meanwhile, a round finds out.
                    seen = Changes::default();
                    self.contest.handle_changes(now, seen);
                    self.kernel.forget_routes();
                    self.converger.mark_dirty(now, Cause::Resync);
                }
            }
            if matches!(self.adopted, Adoption::Until(until) if until <= now) {
                self.adopted = Adoption::Over;
                self.converger.mark_dirty(now, Cause::Membership);
            }
            self.look(now);
            if self.doubts.deadline().is_some_and(|deadline| deadline <= now) {
                if self.judge_doubts(&peers.borrow().clone()) {
                    self.converger.mark_dirty(now, Cause::Membership);
                }
                self.doubts.ask(&self.data_plane, &self.slots);
            }
            if let Some(cause) = self.converger.due(now) {
                let table = peers.borrow_and_update().clone();
                // Told and noted there; the next round goes on.
                self.round(&table, cause).await.ok();
            }
        }
    }

    /// One round: observe, plan, apply. Returns the first error, after having done what could be
    /// done.
    pub(crate) async fn round(
        &mut self,
        peers: &PeerTable,
        cause: Cause,
    ) -> Result<(), anyhow::Error> {
        self.rounds += 1;
        if self.adopted == Adoption::Waiting && !peers.is_empty() {
            self.adopted = Adoption::Until(Instant::now() + KEEP_ADOPTED);
        }
        let judged = Instant::now();
        self.assign(peers);
        let result = self.converge(cause, judged).await;
        let outcome = *result.as_ref().unwrap_or(&Outcome::Failed);
        // What is waited with in a fight may be an address that leads to a freed slot.
        let is_settled = matches!(outcome, Outcome::Settled { .. });
        if is_settled && self.contest.held.is_empty() {
            self.slots.settled();
        }
        self.converger.handle_outcome(Instant::now(), outcome);
        if let Some(retry) = self.contest.retry.take() {
            self.converger.again_by(retry);
        }
        // Neither a failure nor the end of one.
        if outcome != Outcome::Unfinished {
            self.note(result.as_ref().err());
        }
        result.map(|_| ())
    }

    /// Gives the peers their slots. Those that cannot have one are told when they change.
    fn assign(&mut self, peers: &PeerTable) {
        let family = self.data_plane.vtep.is_ipv4();
        let (fitting, others): (Vec<_>, Vec<_>) =
            peers.vouched().partition(|peer| peer.vtep.is_ipv4() == family);
        self.judge_doubts(peers);
        self.slots.assign(fitting, self.doubts.keep());
        let full = self.slots.without_slot().iter().map(ToString::to_string);
        let left_out: Vec<String> =
            full.chain(others.iter().map(|peer| peer.name.to_string())).collect();
        if left_out != self.left_out {
            if !left_out.is_empty() {
                warn!(
                    peers = left_out.join(","),
                    limit = self.data_plane.max_peers,
                    "members without a place in the data plane: raise --max-peers, and give all \
                     nodes addresses of one family"
                );
            }
            self.left_out = left_out;
        }
    }

    /// Finds out who stays although gossip does not vouch for it. Returns whether that changed.
    fn judge_doubts(&mut self, peers: &PeerTable) -> bool {
        let gossip_speaks = self.adopted == Adoption::Over;
        self.doubts.judge(&self.kernel, peers, &self.slots, self.data_plane.vtep, gossip_speaks)
    }

    /// Which data plane this is.
    pub(crate) fn data_plane_id(&self) -> DataPlaneId {
        self.data_plane.id
    }

    /// Takes away what an earlier run with another pin directory left.
    pub(crate) async fn replace_misplaced(&mut self) -> anyhow::Result<()> {
        self.kernel.replace_misplaced().await
    }

    /// Whether the device was there before the first round.
    pub(crate) async fn had_device(&mut self) -> anyhow::Result<bool> {
        Ok(self.kernel.observe_links().await?.device.is_some())
    }

    /// The programs' log records; without `-D` there are none.
    pub(crate) fn take_program_log(&mut self) -> Option<ProgramLog> {
        self.kernel.take_program_log()
    }

    /// Does without some mechanisms, for tests of what they are good for.
    pub(crate) fn do_without(&mut self, without: Without) {
        if !without.has(Control::Backoff) {
            self.without_back_off();
        }
        self.rejudges = without.has(Control::Rejudge);
        self.contest.looks = without.has(Control::Looks);
        if !without.has(Control::Pauses) {
            self.converger.without_pauses();
        }
    }

    /// Removes everything that this run made: for a start that fails.
    pub(crate) async fn undo(mut self) -> anyhow::Result<()> {
        let bridge = self.kernel.undo_bridge().await;
        self.tear_down().await?;
        bridge
    }

    /// Removes what was made, but for the bridge.
    ///
    /// Goes on after a failure and returns the first one. But a device that could not be removed
    /// keeps its programs: without them it would take frames from anybody.
    pub(crate) async fn tear_down(mut self) -> Result<(), anyhow::Error> {
        let observed = self.kernel.observe_links().await?;
        let mut first = None;
        let mut device_stays = false;
        let plan = plan_teardown(&observed);
        if let Some(obstacle) = plan.obstacle {
            anyhow::bail!(
                "{obstacle}, or lost Marengo's mark: it is left as it is, and so are the \
                           programs that guard it"
            );
        }
        for op in plan.ops {
            if device_stays {
                break;
            }
            debug!(op = %op, "apply");
            if let Err(failure) = self.kernel.apply(&op).await {
                error!(error = format!("{failure:#}"), "could not clean up");
                device_stays = op == Op::DeleteDevice;
                first.get_or_insert(failure);
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Makes the kernel what it should be. Who stays was judged at `judged`.
    async fn converge(&mut self, cause: Cause, judged: Instant) -> anyhow::Result<Outcome> {
        if cause == Cause::Membership {
            debug!(peers = self.peer_names(), "current peers");
        }
        let vteps: Vec<IpAddr> = self.slots.iter().map(|(_, slot)| slot.vtep).collect();
        let observed = match self.kernel.observe(&vteps).await {
            Ok(observed) => observed,
            Err(error) => {
                // The next try may be far away.
                self.judge_again(self.slots.freed());
                return Err(error);
            }
        };
        let want = desired(&self.data_plane, &self.slots, observed.underlay_mtu);
        self.mtu = want.mtu;
        let plan = plan(&want, &observed);
        let repairing = self.settled.as_ref() == Some(&want);
        let ops = self.judge(plan.ops, repairing);
        if let Some(obstacle) = plan.obstacle {
            self.settled = None;
            self.apply(&ops, &observed, judged).await?;
            anyhow::bail!("{obstacle}: remove it, or choose another bridge with --bridge");
        }
        self.settled = None;
        if !self.apply(&ops, &observed, judged).await? {
            debug!(?cause, after = ?judged.elapsed(), "this took too long to take out anybody");
            return Ok(Outcome::Unfinished);
        }
        if !ops.is_empty() || cause == Cause::Membership {
            debug!(?cause, ops = ops.len(), peers = self.peer_names(),
                tunnels = %self.data_plane.device, "converged");
        }
        self.settled = Some(want);
        Ok(Outcome::Settled { ops: ops.len() })
    }

    /// Tells a repair; of many, some.
    fn tell_repair(&mut self, ops: &[Op], suspect: &str) {
        let recently = self.repair_told.is_some_and(|told| told.elapsed() < REPAIRS_TOLD_EVERY);
        if self.repairs > REPAIRS_TOLD && recently {
            self.repairs_untold += 1;
            return;
        }
        let ops: Vec<String> = ops.iter().map(Op::to_string).collect();
        warn!(
            ops = ops.join("; "),
            repairs = self.repairs,
            untold = self.repairs_untold,
            suspect,
            "something was changed by another hand; repairing it"
        );
        self.repair_told = Some(Instant::now());
        self.repairs_untold = 0;
    }

    /// Applies a plan. After a link or a program fails, no other link or program is touched in this
    /// round, but maps are written: they belong to peers that may be reached already. Returns false
    /// if who was to be taken out has to be judged again.
    async fn apply(
        &mut self,
        ops: &[Op],
        observed: &ObservedState,
        judged: Instant,
    ) -> anyhow::Result<bool> {
        let mut first: Option<anyhow::Error> = None;
        let (mut links_failed, mut vteps_failed, mut finished) = (false, false, true);
        let mut overdue = Vec::new();
        // A slot is written only when its generation is known to be given out: a run that ends here
        // would give it out again.
        let mut generation = u32::MAX;
        for op in ops {
            if links_failed && !op.is_map_write() {
                continue;
            }
            if matches!(op, Op::PutPeer(_, entry) if entry.generation > generation) {
                continue;
            }
            if vteps_failed && op.raises_generation(&observed.peers) {
                continue;
            }
            if self.rejudges && is_overdue(op, &observed.flood, judged, Instant::now()) {
                finished = false;
                overdue.extend(op.deleted_peer());
                continue;
            }
            debug!(op = %op, "apply");
            if let Err(failure) = self.kernel.apply(op).await {
                links_failed |= !op.is_map_write();
                vteps_failed |= matches!(op, Op::PutVtep(..));
                if matches!(op, Op::WriteSettings(_)) {
                    generation = observed.settings.map_or(0, |settings| settings.generation);
                }
                if *op == Op::Attach(Hook::DeviceIngress)
                    && let Some(device) = observed.device.as_ref().filter(|device| device.up)
                    && !self.kernel.is_guarded(device.ifindex).await
                {
                    self.close_device().await;
                }
                first.get_or_insert(failure);
            } else if let Some(index) = op.deleted_peer() {
                self.slots.taken_out(index);
            }
        }
        self.judge_again(overdue);
        first.map_or(Ok(finished), Err)
    }

    /// Gives slots that were freed and are still in the kernel back to their holders, who are asked
    /// anew.
    fn judge_again(&mut self, freed: Vec<PeerIndex>) {
        for index in freed {
            self.slots.take_back(index);
            self.doubts.ask_anew(index);
        }
    }

    /// Nothing stands at the door: close it.
    async fn close_device(&mut self) {
        let device = &self.data_plane.device;
        match self.kernel.apply(&Op::SetDeviceDown).await {
            Ok(()) => {
                error!(%device, "the ingress program is not in place; took the device down");
            }
            Err(failure) => {
                let error = format!("{failure:#}");
                error!(%device, error, "the ingress program is not in place; the device stays up");
            }
        }
    }

    /// Logs a failure once for as long as it lasts, and its end.
    fn note(&mut self, failure: Option<&anyhow::Error>) {
        let text = failure.map(|failure| format!("{failure:#}"));
        match (&self.last_error, &text) {
            (before, Some(text)) if before.as_ref() != Some(text) => {
                error!(error = %text, "could not converge; trying again with back-off");
            }
            (Some(_), None) => info!("converged again"),
            _ => {}
        }
        self.last_error = text;
    }

    fn handle_request(&mut self, request: Request) {
        match request {
            Request::Peers(answer) => {
                answer.send(self.peers()).ok();
            }
            Request::Status(answer) => {
                answer.send(self.status()).ok();
            }
            Request::ChangeVtep(vtep) => {
                self.data_plane.vtep = vtep;
                self.kernel.set_vtep(vtep);
                self.converger.mark_dirty(Instant::now(), Cause::Membership);
            }
        }
    }

    fn peer_names(&self) -> String {
        let names: Vec<String> = self.slots.iter().map(|(_, slot)| slot_name(slot)).collect();
        names.join(",")
    }

    fn status(&self) -> DataPlaneStatus {
        let drops = self.kernel.drops().unwrap_or_default();
        let (fights, fights_total) = self.contest.views(Instant::now());
        let held_reasons = self.slots.iter().filter_map(|(index, slot)| {
            let why = self.doubts.held(index)?;
            let name = slot.name.map_or_else(|| slot.vtep.to_string(), |name| name.to_string());
            Some(format!("{name}: {why}"))
        });
        DataPlaneStatus {
            converged: self.settled.is_some()
                && self.contest.held.is_empty()
                && self.last_error.is_none(),
            repairs: self.repairs,
            rounds: self.rounds,
            mtu: self.mtu,
            error: self.last_error.clone(),
            peers: self.slots.iter().count() as u64,
            held: self.doubts.held_count(),
            holds: self.doubts.holds(),
            held_reasons: held_reasons.collect(),
            peers_without_slot: self.left_out.clone(),
            drops: drops
                .into_iter()
                .map(|(reason, count)| (reason.label().to_owned(), count.packets))
                .collect(),
            attach: self.kernel.attach_mode(),
            fights,
            fights_total,
        }
    }

    fn peers(&self) -> anyhow::Result<Vec<PeerView>> {
        let stats: BTreeMap<PeerIndex, _> = self.kernel.peer_stats()?.into_iter().collect();
        let now = monotonic_ns();
        let peers = self.slots.iter().map(|(index, slot)| {
            let stats = stats.get(&index).copied().unwrap_or_default();
            let heard = self.kernel.heard(slot.vtep).ok().flatten();
            let heard = heard.and_then(|heard| heard.ago_ns(now)).map(Duration::from_nanos);
            let held = self.doubts.held(index);
            let state = match (&held, slot.name) {
                (Some(_), _) => "held",
                (None, Some(_)) => "forwarding",
                (None, None) => "adopted",
            };
            PeerView {
                name: slot_name(slot),
                index,
                vtep: slot.vtep,
                generation: slot.generation,
                state: state.to_owned(),
                held,
                data_plane: slot.data_plane.map(|id| id.to_string()).unwrap_or_default(),
                tx_packets: stats.tx_packets,
                tx_bytes: stats.tx_bytes,
                rx_packets: stats.rx_packets,
                rx_bytes: stats.rx_bytes,
                heard_seconds_ago: heard.map(|heard| heard.as_secs_f64()),
            }
        });
        Ok(peers.collect())
    }
}

fn slot_name(slot: &marengo_core::slots::Slot) -> String {
    slot.name.map(|name| name.to_string()).unwrap_or_default()
}
