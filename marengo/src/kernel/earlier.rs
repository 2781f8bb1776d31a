//! Maps that an earlier run has left and that this one cannot use as they are: of another version's
//! layout, or of another size. What they hold is carried over into new ones, so that the programs
//! are swapped from full maps to full maps.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData},
};
use marengo_common::{
    ABI_VERSION, FloodChunk, FloodPosition, MacEntry, MacKey, MapName, PeerEntry, PeerIndex,
    Settings, VtepBytes, VtepEntry, VtepKey,
};

use super::sys::entries;

/// What the maps of an earlier run hold, in this version's layout.
#[derive(Debug)]
pub(super) struct Earlier {
    pub(super) settings: Settings,
    pub(super) peers: Vec<(PeerIndex, PeerEntry)>,
    pub(super) vteps: Vec<(VtepKey, VtepEntry)>,
    pub(super) flood: Vec<(FloodPosition, FloodChunk)>,
}

/// A slot as version 1 had it: whose it is was told by its address alone.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct PeerEntryV1 {
    vtep: VtepBytes,
    generation: u32,
    path_mtu: u16,
    state: u8,
    flags: u8,
}

/// A station as version 1 had it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct MacEntryV1 {
    peer: PeerIndex,
    generation: u32,
    last_seen_ns: u64,
}

/// Settings as version 1 had them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct SettingsV1 {
    abi_version: u32,
    vni: u32,
    vtep: VtepBytes,
    vxlan_ifindex: u32,
    generation: u32,
    family: u8,
    pad: [u8; 3],
}

#[expect(unsafe_code, reason = "what lies in maps is plain data")]
mod pod {
    use super::{MacEntryV1, PeerEntryV1, SettingsV1};

    // SAFETY: `repr(C)` without implicit padding, and every bit pattern is a value.
    unsafe impl aya::Pod for PeerEntryV1 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for MacEntryV1 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SettingsV1 {}
}

impl Earlier {
    /// Reads the pinned maps of a directory but for the stations, each in the layout that its size
    /// tells. A map that is missing is empty; `None` if nothing says whose generations they are.
    ///
    /// `own` becomes the identity of the data plane if the maps have none. Fails if they are of a
    /// version that this one does not know.
    pub(super) fn read(dir: &Path, own: u64) -> Result<Option<Self>> {
        if !dir.join(MapName::SETTINGS.pin).exists() {
            return Ok(None);
        }
        let Some(settings) = settings(dir, own)? else { return Ok(None) };
        let peers = whole_or(dir, MapName::PEERS, |old: PeerEntryV1| old.into())?;
        let vteps = whole_or(dir, MapName::VTEPS, |same: VtepEntry| same)?;
        let flood = whole_or(dir, MapName::FLOOD, |same: FloodChunk| same)?;
        Ok(Some(Self { settings, peers, vteps, flood }))
    }

    /// Reads the stations: as late as possible, because the programs that run go on learning.
    pub(super) fn stations(dir: &Path) -> Result<Vec<(MacKey, MacEntry)>> {
        whole_or(dir, MapName::MACS, |old: MacEntryV1| old.into())
    }
}

impl From<PeerEntryV1> for PeerEntry {
    fn from(old: PeerEntryV1) -> Self {
        let PeerEntryV1 { vtep, generation, path_mtu, state, flags } = old;
        Self { vtep, generation, path_mtu, state, flags, data_plane: 0 }
    }
}

impl From<MacEntryV1> for MacEntry {
    fn from(old: MacEntryV1) -> Self {
        let MacEntryV1 { peer, generation, last_seen_ns } = old;
        Self { peer, generation, last_seen_ns, moved_from: 0, moved_at: 0 }
    }
}

fn open(dir: &Path, name: MapName) -> Result<MapData> {
    let path = dir.join(name.pin);
    MapData::from_pin(&path).with_context(|| format!("failed to open {}", path.display()))
}

fn value_size(dir: &Path, name: MapName) -> Result<usize> {
    Ok(open(dir, name)?.info()?.value_size() as usize)
}

/// A whole map, whose values are ours or those of the layout before.
fn whole_or<K: Pod + Ord, V: Pod, Old: Pod>(
    dir: &Path,
    name: MapName,
    convert: impl Fn(Old) -> V,
) -> Result<Vec<(K, V)>> {
    if !dir.join(name.pin).exists() {
        return Ok(Vec::new());
    }
    if value_size(dir, name)? == size_of::<Old>() {
        let old = whole::<K, Old>(dir, name)?;
        return Ok(old.into_iter().map(|(key, value)| (key, convert(value))).collect());
    }
    whole(dir, name)
}

fn whole<K: Pod + Ord, V: Pod>(dir: &Path, name: MapName) -> Result<Vec<(K, V)>> {
    let map: HashMap<_, K, V> = Map::HashMap(open(dir, name)?)
        .try_into()
        .with_context(|| format!("{} has a layout that this version does not know", name.pin))?;
    Ok(entries(&map)?.into_iter().collect())
}

/// The settings; `None` if nobody has written them, or somebody has wiped them.
fn settings(dir: &Path, own: u64) -> Result<Option<Settings>> {
    let map = Map::Array(open(dir, MapName::SETTINGS)?);
    let size = value_size(dir, MapName::SETTINGS)?;
    let (version, settings) = if size == size_of::<SettingsV1>() {
        let old = Array::<_, SettingsV1>::try_from(map)?.get(&0, 0)?;
        let settings = Settings {
            abi_version: ABI_VERSION,
            vni: old.vni,
            data_plane: own,
            vtep: old.vtep,
            vxlan_ifindex: old.vxlan_ifindex,
            generation: old.generation,
            family: old.family,
            pad: [0; 7],
        };
        (old.abi_version, settings)
    } else if size == size_of::<Settings>() {
        let settings = Array::<_, Settings>::try_from(map)?.get(&0, 0)?;
        (settings.abi_version, settings)
    } else {
        return Err(anyhow!("the settings have {size} bytes"));
    };
    match version {
        0 => Ok(None),
        1 | ABI_VERSION => Ok(Some(settings)),
        version => Err(anyhow!("the maps have version {version}")),
    }
}
