//! The ordered difference between what should be in the kernel and what is.

use std::fmt;

use marengo_common::{PeerEntry, PeerIndex, Settings};

use crate::{
    op::{Hook, Link, Op},
    state::{DesiredState, ObservedDevice, ObservedState},
};

/// What to do, in order; or what stands in the way.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// The changes. Empty when all is as it should be.
    pub ops: Vec<Op>,
    /// A link with one of our names that is not ours to change. What does not concern it is planned
    /// all the same.
    pub obstacle: Option<Obstacle>,
}

/// A link that has a name of ours and is somebody else's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Obstacle {
    /// There is a link with the bridge's name that is no bridge.
    BridgeIsNoBridge,
    /// There is a link with the device's name that does not carry our mark.
    DeviceIsForeign,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BridgeIsNoBridge => "the link with the bridge's name is no bridge",
            Self::DeviceIsForeign => "the link with the device's name was not made by Marengo",
        })
    }
}

/// Returns the operations that turn `observed` into `desired`, in the order to apply them.
///
/// The device's lock comes first, and the programs are in place before it comes up; slots, addresses
/// and flood entries are added before others are removed, so traffic with a peer that stays is never
/// interrupted. Any part of the plan may be applied and a new plan made: it leads to the same end.
pub fn plan(desired: &DesiredState, observed: &ObservedState) -> Plan {
    let obstacle = obstacle(observed);
    let mut ops = Vec::new();
    match obstacle {
        None => {
            let device = plan_device(desired, observed, &mut ops);
            plan_bridge(desired, observed, device, &mut ops);
            plan_programs(desired, observed, device, &mut ops);
            plan_maps(desired, observed, &mut ops);
            if device.is_none_or(|device| !device.up) {
                ops.push(Op::SetUp(Link::Device));
            }
            plan_removals(desired, observed, &mut ops);
        }
        // The device is still ours: its lock and its maps are kept as they should be.
        Some(Obstacle::BridgeIsNoBridge) if fitting_device(desired, observed).is_some() => {
            plan_device(desired, observed, &mut ops);
            plan_maps(desired, observed, &mut ops);
            plan_removals(desired, observed, &mut ops);
        }
        Some(Obstacle::BridgeIsNoBridge | Obstacle::DeviceIsForeign) => {}
    }
    Plan { ops, obstacle }
}

/// Returns the operations that take away what Marengo made, but for the bridge.
///
/// The device goes down first: at no moment is it up without its programs. A device that lost our
/// mark is not removed, and keeps its programs.
pub fn plan_teardown(observed: &ObservedState) -> Plan {
    let mut ops = Vec::new();
    if let Some(device) = &observed.device {
        if !device.ours {
            return Plan { ops, obstacle: Some(Obstacle::DeviceIsForeign) };
        }
        if !device.named {
            ops.push(Op::Rename { link: Link::Device, ifindex: device.ifindex });
        }
        if device.up {
            ops.push(Op::SetDeviceDown);
        }
        ops.push(Op::DeleteDevice);
    }
    if observed.hooks.contains(&Hook::BridgeEgress) {
        ops.push(Op::Detach(Hook::BridgeEgress));
    }
    ops.push(Op::RemovePins);
    Plan { ops, obstacle: None }
}

fn obstacle(observed: &ObservedState) -> Option<Obstacle> {
    if observed.bridge.as_ref().is_some_and(|bridge| !bridge.is_bridge) {
        return Some(Obstacle::BridgeIsNoBridge);
    }
    if observed.device.as_ref().is_some_and(|device| !device.ours) {
        return Some(Obstacle::DeviceIsForeign);
    }
    None
}

fn fitting_device<'a>(
    desired: &DesiredState,
    observed: &'a ObservedState,
) -> Option<&'a ObservedDevice> {
    let fits = |device: &&ObservedDevice| {
        device.ours && device.collects_metadata && device.port == desired.port
    };
    observed.device.as_ref().filter(fits)
}

/// Plans what concerns a device that may stay: its lock before all else, whatever else fails.
/// Returns that device.
fn plan_device<'a>(
    desired: &DesiredState,
    observed: &'a ObservedState,
    ops: &mut Vec<Op>,
) -> Option<&'a ObservedDevice> {
    let device = fitting_device(desired, observed);
    if let Some(device) = observed.device.as_ref().filter(|device| !device.named) {
        ops.push(Op::Rename { link: Link::Device, ifindex: device.ifindex });
    }
    match device {
        Some(device) => {
            let wanted = Settings { vxlan_ifindex: device.ifindex, ..desired.settings };
            if observed.settings != Some(wanted) {
                ops.push(Op::WriteSettings(desired.settings));
            }
            for hook in [Hook::DeviceIngress, Hook::DeviceEgress] {
                if !observed.hooks.contains(&hook) {
                    ops.push(Op::Attach(hook));
                }
            }
        }
        None if observed.device.is_some() => ops.push(Op::DeleteDevice),
        None => {}
    }
    device
}

/// Plans the links but for bringing the device up.
fn plan_bridge(
    desired: &DesiredState,
    observed: &ObservedState,
    device: Option<&ObservedDevice>,
    ops: &mut Vec<Op>,
) {
    let mtu = desired.mtu;
    if let Some(bridge) = observed.bridge.as_ref().filter(|bridge| !bridge.named) {
        ops.push(Op::Rename { link: Link::Bridge, ifindex: bridge.ifindex });
    }
    match &observed.bridge {
        None => ops.extend([Op::CreateBridge { mtu }, Op::SetUp(Link::Bridge)]),
        Some(bridge) if !bridge.up => ops.push(Op::SetUp(Link::Bridge)),
        Some(_) => {}
    }
    match device {
        None => {
            ops.extend([Op::CreateDevice { port: desired.port, mtu }, Op::FinishDevice]);
        }
        Some(device) => {
            if !device.finished {
                ops.push(Op::FinishDevice);
            }
            let bridge = observed.bridge.as_ref().map(|bridge| bridge.ifindex);
            if device.master.is_none() || device.master != bridge {
                ops.push(Op::Enslave);
            }
            if device.mtu != u32::from(mtu) {
                ops.push(Op::SetMtu { link: Link::Device, mtu });
            }
        }
    }
    // Behind the device's: the kernel lowers a bridge's MTU to that of its smallest port until
    // somebody has set it.
    if observed.bridge.as_ref().is_some_and(|bridge| bridge.mtu != u32::from(mtu)) {
        ops.push(Op::SetMtu { link: Link::Bridge, mtu });
    }
}

/// Plans what a new device needs, settings first (a program without them drops every frame), and
/// the program at the bridge.
fn plan_programs(
    desired: &DesiredState,
    observed: &ObservedState,
    device: Option<&ObservedDevice>,
    ops: &mut Vec<Op>,
) {
    if device.is_none() {
        ops.push(Op::WriteSettings(desired.settings));
        ops.extend([Op::Attach(Hook::DeviceIngress), Op::Attach(Hook::DeviceEgress)]);
    }
    if observed.bridge.is_none() || !observed.hooks.contains(&Hook::BridgeEgress) {
        ops.push(Op::Attach(Hook::BridgeEgress));
    }
}

/// New slots before the addresses that lead to them. The slots that stay behind the addresses: the
/// generation of one whose former address another has is raised only when nothing that comes from
/// there is learnt behind it any more.
fn plan_maps(desired: &DesiredState, observed: &ObservedState, ops: &mut Vec<Op>) {
    let put = |(index, entry): (&PeerIndex, &PeerEntry)| Op::PutPeer(*index, *entry);
    let (changed, new): (Vec<_>, Vec<_>) = desired
        .peers
        .iter()
        .filter(|(index, entry)| observed.peers.get(index) != Some(entry))
        .partition(|(index, _)| observed.peers.contains_key(index));
    ops.extend(new.into_iter().map(put));
    for (vtep, index) in &desired.vteps {
        if observed.vteps.get(vtep) != Some(index) {
            ops.push(Op::PutVtep(*vtep, *index));
        }
    }
    ops.extend(changed.into_iter().map(put));
    for (position, chunk) in &desired.flood {
        if observed.flood.get(position) != Some(chunk) {
            ops.push(Op::PutFlood(*position, *chunk));
        }
    }
}

/// The flood list from its end, so that it never has a gap; then the slots, whose removal voids
/// what was learnt; then the addresses.
fn plan_removals(desired: &DesiredState, observed: &ObservedState, ops: &mut Vec<Op>) {
    for position in observed.flood.keys().rev() {
        if !desired.flood.contains_key(position) {
            ops.push(Op::DeleteFlood(*position));
        }
    }
    for index in observed.peers.keys() {
        if !desired.peers.contains_key(index) {
            ops.push(Op::DeletePeer(*index));
        }
    }
    for vtep in observed.vteps.keys() {
        if !desired.vteps.contains_key(vtep) {
            ops.push(Op::DeleteVtep(*vtep));
        }
    }
}
