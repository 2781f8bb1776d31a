//! The whole vocabulary of kernel changes.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use marengo_common::{FloodChunk, PeerEntry, PeerIndex, Settings, VtepKey};

/// One of the two links that Marengo works with.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Link {
    /// The bridge, which the users own too.
    Bridge,
    /// The VXLAN device.
    Device,
}

/// A place where a program of ours runs.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Hook {
    /// TC ingress of the device: the lock on the door.
    DeviceIngress,
    /// TC egress of the device.
    DeviceEgress,
    /// TC egress of the bridge.
    BridgeEgress,
}

impl Hook {
    /// Every hook, the lock first.
    pub const ALL: [Self; 3] = [Self::DeviceIngress, Self::DeviceEgress, Self::BridgeEgress];

    /// The link at which the hook is.
    pub const fn link(self) -> Link {
        match self {
            Self::DeviceIngress | Self::DeviceEgress => Link::Device,
            Self::BridgeEgress => Link::Bridge,
        }
    }

    /// The name of the hook's pin.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DeviceIngress => "device_ingress",
            Self::DeviceEgress => "device_egress",
            Self::BridgeEgress => "bridge_egress",
        }
    }
}

/// One change of the kernel's state. Applying one twice is the same as applying it once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Op {
    /// Makes the bridge, down.
    CreateBridge {
        /// Bytes.
        mtu: u16,
    },
    /// Makes the device, down, in collect-metadata mode, as a port of the bridge.
    CreateDevice {
        /// UDP port.
        port: u16,
        /// Bytes.
        mtu: u16,
    },
    /// Sets what cannot be part of the message that makes the device: what people look at, and that
    /// it has no address of its own.
    FinishDevice,
    /// Gives a link its name back.
    Rename {
        /// Which link.
        link: Link,
        /// The kernel's number for it.
        ifindex: u32,
    },
    /// Removes the device and all that hangs on it.
    DeleteDevice,
    /// Sets a link's MTU.
    SetMtu {
        /// Which link.
        link: Link,
        /// Bytes.
        mtu: u16,
    },
    /// Makes the device a port of the bridge.
    Enslave,
    /// Brings a link up.
    SetUp(Link),
    /// Takes the device down: nothing comes in and nothing goes out.
    SetDeviceDown,
    /// Writes the programs' settings, with the device's index as it is then.
    WriteSettings(Settings),
    /// Puts a program at a hook.
    Attach(Hook),
    /// Takes the program away from a hook.
    Detach(Hook),
    /// Writes a slot.
    PutPeer(PeerIndex, PeerEntry),
    /// Clears a slot: every MAC entry that points to it is void from here on.
    DeletePeer(PeerIndex),
    /// Says which slot a tunnel address belongs to.
    PutVtep(VtepKey, PeerIndex),
    /// Forgets a tunnel address: nothing from there is accepted from here on.
    DeleteVtep(VtepKey),
    /// Writes a part of the flood list.
    PutFlood(u32, FloodChunk),
    /// Removes the last part of the flood list.
    DeleteFlood(u32),
    /// Removes programs, maps and pins.
    RemovePins,
}

impl Op {
    /// True for a write to a map: what costs no netlink message and no attachment.
    pub const fn is_map_write(&self) -> bool {
        match self {
            Self::WriteSettings(_)
            | Self::PutPeer(..)
            | Self::DeletePeer(_)
            | Self::PutVtep(..)
            | Self::DeleteVtep(_)
            | Self::PutFlood(..)
            | Self::DeleteFlood(_) => true,
            Self::CreateBridge { .. }
            | Self::CreateDevice { .. }
            | Self::FinishDevice
            | Self::Rename { .. }
            | Self::DeleteDevice
            | Self::SetMtu { .. }
            | Self::Enslave
            | Self::SetUp(_)
            | Self::SetDeviceDown
            | Self::Attach(_)
            | Self::Detach(_)
            | Self::RemovePins => false,
        }
    }

    /// The slot that this clears, if it clears one.
    pub const fn deleted_peer(&self) -> Option<PeerIndex> {
        if let Self::DeletePeer(index) = self { Some(*index) } else { None }
    }

    /// True for a write that makes valid what will be learnt behind a slot from now on, and void what
    /// was before. `peers` are the slots in the kernel.
    ///
    /// What comes from an address that leads to the wrong slot is to be void afterwards: such a
    /// write has no place in a round in which an address could not be written.
    pub fn raises_generation(&self, peers: &BTreeMap<PeerIndex, PeerEntry>) -> bool {
        let Self::PutPeer(index, entry) = self else { return false };
        peers.get(index).is_some_and(|before| before.generation != entry.generation)
    }

    /// True for a write after which something is not sent to a peer, or not let in from it, that was
    /// before. `flood` is the flood list in the kernel.
    pub fn takes_out(&self, flood: &BTreeMap<u32, FloodChunk>) -> bool {
        match self {
            Self::DeletePeer(_) | Self::DeleteVtep(_) | Self::DeleteFlood(_) => true,
            Self::PutFlood(position, chunk) => flood.get(position).is_some_and(|before| {
                before.peers.iter().any(|peer| *peer != 0 && !chunk.peers.contains(peer))
            }),
            Self::WriteSettings(_)
            | Self::PutPeer(..)
            | Self::PutVtep(..)
            | Self::CreateBridge { .. }
            | Self::CreateDevice { .. }
            | Self::FinishDevice
            | Self::Rename { .. }
            | Self::DeleteDevice
            | Self::SetMtu { .. }
            | Self::Enslave
            | Self::SetUp(_)
            | Self::SetDeviceDown
            | Self::Attach(_)
            | Self::Detach(_)
            | Self::RemovePins => false,
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bridge => "bridge",
            Self::Device => "device",
        })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::DeviceIngress => "tc ingress of the device",
            Self::DeviceEgress => "tc egress of the device",
            Self::BridgeEgress => "tc egress of the bridge",
        })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateBridge { mtu } => write!(f, "create bridge mtu {mtu}"),
            Self::CreateDevice { port, mtu } => {
                write!(f, "create vxlan device external dstport {port} mtu {mtu}")
            }
            Self::FinishDevice => f.write_str("set device alias and addrgenmode none"),
            Self::Rename { link, ifindex } => write!(f, "give link {ifindex} the {link}'s name"),
            Self::DeleteDevice => f.write_str("delete vxlan device"),
            Self::SetMtu { link, mtu } => write!(f, "set {link} mtu {mtu}"),
            Self::Enslave => f.write_str("set device master bridge"),
            Self::SetUp(link) => write!(f, "set {link} up"),
            Self::SetDeviceDown => f.write_str("set device down"),
            Self::WriteSettings(settings) => {
                write!(f, "write settings vni {} generation {}", settings.vni, settings.generation)
            }
            Self::Attach(hook) => write!(f, "attach program at {hook}"),
            Self::Detach(hook) => write!(f, "detach program from {hook}"),
            Self::PutPeer(index, entry) => write!(
                f,
                "put peer {index} vtep {} generation {}",
                vtep(&entry.vtep),
                entry.generation
            ),
            Self::DeletePeer(index) => write!(f, "delete peer {index}"),
            Self::PutVtep(key, index) => write!(f, "put vtep {} peer {index}", vtep(&key.vtep)),
            Self::DeleteVtep(key) => write!(f, "delete vtep {}", vtep(&key.vtep)),
            Self::PutFlood(position, chunk) => {
                let peers: Vec<String> =
                    chunk.peers.iter().filter(|peer| **peer != 0).map(u32::to_string).collect();
                write!(f, "put flood {position} peers {}", peers.join(","))
            }
            Self::DeleteFlood(position) => write!(f, "delete flood {position}"),
            Self::RemovePins => f.write_str("remove programs, maps and pins"),
        }
    }
}

/// For people: the bytes do not tell the family, but an IPv6 VTEP with twelve zero bytes behind
/// four others is nobody's.
fn vtep(bytes: &[u8; 16]) -> IpAddr {
    match bytes {
        [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] => IpAddr::from([*a, *b, *c, *d]),
        v6 => IpAddr::from(*v6),
    }
}
