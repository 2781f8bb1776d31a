//! What must be so before anything is created: each check names what is wrong and the remedy.

mod holder;
mod lock;
mod socket;

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use caps::{CapSet, Capability};
use marengo_core::settings::IfName;
use socket2::{Domain, Protocol, Socket, Type};

pub(crate) use self::{
    lock::Lock,
    socket::{ControlSocket, SocketFile},
};
use crate::{
    config::{AddressSource, Addresses, ServerConfig},
    failure::{Failure, Kind, OrFailure as _},
    kernel::{self, AddressOwner, Links, Underlay},
    values::Seed,
};

/// What the checks leave open for the daemon to take over, so that nothing can come between the
/// check and the use.
#[derive(Debug)]
pub(crate) struct Ready {
    pub addresses: Addresses,
    pub gossip: UdpSocket,
    pub http: std::net::TcpListener,
    pub control: ControlSocket,
    pub lock: Lock,
}

/// A name that takes longer to look up does not help to choose an address.
const LOOK_UP_WITHIN: Duration = Duration::from_secs(3);

/// Checks everything, from what is cheapest to explain on.
pub(crate) async fn check(config: &ServerConfig) -> Result<Ready, Failure> {
    capabilities()?;
    kernel_version()?;
    let addresses = addresses(config).await?;
    let mut lock = Lock::take(&config.bridge)?;
    kernel::bpffs::check(&config.pin_dir).or_failure(Kind::Config)?;
    lock.hold_pin_dir(&config.pin_dir)?;
    kernel::bpf::refuse_foreign(&config.pin_dir).or_failure(Kind::Foreign)?;
    let has_device = links(config).await?;
    let control = socket::bind(&config.global.socket)?;
    let gossip = gossip_socket(addresses.bind)?;
    let http = http_socket(addresses.listen)?;
    if !has_device {
        vxlan_port(config).await?;
    }
    Ok(Ready { addresses, gossip, http, control, lock })
}

/// What `marengo remove` needs: the right to do it, and that no daemon runs on the bridge.
pub(crate) fn lock_for_removal(bridge: &IfName) -> Result<Lock, Failure> {
    capabilities()?;
    Lock::take(bridge)
}

/// Loading TC programs and attaching them needs the first two (Linux 5.8), and the programs' bounded
/// loops and pointers are judged as those of a privileged user only with the third.
fn capabilities() -> Result<(), Failure> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    if has(Capability::CAP_SYS_ADMIN) && has(Capability::CAP_NET_ADMIN) {
        return Ok(());
    }
    let needed = [Capability::CAP_NET_ADMIN, Capability::CAP_BPF, Capability::CAP_PERFMON];
    let missing: Vec<String> =
        needed.into_iter().filter(|one| !has(*one)).map(|one| one.to_string()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!(
        "missing capability {}: run marengo as root, or grant it (AmbientCapabilities= in the unit)",
        missing.join(", ")
    );
    Err(Failure::new(Kind::Permission, message))
}

/// The tunnel key's local address is the youngest thing that there is no substitute for.
fn kernel_version() -> Result<(), Failure> {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Ok(());
    };
    if (major, minor) >= (5, 19) {
        return Ok(());
    }
    let message = format!(
        "kernel {release} is too old: the outer source address of a tunnel key needs Linux 5.19 or \
         later (commit 26101f5ab6bd)"
    );
    Err(Failure::new(Kind::Kernel, message))
}

async fn addresses(config: &ServerConfig) -> Result<Addresses, Failure> {
    let underlay = Underlay::open().or_failure(Kind::Failed)?;
    let found = match config.address_source() {
        AddressSource::Fixed(_) => IpAddr::from([0; 4]),
        AddressSource::Interface(name) => {
            let found = underlay.interface_address(&name, None).await.or_failure(Kind::Failed)?;
            found.ok_or_else(|| {
                let message = format!(
                    "--advertise-addr {name}: there is no such interface, or it has no address that \
                     others could reach"
                );
                Failure::new(Kind::Address, message)
            })?
        }
        AddressSource::Route => {
            let seeds = seed_addresses(&config.join).await;
            let found = underlay.default_address(&seeds, None).await.or_failure(Kind::Failed)?;
            found.ok_or_else(|| {
                let message = "found no address of this host that others could reach; name one with \
                               --advertise-addr";
                Failure::new(Kind::Address, message)
            })?
        }
    };
    let addresses = config.addresses(found);
    let families = [addresses.bind.is_ipv4(), addresses.advertise.is_ipv4()];
    if families[0] != families[1] && !addresses.bind.ip().is_unspecified() {
        let message = format!(
            "--bind-addr {} and --advertise-addr {} are of different families",
            addresses.bind.ip(),
            addresses.advertise.ip()
        );
        return Err(Failure::new(Kind::Address, message));
    }
    for (flag, address) in [
        // First: without --advertise-addr, the advertised address is this one.
        ("--bind-addr", addresses.bind),
        ("--advertise-addr", addresses.advertise),
        ("--listen-addr", addresses.listen),
    ] {
        is_ours(&underlay, flag, address.ip(), flag == "--advertise-addr").await?;
    }
    Ok(addresses)
}

/// The seeds' addresses, as far as they can be found out quickly.
async fn seed_addresses(seeds: &[Seed]) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for seed in seeds {
        match seed {
            Seed::Address(address) => addresses.push(*address),
            Seed::Name(name, port) => {
                let lookup = tokio::net::lookup_host((name.as_str(), *port));
                if let Ok(Ok(found)) = tokio::time::timeout(LOOK_UP_WITHIN, lookup).await {
                    addresses.extend(found);
                }
            }
        }
    }
    addresses
}

async fn is_ours(
    underlay: &Underlay,
    flag: &str,
    ip: IpAddr,
    must_be_reachable: bool,
) -> Result<(), Failure> {
    if ip.is_unspecified() && must_be_reachable {
        let message = format!("{flag} {ip} is no address that others can send to; name one");
        return Err(Failure::new(Kind::Address, message));
    }
    let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if must_be_reachable && (ip.is_multicast() || ip.is_loopback() || link_local) {
        let message = format!("{flag} {ip} cannot be a tunnel's address; name a routable one");
        return Err(Failure::new(Kind::Address, message));
    }
    if flag == "--listen-addr" && ip.is_loopback() {
        tracing::warn!(
            listenAddr = %ip,
            "no other member can reach this address: what gossip misses is not made up for"
        );
    }
    if ip.is_unspecified() {
        return Ok(());
    }
    match underlay.owner(ip).await.or_failure(Kind::Failed)? {
        AddressOwner::ThisHost => Ok(()),
        AddressOwner::Other => {
            let message = format!("{flag} {ip} is not an address of this host (see `ip address`)");
            Err(Failure::new(Kind::Address, message))
        }
    }
}

/// Refuses links with our names that are not ours. Says whether our device is there already.
async fn links(config: &ServerConfig) -> Result<bool, Failure> {
    let links = Links::open().or_failure(Kind::Failed)?;
    let (bridge, device) = (&config.bridge, &config.device);
    let observed = links.observe_bridge(bridge).await.or_failure(Kind::Failed)?;
    if observed.is_some_and(|observed| !observed.is_bridge) {
        let message = format!(
            "the link {bridge} exists and is no bridge; remove it, or choose another name with \
             --bridge"
        );
        return Err(Failure::new(Kind::Foreign, message));
    }
    let observed = links.find_device(device, &config.pin_dir).await.or_failure(Kind::Failed)?;
    if observed.as_ref().is_some_and(|observed| !observed.ours) {
        let message = format!(
            "the link {device} exists and was not made by Marengo; remove it (ip link del \
             {device}), or choose another bridge with --bridge"
        );
        return Err(Failure::new(Kind::Foreign, message));
    }
    Ok(observed.is_some_and(|observed| observed.port == config.vxlan_port))
}

fn gossip_socket(bind: SocketAddr) -> Result<UdpSocket, Failure> {
    UdpSocket::bind(bind).map_err(|error| cannot_bind("UDP", bind, "--bind-addr", &error))
}

/// Listens on an address of this host.
pub(crate) fn http_socket(listen: SocketAddr) -> Result<std::net::TcpListener, Failure> {
    let bind = || -> io::Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::for_address(listen), Type::STREAM, Some(Protocol::TCP))?;
        // A predecessor's closed connections do not keep the port.
        socket.set_reuse_address(true)?;
        socket.bind(&listen.into())?;
        socket.listen(128)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    bind().map_err(|error| cannot_bind("TCP", listen, "--listen-addr", &error))
}

/// The kernel's VXLAN sockets show as a port in use, and other VXLAN devices may hold it.
async fn vxlan_port(config: &ServerConfig) -> Result<(), Failure> {
    let port = config.vxlan_port;
    let links = Links::open().or_failure(Kind::Failed)?;
    let mut devices = links.vxlan_devices_on(port).await.or_failure(Kind::Failed)?;
    devices.retain(|device| device != config.device.as_str());
    if !devices.is_empty() {
        let message = format!(
            "UDP port {port} is in use by the VXLAN device {}; remove it, or choose another port \
             on all nodes with --vxlan-port",
            devices.join(", ")
        );
        return Err(Failure::new(Kind::InUse, message));
    }
    for any in [IpAddr::from([0; 4]), IpAddr::from([0_u8; 16])] {
        let address = SocketAddr::new(any, port);
        match UdpSocket::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(cannot_bind("UDP", address, "--vxlan-port", &error));
            }
            // No IPv6 on this host, say: then nobody holds the port there.
            _ => {}
        }
    }
    Ok(())
}

fn cannot_bind(protocol: &str, address: SocketAddr, flag: &str, error: &io::Error) -> Failure {
    if error.kind() != io::ErrorKind::AddrInUse {
        let message = format!("failed to bind {protocol} {address} ({flag}): {error}");
        return Failure::new(Kind::Address, message);
    }
    let who = holder::of_port(protocol, address.port())
        .map_or_else(|| "somebody".to_owned(), |who| who.to_string());
    let message = format!(
        "{protocol} port {} is in use by {who}; stop it, or choose another with {flag}",
        address.port()
    );
    Failure::new(Kind::InUse, message)
}
