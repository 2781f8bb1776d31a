//! Where the programs run: TCX links (Linux 6.6) or, on older kernels, filters of a clsact qdisc.
//!
//! A TCX link is pinned, so the program stays when the daemon goes, and the next start swaps the
//! program in it without a gap. A pinned link whose device was deleted is dead, and one that somebody
//! detached is too: the kernel shows both as interface index 0 (`tcx_link_fdinfo`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
};
use marengo_core::{
    op::{Hook, Link},
    settings::IfName,
};
use nix::errno::Errno;

use super::{
    bpf::Bpf,
    links::Links,
    sys::{self, TcxHook},
};

/// How programs are attached.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum AttachMode {
    /// TCX where the kernel has it, else clsact.
    #[default]
    Auto,
    /// TCX links only.
    Tcx,
    /// Filters of a clsact qdisc only.
    Clsact,
}

/// Our filters in a clsact qdisc: before all others, and known by this handle. "MG".
const FILTER_PRIORITY: u16 = 1;
const FILTER_HANDLE: TcHandle = TcHandle::new(0, 0x4d47);

/// The attachments of this run.
#[derive(Debug)]
pub(super) struct Hooks {
    pin_dir: PathBuf,
    mode: AttachMode,
    /// Interface index of each filter that this run has put into a clsact qdisc.
    filters: BTreeMap<Hook, u32>,
}

impl Hooks {
    pub(super) fn open(pin_dir: PathBuf, mode: AttachMode) -> Self {
        Self { pin_dir, mode, filters: BTreeMap::new() }
    }

    pub(super) fn mode_name(&self) -> &'static str {
        if self.mode == AttachMode::Clsact { "clsact" } else { "tcx" }
    }

    /// Whether a hook of an interface runs, among others, the program, as far as a TCX link holds it
    /// there. Filters are not looked at: the kernel reports when one goes.
    pub(super) fn is_linked(&self, hook: Hook, ifindex: u32, program: u32) -> Result<bool> {
        if self.filters.contains_key(&hook) {
            return Ok(true);
        }
        let at = match hook {
            Hook::DeviceIngress => TcxHook::Ingress,
            Hook::DeviceEgress | Hook::BridgeEgress => TcxHook::Egress,
        };
        Ok(sys::programs_at(ifindex, at)?.contains(&program))
    }

    /// Finds the hooks at which this run's programs sit. One that an earlier run attached does not
    /// count: it is still in place, and to be swapped.
    pub(super) async fn observe(
        &self,
        bpf: &mut Bpf,
        links: &Links,
        ifindex: impl Fn(Link) -> Option<u32>,
    ) -> Result<BTreeSet<Hook>> {
        let mut there = BTreeSet::new();
        for hook in Hook::ALL {
            let Some(ifindex) = ifindex(hook.link()) else { continue };
            let attached = match self.filters.get(&hook) {
                Some(filter) if *filter == ifindex => {
                    let egress = hook != Hook::DeviceIngress;
                    links.has_filter(ifindex, egress, FILTER_HANDLE.into()).await?
                }
                _ => self.linked(bpf, hook, ifindex)?,
            };
            if attached {
                there.insert(hook);
            }
        }
        Ok(there)
    }

    /// Whether a program of ours stands at the door of a device: this run's, or an earlier one's that
    /// has not been swapped yet.
    pub(super) async fn is_guarded(&self, links: &Links, ifindex: u32) -> Result<bool> {
        let hook = Hook::DeviceIngress;
        if sys::pinned_link(&self.pin(hook))?.is_some_and(|link| link.ifindex == ifindex) {
            return Ok(true);
        }
        links.has_filter(ifindex, false, FILTER_HANDLE.into()).await
    }

    /// Puts the program at a hook: into the pinned link if there is a live one, else anew.
    pub(super) fn attach(
        &mut self,
        bpf: &mut Bpf,
        hook: Hook,
        name: &IfName,
        ifindex: u32,
    ) -> Result<()> {
        let program = bpf.program(hook)?;
        if self.mode != AttachMode::Clsact {
            match self.attach_tcx(program, hook, name, ifindex) {
                Err(error) if self.mode == AttachMode::Auto && lacks_tcx(&error) => {
                    tracing::info!("this kernel has no TCX links; using clsact filters");
                    self.mode = AttachMode::Clsact;
                }
                other => return other,
            }
        }
        attach_filter(program, hook, name)?;
        self.filters.insert(hook, ifindex);
        Ok(())
    }

    /// Takes the program away from a hook. One that is not there is gone already.
    pub(super) fn detach(&mut self, hook: Hook, name: &IfName) {
        if self.filters.remove(&hook).is_some() {
            // The filter may have gone with its device, or by somebody's hand.
            if let Ok(link) = SchedClassifierLink::attached(
                name.as_str(),
                attach_type(hook),
                FILTER_PRIORITY,
                FILTER_HANDLE,
                None,
            ) {
                drop(link);
            }
        }
        // The link's last holder is the pin: without it the program is detached.
        fs::remove_file(self.pin(hook)).ok();
    }

    /// Forgets what was attached to a link that is gone.
    pub(super) fn forget(&mut self, hook: Hook) {
        self.filters.remove(&hook);
        fs::remove_file(self.pin(hook)).ok();
    }

    fn attach_tcx(
        &self,
        program: &mut SchedClassifier,
        hook: Hook,
        name: &IfName,
        ifindex: u32,
    ) -> Result<()> {
        let pin = self.pin(hook);
        if let Ok(pinned) = PinnedLink::from_pin(&pin) {
            let link = FdLink::from(pinned);
            if sys::pinned_link(&pin)?.is_some_and(|link| link.ifindex == ifindex) {
                let link = SchedClassifierLink::try_from(link)?;
                let id = program.attach_to_link(link)?;
                // The pin keeps the link; only this run's handle on it goes.
                drop(program.take_link(id)?);
                return Ok(());
            }
            fs::remove_file(&pin).with_context(|| format!("failed to remove {}", pin.display()))?;
        }
        // First, so that no other program lets in what ours would drop.
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(name.as_str(), attach_type(hook), order)?;
        let link = FdLink::try_from(program.take_link(id)?)?;
        link.pin(&pin).with_context(|| format!("failed to pin {}", pin.display()))?;
        Ok(())
    }

    /// Whether the pinned link is on that interface and runs this run's program.
    fn linked(&self, bpf: &mut Bpf, hook: Hook, ifindex: u32) -> Result<bool> {
        let Some(link) = sys::pinned_link(&self.pin(hook))? else { return Ok(false) };
        Ok(link.program_id == bpf.program_id(hook)? && link.ifindex == ifindex)
    }

    fn pin(&self, hook: Hook) -> PathBuf {
        self.pin_dir.join(hook.name())
    }
}

/// Takes our filter off the bridge, if an earlier run put one there. (A TCX link goes with its pin.)
pub(super) async fn remove_bridge_filter(
    links: &Links,
    bridge: &IfName,
    ifindex: u32,
) -> Result<()> {
    if links.has_filter(ifindex, true, FILTER_HANDLE.into()).await? {
        drop(SchedClassifierLink::attached(
            bridge.as_str(),
            attach_type(Hook::BridgeEgress),
            FILTER_PRIORITY,
            FILTER_HANDLE,
            None,
        )?);
    }
    Ok(())
}

fn attach_filter(program: &mut SchedClassifier, hook: Hook, name: &IfName) -> Result<()> {
    // Fails if there is one, which is what we want; if there is none for another reason, the
    // attachment fails.
    tc::qdisc_add_clsact(name.as_str()).ok();
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: FILTER_PRIORITY,
        handle: FILTER_HANDLE,
        classid: None,
    });
    let attached = match program.attach_with_options(name.as_str(), attach_type(hook), options) {
        Err(ProgramError::TcError(TcError::NetlinkError(error)))
            if error.raw_os_error() == Some(Errno::EEXIST as i32) =>
        {
            // Left by an earlier run: swap the program in it.
            let link = SchedClassifierLink::attached(
                name.as_str(),
                attach_type(hook),
                FILTER_PRIORITY,
                FILTER_HANDLE,
                None,
            )?;
            program.attach_to_link(link)?
        }
        other => other?,
    };
    // Dropping the handle would detach the filter; it stays until it is detached on purpose.
    #[expect(clippy::mem_forget, reason = "see above")]
    std::mem::forget(program.take_link(attached)?);
    Ok(())
}

fn lacks_tcx(error: &anyhow::Error) -> bool {
    let Some(ProgramError::SyscallError(error)) = error.downcast_ref() else { return false };
    matches!(
        error.io_error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EINVAL | Errno::EOPNOTSUPP)
    )
}

fn attach_type(hook: Hook) -> TcAttachType {
    match hook {
        Hook::DeviceIngress => TcAttachType::Ingress,
        Hook::DeviceEgress | Hook::BridgeEgress => TcAttachType::Egress,
    }
}
