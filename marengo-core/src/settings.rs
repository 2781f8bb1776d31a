//! What the operator decided about the data plane, checked.

use std::{fmt, net::IpAddr};

use marengo_common::Vni;

use crate::identity::DataPlaneId;

/// Bytes that VXLAN adds over IPv4: inner Ethernet 14, IPv4 20, UDP 8, VXLAN 8.
pub const OVERHEAD_V4: u16 = 50;
/// Bytes that VXLAN adds over IPv6: inner Ethernet 14, IPv6 40, UDP 8, VXLAN 8.
pub const OVERHEAD_V6: u16 = 70;
/// IPv6 wants no less of any link (RFC 8200, section 5).
pub const MIN_MTU: u16 = 1280;

/// A name that the kernel takes for a link (`dev_valid_name`).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct IfName(String);

/// Why a text is no link name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no interface name: it takes 1 to 15 bytes without spaces, '/' or ':'")]
pub struct IfNameError(pub String);

impl IfName {
    /// The most bytes of a name (`IFNAMSIZ` less the final zero).
    pub const MAX_LEN: usize = 15;

    /// Checks a name.
    pub fn new(name: &str) -> Result<Self, IfNameError> {
        let valid = !name.is_empty()
            && name.len() <= Self::MAX_LEN
            && name != "."
            && name != ".."
            && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
        if valid { Ok(Self(name.to_owned())) } else { Err(IfNameError(name.to_owned())) }
    }

    /// The name of the VXLAN device of a bridge: `ol-` and the bridge's name.
    ///
    /// Fails if the bridge's name leaves no room for the three characters.
    pub fn overlay_device(bridge: &Self) -> Result<Self, IfNameError> {
        Self::new(&format!("ol-{bridge}"))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for IfName {
    type Err = IfNameError;

    fn from_str(text: &str) -> Result<Self, IfNameError> {
        Self::new(text)
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The data plane of one mesh on this host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DataPlane {
    /// The bridge, which outlives the daemon.
    pub bridge: IfName,
    /// The VXLAN device, the bridge's port to the underlay.
    pub device: IfName,
    /// The network on the wire.
    pub vni: Vni,
    /// UDP port of VXLAN.
    pub port: u16,
    /// This node's tunnel address.
    pub vtep: IpAddr,
    /// The overlay's MTU in bytes; `None`: from the underlay.
    pub mtu: Option<u16>,
    /// The most peers that are programmed.
    pub max_peers: u32,
    /// Which data plane this is: as old as its maps.
    pub id: DataPlaneId,
}

impl DataPlane {
    /// What the tunnel adds to each frame. Bytes.
    pub const fn overhead(&self) -> u16 {
        if self.vtep.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overlay_device_is_named_after_the_bridge() {
        let device = IfName::overlay_device(&IfName::new("marengo").unwrap()).unwrap();

        assert_eq!(device.as_str(), "ol-marengo");
    }

    #[test]
    fn names_that_the_kernel_refuses_are_refused() {
        for name in ["", ".", "..", "a b", "a/b", "a:b", "sixteen-bytes-xx", "\u{fc}"] {
            assert_eq!(IfName::new(name), Err(IfNameError(name.to_owned())));
        }
        assert!(IfName::overlay_device(&IfName::new("bridge-of-13b").unwrap()).is_err());
    }
}
