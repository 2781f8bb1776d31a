//! The only door to the kernel: observe what is there, apply one change at a time.
//!
//! One task owns the [`Kernel`]; it is not `Clone`. All clones of a netlink handle share one socket,
//! and the kernel keeps one dump a socket: with one owner they never meet.
//!
//! What belongs to Marengo is told by a mark that is set in the message that makes it (the link
//! group [`links::GROUP`]), so that there is no moment in which an object of ours lacks it.

mod audit;
pub(crate) mod bpf;
pub(crate) mod bpffs;
mod earlier;
mod hooks;
mod leftovers;
mod links;
pub(crate) mod monitor;
pub(crate) mod suspects;
mod sys;
mod underlay;

use std::{net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use marengo_common::{DropCount, DropReason, Heard, PeerIndex, PeerStats, VtepKey};
use marengo_core::{
    control::{Control, Without},
    identity::DataPlaneId,
    op::{Hook, Link, Op},
    settings::DataPlane,
    slots::Slot,
    state::{ObservedBridge, ObservedDevice, ObservedState},
};
use nix::errno::Errno;

use self::{bpf::Bpf, hooks::Hooks};
pub(crate) use self::{
    bpf::{LayoutError, PinsError},
    hooks::AttachMode,
    monitor::Monitor,
    underlay::{AddressOwner, Underlay},
};
pub(crate) use self::{
    bpffs::open_dir,
    leftovers::{leftovers, remove},
    links::Links,
};

/// How long the kernel may take to answer. It answers within milliseconds, or the message was lost.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long an answer that may lie in the socket already is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// How to open the kernel.
#[derive(Clone, Debug)]
pub(crate) struct KernelConfig {
    /// Names and numbers of the links.
    pub data_plane: DataPlane,
    /// Where maps and links are pinned.
    pub pin_dir: PathBuf,
    /// Whether the programs log.
    pub debug: bool,
    /// How programs are attached.
    pub attach: AttachMode,
    /// What a test has taken away.
    pub without: Without,
}

/// What an earlier run left in the maps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Adopted {
    /// Its slots.
    pub slots: Vec<(PeerIndex, Slot)>,
    /// Its flood list, by place.
    pub flood: Vec<PeerIndex>,
    /// The indexes that its tunnel addresses lead to; a run that ended half-way may have left some
    /// that are no slot's any more.
    pub led_to: Vec<PeerIndex>,
    /// The highest generation that it gave out.
    pub generation: u32,
    /// Which data plane the maps belong to; `None`: new ones.
    pub data_plane: Option<DataPlaneId>,
}

/// The kernel, as far as Marengo changes it.
pub(crate) struct Kernel {
    config: KernelConfig,
    links: Links,
    underlay: Underlay,
    bpf: Bpf,
    hooks: Hooks,
    seen: audit::Seen,
}

impl Kernel {
    /// Opens netlink, loads the programs, and takes over the maps of an earlier run if they fit.
    ///
    /// Creates the maps in the pin directory, which must be there, but no link and no attachment:
    /// nothing of what runs changes.
    pub(crate) fn open(config: KernelConfig) -> Result<(Self, Adopted)> {
        let links = Links::open().context("failed to open a netlink socket")?;
        let underlay = Underlay::open().context("failed to open a netlink socket")?;
        let (bpf, adopted) = Bpf::open(&config)?;
        let hooks = Hooks::open(config.pin_dir.clone(), config.attach);
        Ok((Self { config, links, underlay, bpf, hooks, seen: audit::Seen::default() }, adopted))
    }

    /// Reads the links alone, which does not depend on programs or maps.
    pub(crate) async fn observe_links(&mut self) -> Result<ObservedState> {
        match self.try_observe_links().await {
            Err(error) if is_netlink_dead(&error) => {
                self.reopen_netlink()?;
                self.try_observe_links().await
            }
            other => other,
        }
    }

    async fn try_observe_links(&mut self) -> Result<ObservedState> {
        let (bridge, device) = self.find_links().await?;
        Ok(ObservedState {
            bridge,
            device,
            // As if all were there: to detach what is not is a success.
            hooks: Hook::ALL.into(),
            ..ObservedState::default()
        })
    }

    /// Reads everything of ours. `peers` are the tunnel addresses whose way through the underlay
    /// sets the MTU.
    pub(crate) async fn observe(&mut self, peers: &[IpAddr]) -> Result<ObservedState> {
        match self.try_observe(peers).await {
            Err(error) if is_netlink_dead(&error) => {
                self.reopen_netlink()?;
                self.try_observe(peers).await
            }
            other => other,
        }
    }

    /// Finds the two links, also under names that another hand has given them.
    async fn find_links(&self) -> Result<(Option<ObservedBridge>, Option<ObservedDevice>)> {
        let data_plane = &self.config.data_plane;
        let mut bridge = self.links.observe_bridge(&data_plane.bridge).await?;
        if let (None, Some(ifindex)) = (&bridge, self.seen.bridge()) {
            bridge = self.links.find_renamed_bridge(&data_plane.bridge, ifindex).await?;
        }
        let (name, pin_dir) = (&data_plane.device, &self.config.pin_dir);
        let mut device = self.links.find_device(name, pin_dir).await?;
        if let Some(device) = &mut device {
            device.finished |= !self.config.without.has(Control::Finish);
        }
        Ok((bridge, device))
    }

    async fn try_observe(&mut self, peers: &[IpAddr]) -> Result<ObservedState> {
        let data_plane = &self.config.data_plane;
        let (bridge, device) = self.find_links().await?;
        let ifindex = |link: Link| match link {
            Link::Bridge => bridge.as_ref().map(|bridge| bridge.ifindex),
            Link::Device => device.as_ref().map(|device| device.ifindex),
        };
        self.seen = audit::Seen::new(bridge.as_ref(), device.as_ref());
        let hooks = self.hooks.observe(&mut self.bpf, &self.links, ifindex).await?;
        let underlay_mtu = self.underlay.mtu(data_plane.vtep, peers).await?;
        let maps = self.bpf.observe()?;
        Ok(ObservedState {
            bridge,
            device,
            hooks,
            settings: maps.settings,
            peers: maps.peers,
            vteps: maps.vteps,
            flood: maps.flood,
            underlay_mtu,
        })
    }

    /// Applies one change. What is already so, or already gone, is a success.
    pub(crate) async fn apply(&mut self, op: &Op) -> Result<()> {
        match self.try_apply(op).await {
            Err(error) if is_netlink_dead(&error) => {
                self.reopen_netlink()?;
                self.try_apply(op).await
            }
            other => other,
        }
    }

    async fn try_apply(&mut self, op: &Op) -> Result<()> {
        let data_plane = &self.config.data_plane;
        match op {
            Op::CreateBridge { mtu } => {
                // A link pinned for a bridge of another time, or of another network namespace, could
                // have the new one's interface index.
                self.hooks.forget(Hook::BridgeEgress);
                self.links.create_bridge(&data_plane.bridge, *mtu).await
            }
            Op::CreateDevice { port, mtu } => {
                self.hooks.forget(Hook::DeviceIngress);
                self.hooks.forget(Hook::DeviceEgress);
                let (device, bridge) = (&data_plane.device, &data_plane.bridge);
                self.links.create_device(device, bridge, *port, *mtu).await
            }
            Op::FinishDevice => {
                self.links.finish_device(&data_plane.device, &self.config.pin_dir).await
            }
            Op::Rename { link, ifindex } => {
                self.links.rename(*ifindex, self.config.link_name(*link)).await
            }
            Op::DeleteDevice => self.links.delete_device(&data_plane.device).await,
            Op::SetMtu { link, mtu } => {
                self.links.set_mtu(self.config.link_name(*link), *mtu).await
            }
            Op::Enslave => self.links.enslave(&data_plane.device, &data_plane.bridge).await,
            Op::SetUp(link) => self.links.set_up(self.config.link_name(*link)).await,
            Op::SetDeviceDown => self.links.set_down(&data_plane.device).await,
            Op::WriteSettings(settings) => {
                let mut settings = *settings;
                settings.vxlan_ifindex = self.links.ifindex(&data_plane.device).await?;
                self.bpf.write_settings(&settings)
            }
            Op::Attach(hook) => {
                let name = self.config.link_name(hook.link());
                let ifindex = self.links.ifindex(name).await?;
                self.hooks.attach(&mut self.bpf, *hook, name, ifindex)
            }
            Op::Detach(hook) => {
                self.hooks.detach(*hook, self.config.link_name(hook.link()));
                Ok(())
            }
            Op::PutPeer(index, entry) => self.bpf.put_peer(*index, entry),
            Op::DeletePeer(index) => self.bpf.delete_peer(*index),
            Op::PutVtep(vtep, index) => self.bpf.put_vtep(vtep, *index),
            Op::DeleteVtep(vtep) => self.bpf.delete_vtep(vtep),
            Op::PutFlood(position, chunk) => self.bpf.put_flood(*position, chunk),
            Op::DeleteFlood(position) => self.bpf.delete_flood(*position),
            Op::RemovePins => {
                for hook in Hook::ALL {
                    self.hooks.detach(hook, self.config.link_name(hook.link()));
                }
                bpf::remove_pins(&self.config.pin_dir)
            }
        }
        .with_context(|| format!("failed to {op}"))
    }

    /// Whether a program of ours stands at the door of a device. Yes if that cannot be found out: not
    /// knowing is no reason to close a door that others go through.
    pub(crate) async fn is_guarded(&self, device: u32) -> bool {
        self.hooks.is_guarded(&self.links, device).await.unwrap_or_else(|error| {
            tracing::debug!(error = format!("{error:#}"), "cannot see what guards the device");
            true
        })
    }

    /// Takes away a device whose programs are pinned elsewhere, and those programs: with frozen maps
    /// they would go on deciding beside ours.
    ///
    /// Does nothing if the device, or what is pinned elsewhere, is not Marengo's.
    pub(crate) async fn replace_misplaced(&mut self) -> Result<()> {
        let device = &self.config.data_plane.device;
        let Some(dir) = self.links.device_pin_dir(device).await? else { return Ok(()) };
        if dir == self.config.pin_dir || bpf::refuse_foreign(&dir).is_err() {
            return Ok(());
        }
        tracing::warn!(%device, before = %dir.display(), now = %self.config.pin_dir.display(),
            "an earlier run pinned its programs elsewhere; replacing its device");
        self.links.delete_device(device).await?;
        if bpffs::is_locked(&dir) {
            // Somebody's in another network namespace by now.
            return Ok(());
        }
        bpf::remove_pins(&dir)
    }

    /// Opens the netlink sockets anew: a connection that failed once is of no more use.
    fn reopen_netlink(&mut self) -> Result<()> {
        self.links.reopen()?;
        self.underlay = Underlay::open()?;
        Ok(())
    }

    /// Removes the bridge if this run made it: for a start that fails.
    pub(crate) async fn undo_bridge(&mut self) -> Result<()> {
        self.links.undo_bridge(&self.config.data_plane.bridge).await
    }

    /// This node's tunnel address is another one.
    pub(crate) fn set_vtep(&mut self, vtep: IpAddr) {
        self.config.data_plane.vtep = vtep;
        self.underlay.forget();
    }

    /// Forgets what it knows of routes, because the kernel reported a change of one.
    pub(crate) fn forget_routes(&mut self) {
        self.underlay.forget();
    }

    /// The counters of every peer that has any, summed over the CPUs.
    pub(crate) fn peer_stats(&self) -> Result<Vec<(PeerIndex, PeerStats)>> {
        self.bpf.peer_stats()
    }

    /// When the programs last heard a tunnel address; `None`: they do not know the address.
    pub(crate) fn heard(&self, vtep: IpAddr) -> Result<Option<Heard>> {
        self.bpf.heard(&VtepKey::new(vtep))
    }

    /// The drops, summed over the CPUs.
    pub(crate) fn drops(&self) -> Result<Vec<(DropReason, DropCount)>> {
        self.bpf.drops()
    }

    /// Hands the programs' log records over to the log. Does nothing without `-D`.
    pub(crate) fn take_program_log(&mut self) -> Option<bpf::ProgramLog> {
        self.bpf.take_log()
    }

    /// The kernel's numbers of our maps and programs, to find who else has them open.
    pub(crate) fn ids(&mut self) -> Result<(Vec<u32>, Vec<u32>)> {
        let programs: Result<_> = Hook::ALL.iter().map(|hook| self.bpf.program_id(*hook)).collect();
        Ok((self.bpf.map_ids()?, programs?))
    }

    /// Whether programs are attached by TCX links or by clsact filters.
    pub(crate) fn attach_mode(&self) -> &'static str {
        self.hooks.mode_name()
    }
}

impl KernelConfig {
    fn link_name(&self, link: Link) -> &marengo_core::settings::IfName {
        match link {
            Link::Bridge => &self.data_plane.bridge,
            Link::Device => &self.data_plane.device,
        }
    }
}

/// Bounds the wait for an answer of the kernel.
async fn answered<T>(
    what: &str,
    answer: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<Result<T, rtnetlink::Error>> {
    let mut answer = std::pin::pin!(answer);
    if let Ok(answered) = tokio::time::timeout(ANSWER_WITHIN, &mut answer).await {
        return Ok(answered);
    }
    // Woken late, for want of a processor, nobody has looked into the socket yet.
    tokio::time::timeout(LOOK_AGAIN, answer)
        .await
        .with_context(|| format!("the kernel did not answer within 5 s: {what}"))
}

/// The errno at the root of an error, whichever interface of the kernel it came through.
pub(crate) fn root_errno(error: &anyhow::Error) -> Option<Errno> {
    error.chain().find_map(|cause| {
        let netlink = cause.downcast_ref::<rtnetlink::Error>().and_then(errno);
        let io = || cause.downcast_ref::<std::io::Error>()?.raw_os_error().map(Errno::from_raw);
        netlink.or_else(io).or_else(|| cause.downcast_ref::<Errno>().copied())
    })
}

/// A request without an answer: its connection ended.
#[derive(Debug, thiserror::Error)]
#[error("the kernel's answer was lost")]
struct NoAnswer;

/// Whether an error came from a netlink connection that has ended.
fn is_netlink_dead(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(rtnetlink::Error::RequestFailed))
            || cause.is::<NoAnswer>()
            || cause.is::<tokio::time::error::Elapsed>()
    })
}

/// The errno in an answer of the kernel.
fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            Some(Errno::from_raw(message.raw_code().saturating_neg()))
        }
        _ => None,
    }
}
