//! The values of flags, variables and configuration keys: each is parsed once, in one way, and its
//! error says what was expected.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use marengo_common::Vni;
use marengo_core::settings::{IfName, MIN_MTU};

use crate::kernel::AttachMode;

/// A member to join by.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Seed {
    /// An address.
    Address(SocketAddr),
    /// A name, looked up anew with each try, and a port.
    Name(String, u16),
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let wrong = || format!("{text:?} is no seed: expected ip:port, [ip6]:port or name:port");
        let (name, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_err| wrong())?;
        let named = !name.is_empty()
            && name.len() <= 253
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        if named && port != 0 { Ok(Self::Name(name.to_owned(), port)) } else { Err(wrong()) }
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// An address with or without a port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct AddressAndPort {
    /// The address.
    pub ip: IpAddr,
    /// The port, if one was given.
    pub port: Option<u16>,
}

impl FromStr for AddressAndPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(Self { ip, port: None });
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => {
                Ok(Self { ip: address.ip(), port: Some(address.port()) })
            }
            _ => Err(format!("{text:?} is no address: expected ip, ip:port or [ip6]:port")),
        }
    }
}

/// What others send to: an address, or whatever address an interface has, with or without a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Advertise {
    /// This address.
    Address(AddressAndPort),
    /// The address of an interface, followed when it changes.
    Interface(IfName, Option<u16>),
}

impl Advertise {
    /// The port, if one was given.
    pub(crate) const fn port(&self) -> Option<u16> {
        match self {
            Self::Address(address) => address.port,
            Self::Interface(_, port) => *port,
        }
    }
}

impl FromStr for Advertise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let wrong = || {
            format!(
                "{text:?} is neither an address nor an interface: expected ip, ip:port, [ip6]:port, \
                 name or name:port"
            )
        };
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, Some(port.parse().map_err(|_err| wrong())?)),
            None => (text, None),
        };
        // What looks like an address is a wrong one, not an interface of such a name.
        let like_address = name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if like_address || port == Some(0) {
            return Err(wrong());
        }
        Ok(Self::Interface(IfName::new(name).map_err(|_err| wrong())?, port))
    }
}

/// A duration that is not zero.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Interval(pub Duration);

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no duration: expected a number and a unit, as in 3s or 500ms");
        let duration = humantime::parse_duration(text).map_err(|_err| wrong())?;
        let bounds = Duration::from_millis(100)..=Duration::from_hours(1);
        if bounds.contains(&duration) {
            Ok(Self(duration))
        } else {
            Err(format!("{text:?} is out of bounds: expected 100ms to 1h"))
        }
    }
}

/// An MTU that IPv6 can live with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Mtu(pub u16);

impl FromStr for Mtu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mtu = text.parse().ok().filter(|mtu| (MIN_MTU..=65_485).contains(mtu));
        mtu.map(Self)
            .ok_or_else(|| format!("{text:?} is no MTU: expected a number from {MIN_MTU} to 65485"))
    }
}

/// A VXLAN network identifier.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct VniArg(pub Vni);

impl FromStr for VniArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id: u32 = text.parse().map_err(|_err| {
            format!("{text:?} is no VNI: expected a number from 1 to {}", Vni::MAX)
        })?;
        Vni::new(id).map(Self).map_err(|error| error.to_string())
    }
}

/// The path of a Unix socket, with or without `unix://`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct SocketPath(PathBuf);

impl SocketPath {
    /// The path.
    pub(crate) fn as_path(&self) -> &Path {
        &self.0
    }
}

impl Default for SocketPath {
    fn default() -> Self {
        Self(PathBuf::from("/var/run/marengo.sock"))
    }
}

impl FromStr for SocketPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        // `sun_path` is 108 bytes with its final zero (unix(7)).
        if path.starts_with('/') && path.len() < 108 {
            Ok(Self(PathBuf::from(path)))
        } else {
            Err(format!(
                "{text:?} is no socket: expected unix:///path or /path, of 107 bytes at most"
            ))
        }
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is no log format: expected text or json")),
        }
    }
}

/// What becomes of the data plane when the daemon is told to stop.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum OnExit {
    /// Device, programs and maps go; the others are told.
    #[default]
    Remove,
    /// Everything stays as it is and forwards on.
    Keep,
}

impl FromStr for OnExit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "remove" => Ok(Self::Remove),
            "keep" => Ok(Self::Keep),
            _ => Err(format!("{text:?} is nothing to do on exit: expected remove or keep")),
        }
    }
}

impl fmt::Display for OnExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Remove => "remove",
            Self::Keep => "keep",
        })
    }
}

/// Parses the way in which programs are attached.
pub(crate) fn parse_attach(text: &str) -> Result<AttachMode, String> {
    match text {
        "auto" => Ok(AttachMode::Auto),
        "tcx" => Ok(AttachMode::Tcx),
        "clsact" => Ok(AttachMode::Clsact),
        _ => Err(format!("{text:?} is no way to attach: expected auto, tcx or clsact")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_addresses_or_names_with_a_port() {
        assert_eq!("10.0.0.1:7946".parse(), Ok(Seed::Address(([10, 0, 0, 1], 7946).into())));
        assert!(matches!("[2001:db8::1]:7946".parse(), Ok(Seed::Address(SocketAddr::V6(_)))));
        assert_eq!("node-1.lan:7946".parse(), Ok(Seed::Name("node-1.lan".to_owned(), 7946)));
        for wrong in ["", "10.0.0.1", "node-1", "node 1:7946", ":7946", "a:0", "a:70000", "::1:x"] {
            assert!(wrong.parse::<Seed>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_come_with_or_without_a_port() {
        let parse = |text: &str| text.parse::<AddressAndPort>().map(|a| (a.ip.to_string(), a.port));

        assert_eq!(parse("0.0.0.0"), Ok(("0.0.0.0".to_owned(), None)));
        assert_eq!(parse("10.0.0.1:1"), Ok(("10.0.0.1".to_owned(), Some(1))));
        assert_eq!(parse("::1"), Ok(("::1".to_owned(), None)));
        assert_eq!(parse("[::1]"), Ok(("::1".to_owned(), None)));
        assert_eq!(parse("[::1]:7"), Ok(("::1".to_owned(), Some(7))));
        assert!(parse("10.0.0").is_err() && parse("10.0.0.1:0").is_err() && parse("").is_err());
    }

    #[test]
    fn an_advertised_address_may_be_an_interfaces() {
        let name = |text: &str| IfName::new(text).unwrap();
        assert_eq!("eth0".parse(), Ok(Advertise::Interface(name("eth0"), None)));
        assert_eq!("eth0.5:70".parse(), Ok(Advertise::Interface(name("eth0.5"), Some(70))));
        for text in ["10.0.0.1", "10.0.0.1:70", "::1", "[::1]:70"] {
            assert!(matches!(text.parse(), Ok(Advertise::Address(_))), "{text}");
        }
        for wrong in ["", "10.0.0", "10.0.0.1:0", "10.0.0.256", "eth0:", "eth0:0", "eth 0", "::g"] {
            assert!(wrong.parse::<Advertise>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_have_a_unit_and_bounds() {
        assert_eq!("500ms".parse(), Ok(Interval(Duration::from_millis(500))));
        for wrong in ["3", "", "-1s", "0s", "2h", "soon"] {
            assert!(wrong.parse::<Interval>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sockets_are_absolute_paths() {
        let parsed: SocketPath = "unix:///run/x.sock".parse().unwrap();

        assert_eq!(parsed.to_string(), "unix:///run/x.sock");
        assert_eq!("/run/x.sock".parse(), Ok(parsed));
        assert!("x.sock".parse::<SocketPath>().is_err());
        assert!(format!("/{}", "x".repeat(120)).parse::<SocketPath>().is_err());
    }
}
