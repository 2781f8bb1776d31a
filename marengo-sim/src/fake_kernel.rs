//! A kernel of plain values: applies operations to an observed state the way the real one does, and
//! refuses what the real one refuses.

use marengo_common::PeerIndex;
use marengo_core::{
    op::{Hook, Link, Op},
    state::{ObservedBridge, ObservedDevice, ObservedState},
};

/// What the kernel holds, and the next interface index.
#[derive(Clone, Debug)]
pub struct FakeKernel {
    pub state: ObservedState,
    next_ifindex: u32,
}

impl FakeKernel {
    pub fn new(state: ObservedState) -> Self {
        Self { state, next_ifindex: 1000 }
    }

    /// Applies one operation, or says why the kernel would refuse it.
    pub fn apply(&mut self, op: &Op) -> Result<(), String> {
        let state = &mut self.state;
        match op {
            Op::CreateBridge { mtu } => {
                require(state.bridge.is_none(), "the bridge exists")?;
                let ifindex = take(&mut self.next_ifindex);
                state.bridge = Some(ObservedBridge {
                    ifindex,
                    named: true,
                    is_bridge: true,
                    up: false,
                    mtu: u32::from(*mtu),
                });
                state.hooks.remove(&Hook::BridgeEgress);
            }
            Op::CreateDevice { port, mtu } => {
                require(state.device.is_none(), "the device exists")?;
                let bridge = state.bridge.as_ref().ok_or("no bridge to be a port of")?;
                state.device = Some(ObservedDevice {
                    ifindex: take(&mut self.next_ifindex),
                    named: true,
                    ours: true,
                    collects_metadata: true,
                    finished: false,
                    port: *port,
                    master: Some(bridge.ifindex),
                    up: false,
                    mtu: u32::from(*mtu),
                });
            }
            Op::FinishDevice => device(state)?.finished = true,
            Op::Rename { link: Link::Bridge, ifindex } => {
                let bridge = state.bridge.as_mut().ok_or("no bridge")?;
                require(bridge.ifindex == *ifindex, "another link was renamed")?;
                bridge.named = true;
            }
            Op::Rename { link: Link::Device, ifindex } => {
                let device = state.device.as_mut().ok_or("no device")?;
                require(device.ours && device.ifindex == *ifindex, "another link was renamed")?;
                device.named = true;
            }
            Op::DeleteDevice => {
                let device = state.device.take().ok_or("no device to delete")?;
                require(device.ours, "a foreign device was deleted")?;
                require(device.named, "there is no device of that name")?;
                state.hooks.remove(&Hook::DeviceIngress);
                state.hooks.remove(&Hook::DeviceEgress);
            }
            Op::SetMtu { link: Link::Bridge, mtu } => bridge(state)?.mtu = u32::from(*mtu),
            Op::SetMtu { link: Link::Device, mtu } => device(state)?.mtu = u32::from(*mtu),
            Op::Enslave => {
                let master = bridge(state)?.ifindex;
                device(state)?.master = Some(master);
            }
            Op::SetUp(Link::Bridge) => bridge(state)?.up = true,
            Op::SetUp(Link::Device) => {
                require(
                    state.hooks.contains(&Hook::DeviceIngress),
                    "the device was brought up without its lock",
                )?;
                device(state)?.up = true;
            }
            Op::SetDeviceDown => device(state)?.up = false,
            Op::WriteSettings(settings) => {
                let mut settings = *settings;
                settings.vxlan_ifindex = device(state)?.ifindex;
                state.settings = Some(settings);
            }
            Op::Attach(hook) => {
                require(state.settings.is_some(), "a program ran without settings")?;
                match hook.link() {
                    Link::Bridge => require(state.bridge.is_some(), "no bridge to attach to")?,
                    Link::Device => require(state.device.is_some(), "no device to attach to")?,
                }
                state.hooks.insert(*hook);
            }
            Op::Detach(hook) => {
                state.hooks.remove(hook);
            }
            Op::PutPeer(index, entry) => {
                require(
                    state.settings.is_some_and(|known| known.generation >= entry.generation),
                    "a generation was given out before it was noted",
                )?;
                state.peers.insert(*index, *entry);
            }
            Op::DeletePeer(index) => {
                require(
                    !flooded_to(state, *index),
                    "a slot was removed while the flood list names it",
                )?;
                state.peers.remove(index);
            }
            Op::PutVtep(vtep, index) => {
                require(state.peers.contains_key(index), "an address without a slot")?;
                state.vteps.insert(*vtep, *index);
            }
            Op::DeleteVtep(vtep) => {
                state.vteps.remove(vtep);
            }
            Op::PutFlood(position, chunk) => {
                state.flood.insert(*position, *chunk);
            }
            Op::DeleteFlood(position) => {
                state.flood.remove(position);
            }
            Op::RemovePins => {
                state.settings = None;
                state.peers.clear();
                state.vteps.clear();
                state.flood.clear();
            }
        }
        Ok(())
    }
}

fn bridge(state: &mut ObservedState) -> Result<&mut ObservedBridge, String> {
    let bridge = state.bridge.as_mut().ok_or("no bridge")?;
    require(bridge.is_bridge, "a link that is no bridge was changed")?;
    require(bridge.named, "there is no bridge of that name")?;
    Ok(bridge)
}

fn device(state: &mut ObservedState) -> Result<&mut ObservedDevice, String> {
    let device = state.device.as_mut().ok_or("no device")?;
    require(device.ours, "a foreign device was changed")?;
    require(device.named, "there is no device of that name")?;
    Ok(device)
}

fn flooded_to(state: &ObservedState, index: PeerIndex) -> bool {
    state.flood.values().any(|chunk| chunk.peers.contains(&index))
}

fn take(next: &mut u32) -> u32 {
    *next += 1;
    *next
}

fn require(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}
