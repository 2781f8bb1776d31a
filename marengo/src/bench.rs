//! Hidden commands that measure the real code: `cargo xtask bench` runs them.
//!
//! The members are simulated, everything else is what the daemon runs: the membership, the planner,
//! the programs and the maps, in a pin directory of their own that is gone afterwards. No link is
//! made or touched.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use marengo_common::{MapName, Vni};
use marengo_core::{
    control::Without,
    desired::desired,
    identity::{ClusterName, DataPlaneId, Generation, Identity, NodeName},
    members::PeerTable,
    membership::{Membership, MembershipConfig, SyncMember, SyncMessage, SyncState, envelope},
    op::Op,
    plan::plan,
    settings::{DataPlane, IfName},
    slots::Slots,
    state::ObservedState,
};
use nix::sys::resource::{UsageWho, getrusage};
use rand::{SeedableRng as _, rngs::StdRng};

use crate::{
    cli::Output,
    failure::{Failure, Kind, OrFailure as _},
    kernel::{AttachMode, Kernel, KernelConfig, bpf, bpffs},
};

/// Programs N peers into empty maps and tells what it took.
pub(crate) async fn program(peers: u32, output: Output) -> Result<(), Failure> {
    let mut bench = Bench::open(peers)?;
    let table: PeerTable = (1..=peers).map(identity).collect::<Result<_, _>>()?;

    let (system, start) = (system_time(), Instant::now());
    let ops = bench.program(&table).await?;
    let (seconds, system) = (start.elapsed().as_secs_f64(), system_time().saturating_sub(system));

    let json = serde_json::json!({
        "peers": peers,
        "seconds": seconds,
        "system_seconds": system.as_secs_f64(),
        "syscalls": ops,
        "map_bytes": bench.map_bytes()?,
    });
    print(output, &json)
}

/// Holds N members in everything that the daemon holds them in, and tells its resident memory.
pub(crate) async fn members(members: u32, output: Output) -> Result<(), Failure> {
    let mut bench = Bench::open(members.max(1000))?;
    let now = Instant::now();
    let cluster = ClusterName::new("bench").or_failure(Kind::Failed)?;
    let config = MembershipConfig { max_members: 20_000, ..MembershipConfig::new(cluster) };
    let mut membership =
        Membership::new(now, config, identity(0)?, StdRng::seed_from_u64(u64::from(members)));
    let view = |n: u32| -> Result<SyncMember, Failure> {
        let identity = identity(n)?;
        Ok(SyncMember {
            name: identity.name.to_string(),
            addr: identity.addr,
            vtep: identity.vtep,
            listen: identity.listen,
            generation: identity.generation.0,
            data_plane: identity.data_plane.get(),
            incarnation: 0,
            state: SyncState::Alive,
        })
    };
    let message = SyncMessage {
        protocol: u32::from(envelope::PROTOCOL),
        version: crate::version::VERSION.to_owned(),
        cluster: "bench".to_owned(),
        from: view(1)?,
        members: (2..members).map(view).collect::<Result<_, _>>()?,
    };
    membership.handle_sync(now, &message).or_failure(Kind::Failed)?;
    drop(message);
    while membership.poll_event().is_some() || membership.poll_transmit().is_some() {}
    let peers = membership.peers();
    bench.program(&peers).await?;

    let json = serde_json::json!({
        "members": membership.members().len(),
        "peers": peers.len(),
        "rss_bytes": resident_bytes()?,
    });
    print(output, &json)
}

/// The real maps and programs, without a link.
struct Bench {
    kernel: Option<Kernel>,
    data_plane: DataPlane,
    slots: Slots,
    pin_dir: PathBuf,
}

impl Bench {
    fn open(max_peers: u32) -> Result<Self, Failure> {
        let bridge = IfName::new("mgo-bench").or_failure(Kind::Failed)?;
        let data_plane = DataPlane {
            device: IfName::overlay_device(&bridge).or_failure(Kind::Failed)?,
            bridge,
            vni: Vni::new(1024).or_failure(Kind::Failed)?,
            port: 4789,
            vtep: address(0),
            mtu: None,
            max_peers,
            id: DataPlaneId::random(&mut rand::rng()),
        };
        let pin_dir =
            Path::new("/sys/fs/bpf").join(format!("marengo-bench-{}", std::process::id()));
        let config = KernelConfig {
            data_plane: data_plane.clone(),
            pin_dir: pin_dir.clone(),
            debug: false,
            attach: AttachMode::Auto,
            without: Without::default(),
        };
        bpffs::prepare(&pin_dir)?;
        let (kernel, _) = Kernel::open(config)?;
        Ok(Self { kernel: Some(kernel), data_plane, slots: Slots::new(max_peers), pin_dir })
    }

    /// Goes the daemon's way from a table of peers to the maps, but for what concerns links. Returns
    /// the number of changes.
    async fn program(&mut self, peers: &PeerTable) -> Result<usize, Failure> {
        let Some(kernel) = &mut self.kernel else { return Ok(0) };
        self.slots.assign(peers.live(), &BTreeSet::new());
        let want = desired(&self.data_plane, &self.slots, Some(1500));
        let plan = plan(&want, &ObservedState::default());
        let mut done = 0;
        for op in &plan.ops {
            if op.is_map_write() && !matches!(op, Op::WriteSettings(_)) {
                kernel.apply(op).await?;
                done += 1;
            }
        }
        Ok(done)
    }

    /// What the kernel charges for the maps that grow with the peers.
    fn map_bytes(&self) -> Result<u64, Failure> {
        let names = [MapName::PEERS, MapName::VTEPS, MapName::FLOOD, MapName::STATS];
        let ids: Vec<String> = names
            .iter()
            .map(|name| aya::maps::MapInfo::from_pin(self.pin_dir.join(name.pin)))
            .map(|info| info.map(|info| info.id().to_string()))
            .collect::<Result<_, _>>()
            .or_failure(Kind::Failed)?;
        let mut sum = 0;
        let mut seen = Vec::new();
        for entry in fs::read_dir("/proc/self/fdinfo").or_failure(Kind::Failed)? {
            let path = entry.or_failure(Kind::Failed)?.path();
            let text = fs::read_to_string(path).unwrap_or_default();
            let field =
                |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let Some(id) = field("map_id:").map(str::to_owned) else { continue };
            if ids.contains(&id) && !seen.contains(&id) {
                sum += field("memlock:").and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
                seen.push(id);
            }
        }
        Ok(sum)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.kernel = None;
        if let Err(error) = bpf::remove_pins(&self.pin_dir) {
            tracing::warn!(error = format!("{error:#}"), "could not clean up");
        }
    }
}

fn identity(n: u32) -> Result<Identity, Failure> {
    let name = NodeName::new(&format!("node-{n:05}")).or_failure(Kind::Failed)?;
    let (addr, listen) = (SocketAddr::new(address(n), 7946), SocketAddr::new(address(n), 8080));
    let data_plane = DataPlaneId::random(&mut rand::rng());
    Identity::new(name, addr, address(n), listen, Generation(1), data_plane)
        .or_failure(Kind::Failed)
}

/// The benchmarking network (RFC 2544), 198.18.0.0/15.
fn address(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(u32::from_be_bytes([198, 18, 0, 1]) + n))
}

fn system_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).map(|usage| usage.system_time());
    usage.map_or(Duration::ZERO, |time| {
        Duration::from_micros(
            u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or_default(),
        )
    })
}

fn resident_bytes() -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status").or_failure(Kind::Failed)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib: u64 = line
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| Failure::new(Kind::Failed, "/proc/self/status has no VmRSS"))?;
    Ok(kib * 1024)
}

fn print(output: Output, json: &serde_json::Value) -> Result<(), Failure> {
    let text = if output.json { json.to_string() } else { format!("{json:#}") };
    writeln!(std::io::stdout(), "{text}").or_failure(Kind::Failed)
}
