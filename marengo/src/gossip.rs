//! The gossip task: the UDP socket on one side, the membership on the other.
//!
//! ```text
//!   datagrams ---.                      .--> datagrams
//!   deadline  ---+--> [ Membership ] ---+--> watch: PeerTable --> converge
//!   requests  ---'                      '--> exchanges with others, over HTTP
//! ```

mod exchange;
mod seeds;
mod socket;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use marengo_core::{
    identity::{Identity, IdentityError},
    members::{Member, MemberState, PeerTable},
    membership::{Membership, MembershipConfig, MembershipEvent, SyncMessage, SyncRefusal},
};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info, warn};

pub(crate) use self::socket::GossipSocket;
use crate::{alarm::Alarm, api::GossipView, config::Addresses, tasks::Spawner, values::Seed};

/// What others ask of the gossip task.
#[derive(Debug)]
pub(crate) enum Request {
    /// Who is there?
    Members(oneshot::Sender<Members>),
    /// Who is worth remembering over a restart of the host?
    Known(oneshot::Sender<Known>),
    /// An exchange that another node began.
    Sync(Box<SyncMessage>, oneshot::Sender<Result<SyncMessage, SyncRefusal>>),
    /// The answer to an exchange that this node began.
    SyncReply(SocketAddr, Box<SyncMessage>),
    /// An exchange that this node began and that came to nothing.
    SyncFailed(SocketAddr, String),
    /// The addresses that the seeds' names stand for at the moment.
    Seeds(Vec<SocketAddr>),
    /// Go on under other addresses.
    ChangeAddress(Addresses, oneshot::Sender<Result<(), IdentityError>>),
    /// Tell everybody that this node leaves; answered when that is done.
    Leave(oneshot::Sender<()>),
    /// Tell everybody that this node's daemon is back soon; answered when that is done.
    LeaveForRestart(oneshot::Sender<()>),
}

/// Who is there, and how gossip fares.
#[derive(Debug)]
pub(crate) struct Members {
    /// This node.
    pub me: Identity,
    /// All members, this one among them.
    pub all: Vec<Member>,
    /// Conflicts, as sentences.
    pub conflicts: Vec<String>,
    /// Counters.
    pub counters: GossipView,
}

/// Addresses of this node, of those who are or were members, and of those who said goodbye.
#[derive(Debug)]
pub(crate) struct Known {
    pub own: SocketAddr,
    pub members: Vec<SocketAddr>,
    pub left: Vec<SocketAddr>,
}

/// At most one line about refused datagrams in this time.
const REJECTED_EVERY: Duration = Duration::from_mins(1);
/// Nodes with which exchanges fail, of which we keep track.
const MAX_UNREACHABLE: usize = 1024;
/// A leaving node is gone after this, whoever has not heard it.
const LEAVE_WITHIN: Duration = Duration::from_millis(400);

/// The gossip task's state.
#[derive(Debug)]
pub(crate) struct Gossip {
    membership: Membership,
    socket: GossipSocket,
    requests: mpsc::Receiver<Request>,
    /// For the answers of exchanges that this task begins.
    own_requests: mpsc::WeakSender<Request>,
    peers: watch::Sender<PeerTable>,
    rejected_logged: (Instant, u64),
    /// Where exchanges failed, as long as they do: each is told once.
    unreachable: BTreeSet<SocketAddr>,
    leaving: Option<(oneshot::Sender<()>, Instant)>,
    spawner: Spawner,
    alarm: Alarm,
}

impl Gossip {
    /// Makes the task for a node.
    pub(crate) fn new(
        config: MembershipConfig,
        identity: Identity,
        socket: GossipSocket,
        seeds: Vec<Seed>,
        remembered: Vec<SocketAddr>,
        spawner: Spawner,
    ) -> (Self, mpsc::Sender<Request>, watch::Receiver<PeerTable>) {
        let now = Instant::now();
        let membership =
            Membership::new(now, config, identity, StdRng::seed_from_u64(rand::random()));
        let (request_sender, requests) = mpsc::channel(64);
        let (peers, peers_receiver) = watch::channel(PeerTable::default());
        if !(seeds.is_empty() && remembered.is_empty()) {
            let resolving = seeds::keep_resolved(seeds, remembered, request_sender.clone());
            spawner.spawn("seeds", resolving);
        }
        let gossip = Self {
            membership,
            socket,
            requests,
            own_requests: request_sender.downgrade(),
            peers,
            rejected_logged: (now, 0),
            unreachable: BTreeSet::new(),
            leaving: None,
            alarm: Alarm::new(),
            spawner,
        };
        (gossip, request_sender, peers_receiver)
    }

    /// Runs until the node has left, or nobody can ask it to.
    pub(crate) async fn run(mut self) {
        loop {
            self.take_effects();
            // A flood of datagrams must starve neither the other tasks nor our own deadlines.
            tokio::task::consume_budget().await;
            self.handle_what_is_due();
            let deadline = self.deadline();
            tokio::select! {
                biased;
                // Before the deadline: a datagram may hold the answer whose absence the deadline
                // would declare.
                received = self.socket.receive() => match received {
                    Ok(datagrams) => self.handle_datagrams(&datagrams),
                    Err(error) => {
                        debug!(%error, "failed to receive gossip");
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                },
                request = self.requests.recv() => match request {
                    Some(request) => self.handle_request(request),
                    None => return,
                },
                () = self.alarm.ring(deadline) => self.membership.handle_timeout(Instant::now()),
            }
            if let Some((_, until)) = &self.leaving
                && *until <= Instant::now()
            {
                self.take_effects();
                if let Some((done, _)) = self.leaving.take() {
                    done.send(()).ok();
                }
                return;
            }
        }
    }

    /// After a batch of datagrams, what the datagrams would otherwise keep waiting.
    fn handle_what_is_due(&mut self) {
        let now = Instant::now();
        if self.membership.poll_timeout().is_some_and(|deadline| deadline <= now) {
            self.membership.handle_timeout(now);
        }
        if let Ok(request) = self.requests.try_recv() {
            self.handle_request(request);
        }
    }

    fn deadline(&self) -> Instant {
        let far = Instant::now() + Duration::from_hours(1);
        let leaving = self.leaving.as_ref().map_or(far, |(_, until)| *until);
        self.membership.poll_timeout().map_or(far, |deadline| deadline).min(leaving)
    }

    fn handle_datagrams(&mut self, datagrams: &[(SocketAddr, Vec<u8>)]) {
        let now = Instant::now();
        for (from, data) in datagrams {
            // Counted by the membership; a line for each would be a way to fill the disk.
            if let Err(error) = self.membership.handle_datagram(now, *from, data) {
                tracing::trace!(%from, %error, "refused a datagram");
            }
        }
        self.log_rejected(now);
    }

    fn log_rejected(&mut self, now: Instant) {
        let total = self.membership.counters().rejected_total();
        let (last, logged) = self.rejected_logged;
        if total == logged || logged > 0 && now.duration_since(last) < REJECTED_EVERY {
            return;
        }
        let reasons = self.counters().rejected;
        warn!(count = total - logged, total, reasons = ?reasons, "refused gossip datagrams");
        self.rejected_logged = (now, total);
    }

    fn handle_request(&mut self, request: Request) {
        let now = Instant::now();
        match request {
            Request::Members(answer) => {
                answer.send(self.members()).ok();
            }
            Request::Known(answer) => {
                answer.send(self.known()).ok();
            }
            Request::Sync(message, answer) => {
                answer.send(self.membership.handle_sync(now, &message)).ok();
            }
            Request::SyncFailed(with, error) => {
                if self.unreachable.len() < MAX_UNREACHABLE && self.unreachable.insert(with) {
                    warn!(%with, %error, "failed to exchange the membership; trying others too");
                }
            }
            Request::SyncReply(with, message) => {
                if self.unreachable.remove(&with) {
                    info!(%with, "exchanged the membership again");
                }
                if let Err(error) = self.membership.handle_sync_reply(now, &message) {
                    warn!(%with, %error, "refused the membership of another node");
                }
            }
            Request::Seeds(seeds) => self.membership.set_seeds(now, seeds),
            Request::LeaveForRestart(done) => {
                self.membership.leave_for_restart(now);
                self.leaving = Some((done, now + LEAVE_WITHIN));
            }
            Request::ChangeAddress(addresses, answer) => {
                let (advertise, listen) = (addresses.advertise, addresses.listen_for_others());
                let vtep = advertise.ip();
                let changed = self.membership.change_address(now, advertise, vtep, listen);
                if changed.is_ok() {
                    self.socket.set_source(vtep);
                }
                answer.send(changed).ok();
            }
            Request::Leave(done) => {
                self.membership.leave(now);
                self.leaving = Some((done, now + LEAVE_WITHIN));
            }
        }
    }

    /// Sends what is to be sent, says what is to be said, publishes the peers.
    fn take_effects(&mut self) {
        while let Some(transmit) = self.membership.poll_transmit() {
            self.socket.send(&transmit);
        }
        while let Some(event) = self.membership.poll_event() {
            self.handle_event(event);
        }
        let peers = self.membership.peers();
        self.peers.send_if_modified(|known| {
            let changed = *known != peers;
            *known = peers;
            changed
        });
    }

    fn handle_event(&mut self, event: MembershipEvent) {
        match event {
            MembershipEvent::MemberUp(member) => {
                info!(node = %member.name, address = %member.addr, vtep = %member.vtep,
                    event = "member-up", "cluster event");
            }
            MembershipEvent::MemberDown(member) => {
                warn!(node = %member.name, address = %member.addr, vtep = %member.vtep,
                    event = "member-down", "cluster event");
            }
            MembershipEvent::MemberLeft(member) => {
                info!(node = %member.name, address = %member.addr, vtep = %member.vtep,
                    event = "member-left", "cluster event");
            }
            MembershipEvent::MemberChanged { old, new } => {
                info!(node = %new.name, address = %new.addr, vtep = %new.vtep,
                    before = %old.vtep, event = "member-changed", "cluster event");
            }
            MembershipEvent::Joined => info!("joined the cluster"),
            MembershipEvent::Isolated => {
                warn!("no other member is left; asking seeds and lost members until one answers");
            }
            // Its own loopback is where that node listens; here it would be this node's.
            MembershipEvent::SyncWanted { with } if with.ip().is_loopback() => {
                debug!(%with, "a member cannot be reached for an exchange");
            }
            MembershipEvent::SyncWanted { with } => {
                if let Some(requests) = self.own_requests.upgrade() {
                    let message = self.membership.sync_request();
                    self.spawner.spawn("exchange", exchange::with_node(with, message, requests));
                }
            }
            MembershipEvent::SeedRefused { seed, reason } => {
                warn!(%seed, %reason, "a seed does not fit this node");
            }
            MembershipEvent::Conflict(conflict) => {
                warn!(
                    kind = %conflict.kind,
                    ours = %conflict.ours,
                    theirs = %conflict.theirs,
                    "two members have something in common that they must not"
                );
            }
            MembershipEvent::ConflictResolved(conflict) => {
                info!(kind = %conflict.kind, ours = %conflict.ours, theirs = %conflict.theirs,
                    "a conflict is resolved");
            }
        }
    }

    fn members(&self) -> Members {
        Members {
            me: self.membership.identity().clone(),
            all: self.membership.members(),
            conflicts: self.membership.conflicts().map(ToString::to_string).collect(),
            counters: self.counters(),
        }
    }

    fn known(&self) -> Known {
        let own = self.membership.identity().addr;
        let others = self.membership.members().into_iter().filter(|m| m.identity.addr != own);
        let (left, members): (Vec<_>, Vec<_>) =
            others.partition(|member| member.state == MemberState::Left);
        let addresses =
            |members: Vec<Member>| members.iter().map(|member| member.identity.addr).collect();
        Known { own, members: addresses(members), left: addresses(left) }
    }

    fn counters(&self) -> GossipView {
        let counters = self.membership.counters();
        let rejected: BTreeMap<String, u64> = counters
            .rejected()
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| (reason.to_owned(), count))
            .collect();
        GossipView {
            datagrams_received: counters.received,
            datagrams_sent: counters.sent,
            rejected,
        }
    }
}
