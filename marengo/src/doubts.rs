//! The second witness at work: reads what the programs have heard, asks the peers that gossip
//! doubts, and tells what came of it.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use marengo_common::{ASK_LEN, PeerIndex, question};
use marengo_core::{
    members::PeerTable,
    settings::DataPlane,
    slots::{Slot, Slots},
    witness::{Reason, Sighting, Witness, WitnessConfig, WitnessEvent},
};
use tracing::{debug, info, warn};

use crate::kernel::Kernel;

/// VXLAN's header (RFC 7348, section 5): the flag that a VNI is there, and the VNI.
const VXLAN_HEADER: usize = 8;
const VNI_IS_THERE: u8 = 0x08;

/// Peers that gossip doubts, and what is done about it.
#[derive(Debug)]
pub(crate) struct Doubts {
    witness: Witness,
    keep: BTreeSet<PeerIndex>,
    socket: Option<(IpAddr, UdpSocket)>,
    /// The question with its VXLAN header.
    datagram: [u8; VXLAN_HEADER + ASK_LEN],
    /// Why questions could not be sent, as long as they cannot.
    cannot_ask: Option<String>,
}

impl Doubts {
    pub(crate) fn new(config: WitnessConfig, data_plane: &DataPlane) -> Self {
        let mut datagram = [0; VXLAN_HEADER + ASK_LEN];
        datagram[0] = VNI_IS_THERE;
        datagram[4..7].copy_from_slice(&data_plane.vni.get().to_be_bytes()[1..]);
        datagram[VXLAN_HEADER..].copy_from_slice(&question());
        Self {
            witness: Witness::new(config),
            keep: BTreeSet::new(),
            socket: None,
            datagram,
            cannot_ask: None,
        }
    }

    /// When to judge and ask next; `None` while nobody is doubted.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.witness.poll_timeout()
    }

    /// The slots that stay although gossip does not vouch for them.
    pub(crate) fn keep(&self) -> &BTreeSet<PeerIndex> {
        &self.keep
    }

    /// Compares gossip with what the programs have heard. Returns whether other slots stay than
    /// before.
    pub(crate) fn judge(
        &mut self,
        kernel: &Kernel,
        peers: &PeerTable,
        slots: &Slots,
        own: IpAddr,
        gossip_speaks: bool,
    ) -> bool {
        let now_ns = monotonic_ns();
        let sighting = |slot: &Slot| match kernel.heard(slot.vtep) {
            Ok(Some(heard)) => Sighting {
                ago: heard.ago_ns(now_ns).map(Duration::from_nanos),
                is_stranger: heard.is_stranger(),
            },
            Ok(None) => Sighting::default(),
            // Not knowing is no reason to take a working path out.
            Err(error) => {
                debug!(%error, "failed to read when a peer was heard");
                Sighting { ago: Some(Duration::ZERO), is_stranger: false }
            }
        };
        let keep = self.witness.judge(Instant::now(), peers, slots, own, gossip_speaks, sighting);
        let changed = *keep != self.keep;
        self.keep.clone_from(keep);
        while let Some(event) = self.witness.poll_event() {
            tell(&event);
        }
        changed
    }

    /// Asks whoever is to be asked now.
    pub(crate) fn ask(&mut self, data_plane: &DataPlane, slots: &Slots) {
        let mut failure = None;
        let due = self.witness.poll_ask(Instant::now());
        if due.is_empty() {
            return;
        }
        for index in due {
            let Some(slot) = slots.get(index) else { continue };
            if let Err(error) = self.send(data_plane, slot.vtep) {
                // Without a way there is no path either; what else fails is this process's trouble.
                if !has_no_way(&error) {
                    self.witness.not_asked(index);
                }
                failure.get_or_insert(error);
            }
        }
        self.note(failure);
    }

    /// Sends a question the way that the tunnel sends a frame: from this node's VTEP to VXLAN's port.
    fn send(&mut self, data_plane: &DataPlane, to: IpAddr) -> anyhow::Result<()> {
        let socket = match &self.socket {
            Some((bound, socket)) if *bound == data_plane.vtep => socket,
            _ => {
                let socket = UdpSocket::bind(SocketAddr::new(data_plane.vtep, 0))
                    .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
                    .with_context(|| format!("failed to open a socket on {}", data_plane.vtep))?;
                &self.socket.insert((data_plane.vtep, socket)).1
            }
        };
        match socket.send_to(&self.datagram, (to, data_plane.port)) {
            // A full queue loses this question; there will be another.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                self.socket = None;
                Err(error).with_context(|| format!("failed to send to {to}"))
            }
            _ => Ok(()),
        }
    }

    /// Tells once for as long as it lasts.
    fn note(&mut self, failure: Option<anyhow::Error>) {
        let text = failure.map(|failure| format!("{failure:#}"));
        if let (None, Some(error)) = (&self.cannot_ask, &text) {
            warn!(error, "cannot ask a peer that gossip doubts through the tunnel");
        }
        self.cannot_ask = text;
    }

    /// A peer that was found silent has not been taken out: it is asked anew.
    pub(crate) fn ask_anew(&mut self, index: PeerIndex) {
        self.witness.ask_anew(index);
    }

    /// `held` and why, in a sentence, for a slot that is held.
    pub(crate) fn held(&self, index: PeerIndex) -> Option<String> {
        let (reason, since) = self.witness.held(index, Instant::now())?;
        Some(format!("{}, {:.0} s ago", sentence(reason), since.as_secs_f64()))
    }

    /// How many peers are held.
    pub(crate) fn held_count(&self) -> u64 {
        self.witness.held_count() as u64
    }

    /// How many times a peer began to be held.
    pub(crate) fn holds(&self) -> u64 {
        self.witness.holds()
    }
}

/// Whether the network itself says that there is no way.
fn has_no_way(error: &anyhow::Error) -> bool {
    let error = error.root_cause().downcast_ref::<io::Error>();
    error.is_some_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkDown
        )
    })
}

fn sentence(reason: Reason) -> &'static str {
    match reason {
        Reason::Lost => "gossip declared it down, but its data plane answers",
        Reason::Restarting => "its daemon is restarted, and its data plane answers",
        Reason::Unknown => "gossip has not told of it, but its data plane answers",
    }
}

fn tell(event: &WitnessEvent) {
    match event {
        WitnessEvent::Held { name, vtep, reason } => {
            let (node, reason) = (name.map(|name| name.to_string()), sentence(*reason));
            warn!(node, %vtep, reason, "holding a peer: it is forwarded to as before");
        }
        WitnessEvent::Released { name, vtep, after } => {
            let (node, seconds) = (name.map(|name| name.to_string()), after.as_secs_f64());
            info!(node, %vtep, seconds, "gossip vouches for a held peer again");
        }
        WitnessEvent::Silent { name, vtep, held } => {
            let node = name.map(|name| name.to_string());
            let held_seconds = held.map(|held| held.as_secs_f64());
            info!(node, %vtep, held_seconds, "neither gossip nor the tunnel hears a peer; taking it out");
        }
    }
}

/// The clock that the programs read (`bpf_ktime_get_ns`).
pub(crate) fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    let now = now.map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or_default()
}
