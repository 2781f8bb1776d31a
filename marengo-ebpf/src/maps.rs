//! The maps, and nothing else. Layouts and names: `marengo_common`.
//!
//! The sizes here are those of an object nobody loads: the daemon sets `max_entries` of all but
//! `settings` and `drops` when it loads the programs.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap},
    macros::btf_map,
};
use marengo_common::{
    ABI_VERSION, DropCount, DropReason, FloodChunk, FloodPosition, MAX_MACS, MacEntry, MacKey,
    PeerEntry, PeerStats, Settings, VtepEntry, VtepKey,
};

#[btf_map(name = "marengo_setting")]
static SETTINGS: Array<Settings, 1> = Array::new();

/// The settings, once a daemon of this layout has written them.
#[inline(always)]
pub(crate) fn settings() -> Result<&'static Settings, DropReason> {
    match SETTINGS.get(0) {
        Some(settings) if settings.abi_version == ABI_VERSION => Ok(settings),
        _ => Err(DropReason::NoSettings),
    }
}

#[btf_map(name = "marengo_peers")]
pub(crate) static PEERS: HashMap<u32, PeerEntry, 1024> = HashMap::new();

#[btf_map(name = "marengo_vteps")]
pub(crate) static VTEPS: HashMap<VtepKey, VtepEntry, 1024> = HashMap::new();

#[btf_map(name = "marengo_macs")]
pub(crate) static MACS: LruHashMap<MacKey, MacEntry, { MAX_MACS as usize }> = LruHashMap::new();

#[btf_map(name = "marengo_flood")]
pub(crate) static FLOOD: HashMap<FloodPosition, FloodChunk, 64> = HashMap::new();

/// Not preallocated: counters cost memory on every CPU, and only for peers that have traffic.
#[btf_map(name = "marengo_stats")]
pub(crate) static STATS: PerCpuHashMap<u32, PeerStats, 1024, { BPF_F_NO_PREALLOC as usize }> =
    PerCpuHashMap::new();

#[btf_map(name = "marengo_drops")]
pub(crate) static DROPS: PerCpuArray<DropCount, { DropReason::SLOTS as usize }> =
    PerCpuArray::new();
