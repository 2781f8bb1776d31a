//! The programs and maps: load or take over, read, write.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    net::IpAddr,
    path::Path,
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader,
    maps::{
        Array, HashMap, IterableMap as _, MapData, MapError, MapInfo, PerCpuArray, PerCpuHashMap,
    },
    programs::SchedClassifier,
};
use aya_log::EbpfLogger;
use log::Log;
use marengo_common::{
    ABI_VERSION, DropCount, DropReason, FLOOD_CHUNK, FloodChunk, FloodPosition, Heard, MAX_MACS,
    MacEntry, MacKey, MapName, PeerEntry, PeerIndex, PeerState, PeerStats, ProgramName, Settings,
    VtepEntry, VtepKey, WITHOUT, WITHOUT_GENERATIONS, WITHOUT_MOVES,
};
use marengo_core::{
    control::{Control, Without},
    identity::DataPlaneId,
    op::Hook,
    slots::Slot,
};

use super::{Adopted, KernelConfig, bpffs, earlier::Earlier, sys::entries};

/// The programs, as built by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MARENGO_EBPF_OBJECT"));

/// Additions come before removals: so many peers may take the places of others in one round without
/// waiting for the next one.
const SLACK: u32 = 64;

/// A pin directory that holds what Marengo did not put there.
#[derive(Debug, thiserror::Error)]
#[error(
    "the pin directory {dir} is not Marengo's: it holds {entry:?}; choose another with --pin-dir"
)]
pub(crate) struct PinsError {
    dir: String,
    entry: OsString,
}

/// Pinned maps of a version that this one does not know, with programs that run on them.
#[derive(Debug, thiserror::Error)]
#[error(
    "programs of another version of Marengo forward here, and this one cannot take over their maps \
     in {dir} ({why}); start that version again and stop it, or run `marengo remove` to take its \
     data plane away"
)]
pub(crate) struct LayoutError {
    dir: String,
    why: String,
}

/// Before the names of pins that have not taken the place of an earlier run's yet.
const NEXT: &str = "next-";

/// The log records of the programs.
pub(crate) type ProgramLog = EbpfLogger<&'static dyn Log>;

/// What the maps hold.
#[derive(Debug)]
pub(super) struct ObservedMaps {
    pub(super) settings: Option<Settings>,
    pub(super) peers: BTreeMap<PeerIndex, PeerEntry>,
    pub(super) vteps: BTreeMap<VtepKey, PeerIndex>,
    pub(super) flood: BTreeMap<u32, FloodChunk>,
}

/// The loaded programs and the pinned maps that they share with earlier and later runs.
pub(super) struct Bpf {
    ebpf: Ebpf,
    settings: Array<MapData, Settings>,
    peers: HashMap<MapData, PeerIndex, PeerEntry>,
    vteps: HashMap<MapData, VtepKey, VtepEntry>,
    flood: HashMap<MapData, FloodPosition, FloodChunk>,
    stats: PerCpuHashMap<MapData, PeerIndex, PeerStats>,
    drops: PerCpuArray<MapData, DropCount>,
    log: Option<ProgramLog>,
    /// The kernel's numbers of the programs, as far as they were asked for.
    program_ids: BTreeMap<Hook, u32>,
}

impl Bpf {
    /// Loads the programs. Maps that an earlier run has pinned are taken over if their layout is
    /// ours; if not, new ones take their place.
    pub(super) fn open(config: &KernelConfig) -> Result<(Self, Adopted)> {
        let dir = &config.pin_dir;
        refuse_foreign(dir)?;
        let max_peers = with_slack(config.data_plane.max_peers);
        if !config.without.has(Control::Adoption) {
            remove_map_pins(dir)?;
        }
        let mut earlier = None;
        let in_use = is_in_use(config);
        if let Err(misfit) = check_pinned(dir, max_peers) {
            if in_use {
                let own = config.data_plane.id.get();
                earlier = Earlier::read(dir, own).map_err(|why| LayoutError {
                    dir: dir.display().to_string(),
                    why: format!("{why:#}"),
                })?;
            }
            if earlier.is_some() {
                tracing::warn!(%misfit, "carrying the maps of an earlier run over into new ones");
            } else {
                tracing::warn!(%misfit, "making new maps in place of an earlier run's");
                remove_map_pins(dir)?;
            }
        }
        match Self::load(config, max_peers, earlier.as_ref()) {
            Ok(opened) => Ok(opened),
            Err(error) => {
                // Maps without a program are of no use to anybody.
                if !in_use {
                    remove_pins(dir)?;
                }
                Err(error)
            }
        }
    }

    /// Loads the programs. With `earlier`, into new maps that hold the same and then take the pins of
    /// the former ones.
    fn load(
        config: &KernelConfig,
        max_peers: u32,
        earlier: Option<&Earlier>,
    ) -> Result<(Self, Adopted)> {
        let dir = &config.pin_dir;
        // Of the same layout in all versions but the first: the programs that run go on learning there.
        let keeps_stations = fits(dir, MapName::MACS, max_peers).unwrap_or(false);
        let pin = |name: MapName| match earlier {
            Some(_) if !(name == MapName::MACS && keeps_stations) => {
                dir.join(format!("{NEXT}{}", name.pin))
            }
            _ => dir.join(name.pin),
        };
        for name in MapName::ALL {
            // From a start that did not come to its end.
            remove_file(&dir.join(format!("{NEXT}{}", name.pin)))?;
        }
        // Zero is below every level: the verifier then takes the log statements out.
        let log_level = if config.debug { aya_log::Level::Debug as u8 } else { 0 };
        let without = without(config.without);
        let mut loader = EbpfLoader::new();
        loader
            .override_global(aya_log::LEVEL, &log_level, true)
            .override_global(WITHOUT, &without, true)
            .map_max_entries(MapName::PEERS.kernel, max_peers)
            .map_max_entries(MapName::VTEPS.kernel, max_peers)
            .map_max_entries(MapName::STATS.kernel, max_peers)
            .map_max_entries(MapName::MACS.kernel, MAX_MACS)
            .map_max_entries(MapName::FLOOD.kernel, flood_entries(max_peers));
        for name in MapName::ALL {
            loader.map_pin_path(name.kernel, pin(name));
        }
        let mut ebpf = loader.load(OBJECT).context("the kernel refused the maps")?;
        let log = if config.debug {
            let logger = EbpfLogger::init(&mut ebpf).context("failed to open the programs' log")?;
            Some(logger)
        } else {
            None
        };
        for name in [ProgramName::INGRESS, ProgramName::EGRESS] {
            program(&mut ebpf, name)?
                .load()
                .with_context(|| format!("the kernel refused the program {name}"))?;
        }
        let mut bpf = Self {
            settings: Array::try_from(take(&mut ebpf, MapName::SETTINGS)?)?,
            peers: HashMap::try_from(take(&mut ebpf, MapName::PEERS)?)?,
            vteps: HashMap::try_from(take(&mut ebpf, MapName::VTEPS)?)?,
            flood: HashMap::try_from(take(&mut ebpf, MapName::FLOOD)?)?,
            stats: PerCpuHashMap::try_from(take(&mut ebpf, MapName::STATS)?)?,
            drops: PerCpuArray::try_from(take(&mut ebpf, MapName::DROPS)?)?,
            log,
            program_ids: BTreeMap::new(),
            ebpf,
        };
        if let Some(earlier) = earlier {
            if config.without.has(Control::CarryOver) {
                bpf.carry_over(earlier);
                if !keeps_stations {
                    bpf.carry_stations_over(dir)?;
                }
            }
            // The settings late: they tell the version of what is pinned. The stations last: until
            // then their pin is that of the map in which the programs that run go on learning.
            let order = MapName::ALL.into_iter().rev().filter(|name| *name != MapName::MACS);
            for name in order.chain((!keeps_stations).then_some(MapName::MACS)) {
                fs::rename(pin(name), dir.join(name.pin))
                    .with_context(|| format!("failed to replace the pin of {}", name.pin))?;
            }
        }
        let adopted = bpf.adopt(config.data_plane.vtep)?;
        Ok((bpf, adopted))
    }

    /// Fills new maps with what those of an earlier run held. What finds no room is found out by the
    /// first round.
    fn carry_over(&mut self, earlier: &Earlier) {
        let mut left_out = usize::from(self.settings.set(0, earlier.settings, 0).is_err());
        for (index, peer) in &earlier.peers {
            left_out += usize::from(self.peers.insert(index, peer, 0).is_err());
        }
        for (key, vtep) in &earlier.vteps {
            left_out += usize::from(self.vteps.insert(key, vtep, 0).is_err());
        }
        for (position, chunk) in &earlier.flood {
            left_out += usize::from(self.flood.insert(position, chunk, 0).is_err());
        }
        if left_out > 0 {
            tracing::warn!(entries = left_out, "not everything found room in the new maps");
        }
    }

    /// The same for the stations. One that finds no room is learnt again.
    fn carry_stations_over(&mut self, dir: &Path) -> Result<()> {
        let mut macs: HashMap<MapData, MacKey, MacEntry> =
            HashMap::try_from(take(&mut self.ebpf, MapName::MACS)?)?;
        for (key, mac) in Earlier::stations(dir)? {
            macs.insert(key, mac, 0).ok();
        }
        Ok(())
    }

    /// Reads what an earlier run left in the maps. The addresses of slots are of its family: under
    /// an own VTEP of the other one they are of no use.
    fn adopt(&mut self, vtep: IpAddr) -> Result<Adopted> {
        let Some(settings) = self.read_settings()? else { return Ok(Adopted::default()) };
        let generation = settings.generation;
        let data_plane = DataPlaneId::new(settings.data_plane);
        let led_to = entries(&self.vteps)?.into_values().map(|entry| entry.peer).collect();
        if (settings.family == 4) != vtep.is_ipv4() {
            let (slots, flood) = (Vec::new(), Vec::new());
            return Ok(Adopted { slots, flood, led_to, generation, data_plane });
        }
        let flood = (0..)
            .zip(entries(&self.flood)?)
            .take_while(|(place, (key, _))| key.position == *place)
            .flat_map(|(_, (_, chunk))| chunk.peers)
            .collect();
        let slots = entries(&self.peers)?
            .into_iter()
            .filter(|(_, entry)| PeerState::from_byte(entry.state) == PeerState::Forwarding)
            .map(|(index, entry)| {
                let slot = Slot {
                    data_plane: DataPlaneId::new(entry.data_plane),
                    name: None,
                    vtep: entry.address(settings.family),
                    generation: entry.generation,
                };
                (index, slot)
            })
            .collect();
        Ok(Adopted { slots, flood, led_to, generation, data_plane })
    }

    pub(super) fn observe(&self) -> Result<ObservedMaps> {
        Ok(ObservedMaps {
            settings: self.read_settings()?,
            peers: entries(&self.peers).context("failed to read the peers map")?,
            vteps: entries(&self.vteps)
                .context("failed to read the vteps map")?
                .into_iter()
                .map(|(key, entry)| (key, entry.peer))
                .collect(),
            flood: entries(&self.flood)
                .context("failed to read the flood map")?
                .into_iter()
                .map(|(key, chunk)| (key.position, chunk))
                .collect(),
        })
    }

    pub(super) fn write_settings(&mut self, settings: &Settings) -> Result<()> {
        Ok(self.settings.set(0, settings, 0)?)
    }

    pub(super) fn put_peer(&mut self, index: PeerIndex, entry: &PeerEntry) -> Result<()> {
        // Counters of whoever had the index before are not this peer's.
        if self.peers.get(&index, 0).map_or(true, |old| old.generation != entry.generation) {
            gone_is_fine(self.stats.remove(&index))?;
        }
        Ok(self.peers.insert(index, entry, 0)?)
    }

    pub(super) fn delete_peer(&mut self, index: PeerIndex) -> Result<()> {
        gone_is_fine(self.peers.remove(&index))?;
        gone_is_fine(self.stats.remove(&index))
    }

    pub(super) fn put_vtep(&mut self, key: &VtepKey, peer: PeerIndex) -> Result<()> {
        Ok(self.vteps.insert(key, VtepEntry { peer, heard: 0 }, 0)?)
    }

    pub(super) fn delete_vtep(&mut self, key: &VtepKey) -> Result<()> {
        gone_is_fine(self.vteps.remove(key))
    }

    pub(super) fn put_flood(&mut self, position: u32, chunk: &FloodChunk) -> Result<()> {
        Ok(self.flood.insert(FloodPosition { position }, chunk, 0)?)
    }

    pub(super) fn delete_flood(&mut self, position: u32) -> Result<()> {
        gone_is_fine(self.flood.remove(&FloodPosition { position }))
    }

    pub(super) fn peer_stats(&self) -> Result<Vec<(PeerIndex, PeerStats)>> {
        let mut all = Vec::new();
        for entry in &self.stats {
            let (index, values) = entry.context("failed to read the stats map")?;
            let sum = values.iter().fold(PeerStats::default(), |sum, cpu| PeerStats {
                tx_packets: sum.tx_packets.wrapping_add(cpu.tx_packets),
                tx_bytes: sum.tx_bytes.wrapping_add(cpu.tx_bytes),
                rx_packets: sum.rx_packets.wrapping_add(cpu.rx_packets),
                rx_bytes: sum.rx_bytes.wrapping_add(cpu.rx_bytes),
            });
            all.push((index, sum));
        }
        Ok(all)
    }

    pub(super) fn heard(&self, vtep: &VtepKey) -> Result<Option<Heard>> {
        match self.vteps.get(vtep, 0) {
            Ok(entry) => Ok(Some(Heard(entry.heard))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).context("failed to read the vteps map"),
        }
    }

    pub(super) fn drops(&self) -> Result<Vec<(DropReason, DropCount)>> {
        DropReason::ALL
            .into_iter()
            .map(|reason| {
                let values =
                    self.drops.get(&(reason as u32), 0).context("failed to read the drops map")?;
                let sum = values.iter().fold(DropCount::default(), |sum, cpu| DropCount {
                    packets: sum.packets.wrapping_add(cpu.packets),
                    bytes: sum.bytes.wrapping_add(cpu.bytes),
                });
                Ok((reason, sum))
            })
            .collect()
    }

    pub(super) fn take_log(&mut self) -> Option<ProgramLog> {
        self.log.take()
    }

    /// The program that belongs to a hook.
    pub(super) fn program(&mut self, hook: Hook) -> Result<&mut SchedClassifier> {
        let name = match hook {
            Hook::DeviceIngress => ProgramName::INGRESS,
            Hook::DeviceEgress | Hook::BridgeEgress => ProgramName::EGRESS,
        };
        program(&mut self.ebpf, name)
    }

    /// The kernel's number of the program that belongs to a hook.
    pub(super) fn program_id(&mut self, hook: Hook) -> Result<u32> {
        if let Some(id) = self.program_ids.get(&hook) {
            return Ok(*id);
        }
        let id = self.program(hook)?.info()?.id();
        self.program_ids.insert(hook, id);
        Ok(id)
    }

    /// The kernel's numbers of the maps that the daemon writes.
    pub(super) fn map_ids(&self) -> Result<Vec<u32>> {
        let maps = [self.settings.map(), self.peers.map(), self.vteps.map(), self.flood.map()];
        maps.iter().map(|map| Ok(map.info()?.id())).collect()
    }

    fn read_settings(&self) -> Result<Option<Settings>> {
        let settings = self.settings.get(&0, 0).context("failed to read the settings map")?;
        Ok((settings.abi_version != 0).then_some(settings))
    }
}

/// Takes every pin of ours away, and the directory if nothing else is in it. The programs and maps
/// go with their last user.
pub(crate) fn remove_pins(dir: &Path) -> Result<()> {
    // Programs before maps: whoever is killed in between leaves maps that nobody uses.
    for hook in Hook::ALL {
        remove_file(&dir.join(hook.name()))?;
    }
    remove_map_pins(dir)?;
    let removed = fs::remove_dir(dir);
    if let Some(parent) = dir.parent().filter(|parent| *parent == Path::new(bpffs::HOME)) {
        // Another bridge's pins may be there.
        fs::remove_dir(parent).ok();
    }
    match removed {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(error).with_context(|| format!("failed to remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Refuses a directory with an entry that no version of Marengo makes.
pub(crate) fn refuse_foreign(dir: &Path) -> Result<()> {
    let ours: BTreeSet<&str> = MapName::ALL
        .iter()
        .map(|name| name.pin)
        .chain(Hook::ALL.iter().map(|hook| hook.name()))
        .collect();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("failed to read {}", dir.display()))?,
    };
    for entry in entries {
        let entry = entry?.file_name();
        let name = entry.to_str().map(|name| name.strip_prefix(NEXT).unwrap_or(name));
        if !name.is_some_and(|name| ours.contains(name)) {
            return Err(PinsError { dir: dir.display().to_string(), entry }.into());
        }
    }
    for name in MapName::ALL {
        let path = dir.join(name.pin);
        let foreign = path.exists()
            && MapInfo::from_pin(&path)
                .map_or(true, |info| info.name_as_str() != Some(name.kernel));
        if foreign {
            let entry = name.pin.into();
            return Err(PinsError { dir: dir.display().to_string(), entry }.into());
        }
    }
    Ok(())
}

/// Whether programs may run on what is pinned: by pinned links, or by filters of the device, which
/// leave no pin.
fn is_in_use(config: &KernelConfig) -> bool {
    let is_pinned = |hook: &Hook| config.pin_dir.join(hook.name()).exists();
    Hook::ALL.iter().any(is_pinned)
        || nix::net::if_::if_nametoindex(config.data_plane.device.as_str()).is_ok()
}

/// Compares a pinned map with what this version makes; `None` if it is not pinned.
fn fits(dir: &Path, name: MapName, max_peers: u32) -> Option<bool> {
    let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    let shape = match name {
        MapName::SETTINGS => (4, size(size_of::<Settings>()), 1),
        MapName::PEERS => (4, size(size_of::<PeerEntry>()), max_peers),
        MapName::VTEPS => (16, size(size_of::<VtepEntry>()), max_peers),
        MapName::MACS => (12, size(size_of::<MacEntry>()), MAX_MACS),
        MapName::FLOOD => (4, size(size_of::<FloodChunk>()), flood_entries(max_peers)),
        MapName::STATS => (4, size(size_of::<PeerStats>()), max_peers),
        _ => (4, size(size_of::<DropCount>()), DropReason::SLOTS),
    };
    let path = dir.join(name.pin);
    if !path.exists() {
        return None;
    }
    let info = MapInfo::from_pin(&path);
    Some(info.is_ok_and(|info| (info.key_size(), info.value_size(), info.max_entries()) == shape))
}

/// Compares pinned maps with what this version makes: aya would take over anything of that name.
fn check_pinned(dir: &Path, max_peers: u32) -> Result<()> {
    let all = MapName::ALL.map(|name| (name, fits(dir, name, max_peers)));
    if let Some((name, _)) = all.iter().find(|(_, fits)| *fits == Some(false)) {
        return Err(anyhow!("{} has another shape", name.pin));
    }
    match all.iter().filter(|(_, fits)| fits.is_some()).count() {
        0 => return Ok(()),
        found if found != MapName::ALL.len() => {
            return Err(anyhow!("some of the maps are missing"));
        }
        _ => {}
    }
    let data = MapData::from_pin(dir.join(MapName::SETTINGS.pin))?;
    let settings = Array::<_, Settings>::try_from(aya::maps::Map::Array(data))?.get(&0, 0)?;
    let peers = MapData::from_pin(dir.join(MapName::PEERS.pin))?;
    let peers: HashMap<_, PeerIndex, PeerEntry> = aya::maps::Map::HashMap(peers).try_into()?;
    match settings.abi_version {
        ABI_VERSION => Ok(()),
        // Without them nobody knows which generations were given out.
        0 if !entries(&peers)?.is_empty() => Err(anyhow!("there are peers and no settings")),
        0 => Ok(()),
        version => Err(anyhow!("they have ABI version {version}, this is {ABI_VERSION}")),
    }
}

fn remove_map_pins(dir: &Path) -> Result<()> {
    for name in MapName::ALL {
        remove_file(&dir.join(name.pin))?;
        remove_file(&dir.join(format!("{NEXT}{}", name.pin)))?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Not beyond the next power of two, where the kernel would double a hash map's buckets.
fn with_slack(max_peers: u32) -> u32 {
    max_peers.next_power_of_two().min(max_peers + SLACK)
}

/// The programs' share of what a test takes away.
fn without(without: Without) -> u32 {
    let bit = |control, bit| if without.has(control) { 0 } else { bit };
    bit(Control::Generations, WITHOUT_GENERATIONS) | bit(Control::Moves, WITHOUT_MOVES)
}

fn flood_entries(max_peers: u32) -> u32 {
    max_peers.div_ceil(u32::try_from(FLOOD_CHUNK).unwrap_or(1)).max(1)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

fn take(ebpf: &mut Ebpf, name: MapName) -> Result<aya::maps::Map> {
    ebpf.take_map(name.kernel).with_context(|| format!("no map {}", name.kernel))
}

fn gone_is_fine(result: Result<(), MapError>) -> Result<()> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
