//! The converge task: the one owner of the kernel. It observes, plans and applies; everything else
//! only tells it that something changed, or asks what it knows.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use marengo_common::{PeerIndex, VtepEntry, VtepKey};
use marengo_core::{
    converge::{Cause, Converger, Outcome},
    desired::desired,
    members::PeerTable,
    op::{Hook, Op},
    plan::{plan, plan_teardown},
    settings::DataPlane,
    slots::Slots,
    state::{DesiredState, ObservedState},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    api::PeerView,
    kernel::{Adopted, Kernel, Monitor, bpf::ProgramLog},
};

/// What others ask of the converge task.
#[derive(Debug)]
pub(crate) enum Request {
    /// The data plane's peers.
    Peers(oneshot::Sender<anyhow::Result<Vec<PeerView>>>),
    /// How the data plane is.
    Status(oneshot::Sender<DataPlaneStatus>),
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
    pub peers_without_slot: Vec<String>,
    pub drops: BTreeMap<String, u64>,
    pub attach: &'static str,
}

/// How long a peer of an earlier run is kept while gossip has not told of it: long enough to join.
const KEEP_ADOPTED: Duration = Duration::from_secs(15);

/// The converge task's state.
pub(crate) struct Converge {
    kernel: Kernel,
    data_plane: DataPlane,
    converger: Converger,
    slots: Slots,
    adopted_until: Option<Instant>,
    /// What was desired when the kernel was last as it should be. A difference that is found while
    /// this has not changed is another hand's doing.
    settled: Option<DesiredState>,
    last_error: Option<String>,
    repairs: u64,
    rounds: u64,
    mtu: u16,
}

impl Converge {
    /// Takes over the kernel.
    pub(crate) fn new(
        kernel: Kernel,
        adopted: Adopted,
        data_plane: DataPlane,
        interval: Duration,
    ) -> Self {
        let now = Instant::now();
        let mut slots = Slots::new(data_plane.max_peers);
        let adopted_until = (!adopted.slots.is_empty()).then_some(now + KEEP_ADOPTED);
        slots.adopt(adopted.slots, adopted.generation);
        Self {
            kernel,
            data_plane,
            converger: Converger::new(now, interval),
            slots,
            adopted_until,
            settled: None,
            last_error: None,
            repairs: 0,
            rounds: 0,
            mtu: 0,
        }
    }

    /// Runs until cancelled.
    pub(crate) async fn run(
        &mut self,
        mut peers: watch::Receiver<PeerTable>,
        mut monitor: Monitor,
        mut requests: mpsc::Receiver<Request>,
        cancel: CancellationToken,
    ) {
        let mut routes_seen = monitor.borrow().routes;
        loop {
            let adopted_until = self.adopted_until.unwrap_or_else(|| self.converger.poll_timeout());
            let deadline = self.converger.poll_timeout().min(adopted_until);
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                Ok(()) = peers.changed() => {
                    self.converger.mark_dirty(Instant::now(), Cause::Membership);
                }
                Ok(()) = monitor.changed() => {
                    let routes = monitor.borrow_and_update().routes;
                    if routes != routes_seen {
                        routes_seen = routes;
                        self.kernel.forget_routes();
                    }
                    self.converger.mark_dirty(Instant::now(), Cause::Kernel);
                }
                Some(request) = requests.recv() => self.handle_request(request),
                () = sleep_until(deadline.into()) => {}
            }
            let now = Instant::now();
            if self.adopted_until.is_some_and(|until| until <= now) {
                self.adopted_until = None;
                self.converger.mark_dirty(now, Cause::Membership);
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
        self.slots.assign(peers, self.adopted_until.is_some());
        let result = self.converge(cause).await;
        let outcome = match &result {
            Ok(ops) => Outcome::Settled { ops: *ops },
            Err(_) => Outcome::Failed,
        };
        self.converger.handle_outcome(Instant::now(), outcome);
        self.note(result.as_ref().err());
        result.map(|_| ())
    }

    /// Whether the device was there before the first round.
    pub(crate) async fn had_device(&mut self) -> anyhow::Result<bool> {
        Ok(self.kernel.observe_links().await?.device.is_some())
    }

    /// The programs' log records; without `-D` there are none.
    pub(crate) fn take_program_log(&mut self) -> Option<ProgramLog> {
        self.kernel.take_program_log()
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
        for op in plan_teardown(&observed).ops {
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

    async fn converge(&mut self, cause: Cause) -> anyhow::Result<usize> {
        if cause == Cause::Membership {
            debug!(peers = self.peer_names(), "current peers");
        }
        let vteps: Vec<IpAddr> = self.slots.iter().map(|(_, slot)| slot.vtep).collect();
        let observed = self.kernel.observe(&vteps).await?;
        let want = desired(&self.data_plane, &self.slots, observed.underlay_mtu);
        self.mtu = want.mtu;
        let plan = plan(&want, &observed);
        if let Some(obstacle) = plan.obstacle {
            self.settled = None;
            anyhow::bail!("{obstacle}: remove it, or choose another bridge with --bridge");
        }
        let repairing = self.settled.as_ref() == Some(&want) && !plan.ops.is_empty();
        if repairing {
            self.repairs += 1;
            let ops: Vec<String> = plan.ops.iter().map(Op::to_string).collect();
            warn!(ops = ops.join("; "), "something was changed by another hand; repairing it");
        }
        self.settled = None;
        self.apply(&plan.ops, &observed).await?;
        if !plan.ops.is_empty() || cause == Cause::Membership {
            debug!(?cause, ops = plan.ops.len(), peers = self.peer_names(),
                tunnels = %self.data_plane.device, "converged");
        }
        self.settled = Some(want);
        Ok(plan.ops.len())
    }

    /// Applies a plan. After a link or a program fails, no other link or program is touched in this
    /// round, but maps are written: they belong to peers that may be reached already.
    async fn apply(&mut self, ops: &[Op], observed: &ObservedState) -> anyhow::Result<()> {
        let mut first: Option<anyhow::Error> = None;
        let mut links_failed = false;
        for op in ops {
            if links_failed && !op.is_map_write() {
                continue;
            }
            debug!(op = %op, "apply");
            if let Err(failure) = self.kernel.apply(op).await {
                links_failed |= !op.is_map_write();
                let open = observed.device.as_ref().is_some_and(|device| device.up);
                if *op == Op::Attach(Hook::DeviceIngress) && open {
                    self.close_device().await;
                }
                first.get_or_insert(failure);
            }
        }
        first.map_or(Ok(()), Err)
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
        }
    }

    fn peer_names(&self) -> String {
        let names: Vec<String> = self.slots.iter().map(|(_, slot)| slot_name(slot)).collect();
        names.join(",")
    }

    fn status(&self) -> DataPlaneStatus {
        let drops = self.kernel.drops().unwrap_or_default();
        DataPlaneStatus {
            converged: self.settled.is_some(),
            repairs: self.repairs,
            rounds: self.rounds,
            mtu: self.mtu,
            error: self.last_error.clone(),
            peers: self.slots.iter().count() as u64,
            peers_without_slot: self.slots.without_slot().iter().map(ToString::to_string).collect(),
            drops: drops
                .into_iter()
                .map(|(reason, count)| (reason.label().to_owned(), count.packets))
                .collect(),
            attach: self.kernel.attach_mode(),
        }
    }

    fn peers(&self) -> anyhow::Result<Vec<PeerView>> {
        let stats: BTreeMap<PeerIndex, _> = self.kernel.peer_stats()?.into_iter().collect();
        let heard: BTreeMap<VtepKey, u32> = self.kernel.heard()?.into_iter().collect();
        let now = monotonic_now();
        let peers = self.slots.iter().map(|(index, slot)| {
            let stats = stats.get(&index).copied().unwrap_or_default();
            let heard = heard.get(&VtepKey::new(slot.vtep)).copied().filter(|heard| *heard != 0);
            PeerView {
                name: slot_name(slot),
                index,
                vtep: slot.vtep,
                generation: slot.generation,
                state: if slot.name.is_some() { "forwarding" } else { "adopted" }.to_owned(),
                tx_packets: stats.tx_packets,
                tx_bytes: stats.tx_bytes,
                rx_packets: stats.rx_packets,
                rx_bytes: stats.rx_bytes,
                heard_seconds_ago: heard.map(|heard| seconds_since(now, heard)),
            }
        });
        Ok(peers.collect())
    }
}

fn slot_name(slot: &marengo_core::slots::Slot) -> String {
    slot.name.map(|name| name.to_string()).unwrap_or_default()
}

/// The clock that the programs read (`bpf_ktime_get_ns`).
fn monotonic_now() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map(Duration::from).unwrap_or_default()
}

/// Seconds between a coarse time in the `vteps` map and now, with the coarse clock's precision.
fn seconds_since(now: Duration, heard: u32) -> f64 {
    // The coarse clock wraps like the programs' does: only its low 32 bits count.
    let coarse = (now.as_nanos() >> VtepEntry::HEARD_SHIFT) & u128::from(u32::MAX);
    let ticks = u32::try_from(coarse).unwrap_or_default().wrapping_sub(heard);
    let tick = Duration::from_nanos(1 << VtepEntry::HEARD_SHIFT);
    (tick * ticks).as_secs_f64()
}
