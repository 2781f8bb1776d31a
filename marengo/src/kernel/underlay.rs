//! The underlay: which of its devices lead to the peers, and this host's addresses.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use anyhow::Result;
use futures_util::TryStreamExt as _;
use marengo_core::settings::IfName;
use nix::errno::Errno;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
        link::LinkAttribute,
        route::{RouteAttribute, RouteMessage},
    },
};

use super::{answered, errno};

/// Whether an address is this host's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AddressOwner {
    /// One of this host's.
    ThisHost,
    /// Somebody else's, or nobody's.
    Other,
}

/// Routes to the peers, remembered until the kernel reports a change.
#[derive(Debug)]
pub(crate) struct Underlay {
    handle: Handle,
    /// Outgoing device by peer; `None`: no route.
    routes: BTreeMap<IpAddr, Option<u32>>,
}

impl Underlay {
    /// Opens a netlink socket in this thread's network namespace.
    pub(crate) fn open() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle, routes: BTreeMap::new() })
    }

    /// Forgets the routes.
    pub(super) fn forget(&mut self) {
        self.routes.clear();
    }

    /// The smallest MTU among the devices that lead to `peers`, in bytes. Without a peer: of the
    /// device that leads out, else of the one that holds `vtep`. `None` if there is none.
    pub(super) async fn mtu(&mut self, vtep: IpAddr, peers: &[IpAddr]) -> Result<Option<u32>> {
        let mut devices = Vec::new();
        for peer in peers {
            devices.extend(self.device_towards(*peer).await?);
        }
        if devices.is_empty() {
            devices.extend(self.device_towards(somewhere_else(vtep)).await?);
        }
        if devices.is_empty() {
            devices.extend(self.device_of(vtep).await?);
        }
        devices.sort_unstable();
        devices.dedup();
        let mut smallest: Option<u32> = None;
        for device in devices {
            if let Some(mtu) = self.device_mtu(device).await? {
                smallest = Some(smallest.map_or(mtu, |known| known.min(mtu)));
            }
        }
        // A loop-back device says nothing of the way to others.
        Ok(smallest.filter(|mtu| *mtu <= 65_535))
    }

    /// Finds an address of this host that others can send to: the source of the way to `towards`
    /// (a seed), else of the way out, else the first address of global scope. `ipv4` says of which
    /// family, if it matters.
    pub(crate) async fn default_address(
        &self,
        towards: &[SocketAddr],
        ipv4: Option<bool>,
    ) -> Result<Option<IpAddr>> {
        let fits = |ip: IpAddr| ipv4.is_none_or(|ipv4| ip.is_ipv4() == ipv4);
        let out = [SocketAddr::from((somewhere_v4(), 9)), SocketAddr::from((somewhere_v6(), 9))];
        let ways = towards.iter().chain(&out).filter(|target| fits(target.ip()));
        let found = ways.map(|target| source_towards(*target)).find_map(|source| source);
        if found.is_some() {
            return Ok(found);
        }
        let mut addresses = self.addresses().await?;
        addresses.retain(|address| address.is_for_others() && fits(address.ip));
        addresses.sort_by_key(|address| (address.ip.is_ipv6(), address.device));
        Ok(addresses.first().map(|address| address.ip))
    }

    /// Finds the address of an interface that others can send to: its first one, IPv4 before IPv6
    /// unless `ipv4` says of which family.
    pub(crate) async fn interface_address(
        &self,
        name: &IfName,
        ipv4: Option<bool>,
    ) -> Result<Option<IpAddr>> {
        let Ok(device) = nix::net::if_::if_nametoindex(name.as_str()) else { return Ok(None) };
        let mut addresses = self.addresses().await?;
        addresses.retain(|address| {
            address.device == device
                && address.is_for_others()
                && ipv4.is_none_or(|ipv4| address.ip.is_ipv4() == ipv4)
        });
        // Within a family, in the kernel's order: the primary address comes first.
        addresses.sort_by_key(|address| address.ip.is_ipv6());
        Ok(addresses.first().map(|address| address.ip))
    }

    /// Says whether an address is one of this host's.
    pub(crate) async fn owner(&self, address: IpAddr) -> Result<AddressOwner> {
        let ours = self.device_of(address).await?.is_some();
        Ok(if ours { AddressOwner::ThisHost } else { AddressOwner::Other })
    }

    async fn device_towards(&mut self, peer: IpAddr) -> Result<Option<u32>> {
        if let Some(known) = self.routes.get(&peer) {
            return Ok(*known);
        }
        let mut routes = Box::pin(self.handle.route().get(lookup(peer)).execute());
        let device = match answered("route", routes.try_next()).await? {
            Ok(route) => route.and_then(|route| {
                route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(device) => Some(*device),
                    _ => None,
                })
            }),
            // No way there, for now or for good.
            Err(error) if is_unreachable(errno(&error)) => None,
            Err(error) => return Err(error.into()),
        };
        self.routes.insert(peer, device);
        Ok(device)
    }

    /// The device that holds an address; `None`: it is none of this host's.
    pub(crate) async fn device_of(&self, address: IpAddr) -> Result<Option<u32>> {
        let addresses = self.addresses().await?;
        Ok(addresses.iter().find(|held| held.ip == address).map(|held| held.device))
    }

    async fn device_mtu(&self, device: u32) -> Result<Option<u32>> {
        let mut links = Box::pin(self.handle.link().get().match_index(device).execute());
        match answered("link", links.try_next()).await? {
            Ok(link) => Ok(link.and_then(|link| {
                link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::Mtu(mtu) => Some(*mtu),
                    _ => None,
                })
            })),
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn addresses(&self) -> Result<Vec<HostAddress>> {
        let addresses = self.handle.address().get().execute().try_collect::<Vec<_>>();
        let addresses = answered("addresses", addresses).await??;
        Ok(addresses.iter().filter_map(HostAddress::read).collect())
    }
}

/// An address of this host.
#[derive(Clone, Copy, Debug)]
struct HostAddress {
    ip: IpAddr,
    device: u32,
    scope: AddressScope,
    flags: AddressFlags,
}

impl HostAddress {
    fn read(message: &AddressMessage) -> Option<Self> {
        let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
            message.attributes.iter().find_map(wanted)
        };
        // `Local` is this end of a point-to-point link, where `Address` is the other.
        let local = find(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        let address = find(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        let flags = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
        Some(Self {
            ip: local.or(address)?,
            device: message.header.index,
            scope: message.header.scope,
            flags: flags.unwrap_or(AddressFlags::empty()),
        })
    }

    /// Whether others can send to it, today and tomorrow.
    fn is_for_others(&self) -> bool {
        // Not one that may turn out to be taken, that is on its way out, or that is made anew each
        // day (RFC 8981; IPv4 has the same bit for an address beside the first one).
        let passing = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
        let temporary = self.ip.is_ipv6() && self.flags.contains(AddressFlags::Secondary);
        self.scope == AddressScope::Universe
            && !self.ip.is_loopback()
            && !self.flags.intersects(passing)
            && !temporary
    }
}

fn lookup(peer: IpAddr) -> RouteMessage {
    match peer {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build(),
        IpAddr::V6(ip) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, 128).build()
        }
    }
}

fn is_unreachable(errno: Option<Errno>) -> bool {
    matches!(errno, Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL))
}

/// The address that the kernel would send from; nothing is sent.
fn source_towards(target: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(target).ok()?;
    let source = socket.local_addr().ok()?.ip();
    // The way to one of our own addresses tells nothing of how others reach us.
    (!source.is_loopback() && !source.is_unspecified()).then_some(source)
}

/// An address of the same family that is nobody's here, so that its route is the way out.
fn somewhere_else(vtep: IpAddr) -> IpAddr {
    if vtep.is_ipv4() { somewhere_v4().into() } else { somewhere_v6().into() }
}

/// TEST-NET-1 (RFC 5737).
const fn somewhere_v4() -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 1)
}

/// The documentation prefix (RFC 3849).
const fn somewhere_v6() -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)
}
