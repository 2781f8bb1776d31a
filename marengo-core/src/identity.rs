//! What a node says about itself: its name, its addresses, which start of it this is, and whose
//! data plane it has.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU64,
    str::FromStr,
};

use rand::{Rng, RngExt as _};
use thiserror::Error;

/// Why a name was refused.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum NameError {
    /// The name has no characters.
    #[error("a name must not be empty")]
    Empty,
    /// The name does not fit.
    #[error("a name of {len} bytes is too long: at most {max} are allowed")]
    TooLong {
        /// Length of the refused name in bytes.
        len: usize,
        /// The most bytes this kind of name may have.
        max: usize,
    },
    /// The name holds something else than printable ASCII, or a space.
    #[error("a name is printable ASCII without spaces; byte {position} is not")]
    BadCharacter {
        /// Offset of the first offending byte.
        position: usize,
    },
}

/// Text of 1 to `N` printable ASCII bytes, stored inline so that reading one from the network
/// never allocates.
// The bytes after `len` are zero, so the derived order is that of the text.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct ShortText<const N: usize> {
    bytes: [u8; N],
    len: u8,
}

impl<const N: usize> ShortText<N> {
    fn parse(text: &[u8]) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let len = text.len();
        let too_long = NameError::TooLong { len, max: N };
        let mut bytes = [0; N];
        bytes.get_mut(..len).ok_or_else(|| too_long.clone())?.copy_from_slice(text);
        if let Some(position) = text.iter().position(|byte| !byte.is_ascii_graphic()) {
            return Err(NameError::BadCharacter { position });
        }
        let len = u8::try_from(len).ok().ok_or(too_long)?;
        Ok(Self { bytes, len })
    }

    fn as_str(&self) -> &str {
        self.bytes
            .get(..usize::from(self.len))
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .unwrap_or_default()
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(ShortText<$max>);

        impl $name {
            /// The most bytes a name may have.
            pub const MAX_LEN: usize = $max;

            /// Checks a name.
            pub fn new(name: &str) -> Result<Self, NameError> {
                Self::from_bytes(name.as_bytes())
            }

            /// Checks a name as it comes from the network.
            pub fn from_bytes(name: &[u8]) -> Result<Self, NameError> {
                ShortText::parse(name).map(Self)
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }
    };
}

name! {
    /// A node's name: 1 to 63 bytes of printable ASCII without spaces.
    NodeName, 63
}

name! {
    /// A cluster's name: 1 to 32 bytes of printable ASCII without spaces.
    ///
    /// It stands in every datagram, so that two clusters on one network never mix.
    ClusterName, 32
}

name! {
    /// The software version a node tells to others: 1 to 32 bytes of printable ASCII.
    Version, 32
}

impl Version {
    /// Makes a version out of any text: what does not fit is cut off or replaced by `?`.
    pub fn lossy(text: &str) -> Self {
        let mut bytes: Vec<u8> = text
            .bytes()
            .take(Self::MAX_LEN)
            .map(|byte| if byte.is_ascii_graphic() { byte } else { b'?' })
            .collect();
        if bytes.is_empty() {
            bytes.push(b'?');
        }
        Self::from_bytes(&bytes).unwrap_or(Self(ShortText { bytes: [b'?'; 32], len: 1 }))
    }
}

/// Which start of a node this is: a number that only rises.
///
/// It begins as the milliseconds since 1970 at the start of the process, and lets a restarted
/// node win over what others remember of its past self. When others remember a higher one (the
/// clock was set back), the node raises its own above it, so the number is not a time.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Generation(pub u64);

impl Generation {
    /// The next higher one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Which data plane a node has: a random number, made with the maps and kept as long as they live.
///
/// A daemon that takes the maps over takes this over as well, whatever becomes of the node's name
/// and addresses. Other maps, be it on the same host under the same name, are another data plane:
/// what was learnt of the former one is void.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DataPlaneId(NonZeroU64);

impl DataPlaneId {
    /// The data plane of this number; zero is none.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// A new one, unlike any other.
    pub fn random(rng: &mut impl Rng) -> Self {
        Self(NonZeroU64::new(rng.random()).unwrap_or(NonZeroU64::MIN))
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for DataPlaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Why an identity was refused.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum IdentityError {
    /// The gossip address or the listen address is not one that others could send to.
    #[error("{0} is not an address that others can reach")]
    Address(SocketAddr),
    /// The VTEP is unspecified, multicast or broadcast.
    #[error("{0} is not usable as a VTEP")]
    Vtep(IpAddr),
}

/// A member's identity: what the whole cluster knows about it.
///
/// `addr` is the key: two identities with one `addr` are the same member at different starts, and
/// the one with the higher generation wins. A change of any field needs a higher generation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// The node's name, for people. Two live nodes with one name are a reported conflict.
    pub name: NodeName,
    /// The gossip address that others send to.
    pub addr: SocketAddr,
    /// The address of the node's tunnel endpoint in the underlay.
    pub vtep: IpAddr,
    /// Where the node answers HTTP, and with it the full exchange of the membership.
    pub listen: SocketAddr,
    /// Which start of the node this is.
    pub generation: Generation,
    /// Which data plane the node has. Of two identities with one data plane the one with the
    /// higher generation stands: the node has another address, and the other one is superseded.
    pub data_plane: DataPlaneId,
    /// Reserved for the node's public key; all zero means that it has none.
    pub public_key: [u8; 32],
}

impl Identity {
    /// Makes an identity without a public key, in canonical form.
    pub fn new(
        name: NodeName,
        addr: SocketAddr,
        vtep: IpAddr,
        listen: SocketAddr,
        generation: Generation,
        data_plane: DataPlaneId,
    ) -> Result<Self, IdentityError> {
        let public_key = [0; 32];
        Self { name, addr, vtep, listen, generation, data_plane, public_key }.into_checked()
    }

    /// Brings the addresses into canonical form and refuses those that nobody can send to.
    ///
    /// An IPv4 address inside IPv6 becomes IPv4, and the scope and flow of an IPv6 address are
    /// dropped, so that equal addresses compare equal.
    pub fn into_checked(self) -> Result<Self, IdentityError> {
        let (addr, listen) = (canonical(self.addr), canonical(self.listen));
        let vtep = self.vtep.to_canonical();
        for reached in [addr, listen] {
            if reached.port() == 0 || !is_unicast(reached.ip()) {
                return Err(IdentityError::Address(reached));
            }
        }
        if !is_unicast(vtep) {
            return Err(IdentityError::Vtep(vtep));
        }
        Ok(Self { addr, vtep, listen, ..self })
    }

    /// The same identity at another generation.
    #[must_use]
    pub fn with_generation(&self, generation: Generation) -> Self {
        Self { generation, ..self.clone() }
    }

    /// What decides between two identities with one address; the greater wins.
    fn rank(&self) -> (Generation, NodeName, IpAddr, SocketAddr, DataPlaneId, [u8; 32]) {
        (self.generation, self.name, self.vtep, self.listen, self.data_plane, self.public_key)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, vtep {})", self.name, self.addr, self.vtep)
    }
}

impl foca::Identity for Identity {
    type Addr = SocketAddr;

    fn renew(&self) -> Option<Self> {
        Some(self.with_generation(self.generation.next()))
    }

    fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.rank() > adversary.rank()
    }
}

/// The one form of a socket address in which equal addresses compare equal.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn is_unicast(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(ip.is_unspecified() || ip.is_multicast() || broadcast)
}

#[cfg(test)]
mod tests {
    use foca::Identity as _;

    use super::*;

    fn identity(name: &str, generation: u64) -> Identity {
        Identity::new(
            NodeName::new(name).unwrap(),
            "10.0.0.1:7946".parse().unwrap(),
            "10.0.0.1".parse().unwrap(),
            "10.0.0.1:8080".parse().unwrap(),
            Generation(generation),
            DataPlaneId::new(1).unwrap(),
        )
        .unwrap()
    }

    #[test]
    fn names_are_checked() {
        assert_eq!(NodeName::new("").unwrap_err(), NameError::Empty);
        assert_eq!(
            NodeName::new(&"n".repeat(64)).unwrap_err(),
            NameError::TooLong { len: 64, max: 63 }
        );
        assert_eq!(NodeName::new("a b").unwrap_err(), NameError::BadCharacter { position: 1 });
        assert_eq!(NodeName::new("\u{e4}").unwrap_err(), NameError::BadCharacter { position: 0 });
        assert_eq!(NodeName::new(&"n".repeat(63)).unwrap().as_str(), "n".repeat(63));
    }

    #[test]
    fn names_sort_as_their_text_does() {
        let mut names = ["b", "a", "aa", "B"].map(|name| NodeName::new(name).unwrap());

        names.sort();

        assert_eq!(names.map(|name| name.to_string()), ["B", "a", "aa", "b"]);
    }

    #[test]
    fn any_text_becomes_a_version() {
        assert_eq!(Version::lossy("").as_str(), "?");
        assert_eq!(Version::lossy("0.1.0 (abc)").as_str(), "0.1.0?(abc)");
        assert_eq!(Version::lossy(&"9".repeat(40)).as_str(), "9".repeat(32));
    }

    #[test]
    fn the_later_start_wins_an_address() {
        let (old, new) = (identity("a", 1), identity("a", 2));

        assert!(new.win_addr_conflict(&old));
        assert!(!old.win_addr_conflict(&new));
    }

    #[test]
    fn a_tie_has_exactly_one_winner() {
        let (a, b) = (identity("a", 1), identity("b", 1));

        assert_ne!(a.win_addr_conflict(&b), b.win_addr_conflict(&a));
    }

    #[test]
    fn a_renewed_identity_wins_over_the_old_one() {
        let old = identity("a", 7);

        let new = old.renew().unwrap();

        assert!(new.win_addr_conflict(&old));
    }

    #[test]
    fn addresses_nobody_can_send_to_are_refused() {
        let good = identity("a", 1);
        for addr in ["0.0.0.0:7946", "10.0.0.1:0", "224.0.0.1:7946", "255.255.255.255:1", "[::]:1"]
        {
            let bad = Identity { addr: addr.parse().unwrap(), ..good.clone() };
            assert!(bad.into_checked().is_err(), "{addr}");
        }
        let bad = Identity { vtep: "::".parse().unwrap(), ..good };
        assert!(bad.into_checked().is_err());
    }

    #[test]
    fn an_ipv4_address_inside_ipv6_is_that_ipv4_address() {
        let mapped = Identity {
            addr: "[::ffff:10.0.0.1]:7946".parse().unwrap(),
            vtep: "::ffff:10.0.0.1".parse().unwrap(),
            ..identity("a", 1)
        };

        assert_eq!(mapped.into_checked().unwrap(), identity("a", 1));
    }
}
