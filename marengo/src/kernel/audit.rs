//! A cheap look at what the kernel does not report when another hand changes it: map entries and TCX
//! links. A dozen system calls for a hundred peers, so that it can be done all the time.

use anyhow::Result;
use marengo_common::Settings;
use marengo_core::{
    op::{Hook, Link},
    state::{DesiredState, ObservedBridge, ObservedDevice},
};

use super::Kernel;

/// The links as the last observation saw them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    bridge: Option<u32>,
    device: Option<u32>,
}

impl Seen {
    pub(super) fn new(bridge: Option<&ObservedBridge>, device: Option<&ObservedDevice>) -> Self {
        Self {
            bridge: bridge.map(|bridge| bridge.ifindex),
            device: device.map(|device| device.ifindex),
        }
    }

    pub(super) const fn bridge(self) -> Option<u32> {
        self.bridge
    }
}

impl Kernel {
    /// Whether maps and TCX links are as they should be. A link that the last observation did not
    /// see is left aside: its making is reported, and observed.
    pub(crate) fn is_intact(&mut self, want: &DesiredState) -> Result<bool> {
        let maps = self.bpf.observe()?;
        let settings =
            self.seen.device.map(|vxlan_ifindex| Settings { vxlan_ifindex, ..want.settings });
        if settings.is_some_and(|settings| maps.settings != Some(settings))
            || maps.peers != want.peers
            || maps.vteps != want.vteps
            || maps.flood != want.flood
        {
            return Ok(false);
        }
        for hook in Hook::ALL {
            let ifindex = match hook.link() {
                Link::Bridge => self.seen.bridge,
                Link::Device => self.seen.device,
            };
            let Some(ifindex) = ifindex else { continue };
            let program = self.bpf.program_id(hook)?;
            if !self.hooks.is_linked(hook, ifindex, program)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
