//! Addresses and identifiers of the overlay, checked when they are made.

use core::{fmt, net::IpAddr};

/// A VXLAN network identifier: 24 bits (RFC 7348, section 5).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Vni(u32);

/// A number that is no VNI of ours: zero, or more than 24 bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct InvalidVni(pub u32);

impl Vni {
    /// The largest identifier, 2^24 - 1.
    pub const MAX: u32 = (1 << 24) - 1;

    /// Checks that `id` lies in `1..=MAX`.
    ///
    /// Zero is refused: the kernel keeps it for "any VNI" on a collect-metadata device
    /// (`vxlan_vs_find_vni`), so frames that carry it could not be told from foreign ones.
    pub const fn new(id: u32) -> Result<Self, InvalidVni> {
        if id == 0 || id > Self::MAX { Err(InvalidVni(id)) } else { Ok(Self(id)) }
    }

    /// The identifier as a number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for InvalidVni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is no VNI: it must be from 1 to {}", self.0, Vni::MAX)
    }
}

impl core::error::Error for InvalidVni {}

/// An Ethernet address, first byte first on the wire.
#[repr(transparent)]
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// True for broadcast and multicast addresses: the group bit, IEEE 802-2014 section 8.2.2.
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// True for the address that no station may have.
    pub const fn is_zero(self) -> bool {
        matches!(self.0, [0, 0, 0, 0, 0, 0])
    }

    /// Makes a unicast, locally administered address of six arbitrary bytes.
    pub const fn local(mut bytes: [u8; 6]) -> Self {
        bytes[0] = bytes[0] & 0xfc | 0x02;
        Self(bytes)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, byte) in self.0.iter().enumerate() {
            let colon = if position == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A VTEP's address as it lies in a map: four bytes and twelve zeros for IPv4, sixteen for IPv6.
///
/// The two families cannot be confused, because all VTEPs of one mesh are of one family, the
/// family of the node's own ([`crate::Settings::family`]).
pub type VtepBytes = [u8; 16];

/// Lays an address out as [`VtepBytes`].
pub(crate) fn vtep_bytes(address: IpAddr) -> VtepBytes {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Reads [`VtepBytes`] back, given the family: 4 or 6.
pub(crate) fn vtep_address(bytes: VtepBytes, family: u8) -> IpAddr {
    if family == 6 {
        IpAddr::from(bytes)
    } else {
        IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vni_takes_24_bits_and_not_zero() {
        assert_eq!(Vni::new(0), Err(InvalidVni(0)));
        assert_eq!(Vni::new(1).map(Vni::get), Ok(1));
        assert_eq!(Vni::new(Vni::MAX).map(Vni::get), Ok(0xff_ffff));
        assert_eq!(Vni::new(Vni::MAX + 1), Err(InvalidVni(0x100_0000)));
    }

    #[test]
    fn local_mac_is_unicast_and_locally_administered() {
        let mac = MacAddr::local([0xff; 6]);

        assert!(!mac.is_group());
        assert_eq!(mac.0[0] & 2, 2);
    }

    #[test]
    fn vtep_bytes_round_trip() {
        for text in ["192.0.2.7", "2001:db8::7"] {
            let address: IpAddr = text.parse().unwrap();
            let family = if address.is_ipv4() { 4 } else { 6 };
            assert_eq!(vtep_address(vtep_bytes(address), family), address);
        }
    }
}
