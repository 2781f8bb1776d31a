//! What should be in the kernel and what is: plain data that compares.

use std::collections::{BTreeMap, BTreeSet};

use marengo_common::{FloodChunk, PeerEntry, PeerIndex, Settings, VtepKey};

use crate::op::Hook;

/// Everything that Marengo wants in the kernel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DesiredState {
    /// MTU of the bridge and of the device. Bytes.
    pub mtu: u16,
    /// UDP port of the device.
    pub port: u16,
    /// Settings of the programs; the interface index in it is not looked at.
    pub settings: Settings,
    /// Slots by index.
    pub peers: BTreeMap<PeerIndex, PeerEntry>,
    /// Slots by tunnel address.
    pub vteps: BTreeMap<VtepKey, PeerIndex>,
    /// The flood list by position.
    pub flood: BTreeMap<u32, FloodChunk>,
}

/// Everything of Marengo's that is in the kernel.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ObservedState {
    /// The link with the bridge's name.
    pub bridge: Option<ObservedBridge>,
    /// The link with the device's name.
    pub device: Option<ObservedDevice>,
    /// Where a program of ours runs.
    pub hooks: BTreeSet<Hook>,
    /// The value in the settings map; `None` if nobody has written it.
    pub settings: Option<Settings>,
    /// The slots.
    pub peers: BTreeMap<PeerIndex, PeerEntry>,
    /// The tunnel addresses.
    pub vteps: BTreeMap<VtepKey, PeerIndex>,
    /// The flood list.
    pub flood: BTreeMap<u32, FloodChunk>,
    /// The smallest MTU among the underlay devices on the way to the peers. Bytes.
    pub underlay_mtu: Option<u32>,
}

/// A link with the bridge's name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ObservedBridge {
    /// The kernel's number for it.
    pub ifindex: u32,
    /// Whether it has the bridge's name: another hand may have given it another one.
    pub named: bool,
    /// Whether it is a bridge at all.
    pub is_bridge: bool,
    /// Administratively up.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
}

/// A link with the device's name.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct ObservedDevice {
    /// The kernel's number for it.
    pub ifindex: u32,
    /// Whether it has the device's name: another hand may have given it another one.
    pub named: bool,
    /// Carries our mark: a VXLAN device with our alias.
    pub ours: bool,
    /// Made the way we make it: collect-metadata, without learning.
    pub collects_metadata: bool,
    /// Has what cannot be part of the message that makes it: an alias, and no address of its own.
    pub finished: bool,
    /// UDP port.
    pub port: u16,
    /// Interface index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
}
