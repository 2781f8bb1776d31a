//! What the maps of a node hold, read in a millisecond and without bpftool.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::Path};

use aya::maps::{Array, HashMap, Map, MapData};
use marengo_common::{
    MacAddr, MacEntry, MacKey, MapName, PeerEntry, PeerIndex, PeerState, PeerVerdict, Settings,
    judge_mac,
};

/// The pinned maps of one node, open.
pub struct Tables {
    peers: HashMap<MapData, PeerIndex, PeerEntry>,
    macs: HashMap<MapData, MacKey, MacEntry>,
    settings: Array<MapData, Settings>,
}

/// What they held. Not of one moment: an entry's slot is read after the entry.
#[derive(Clone, Debug)]
pub struct Dump {
    pub settings: Settings,
    pub macs: Vec<(MacAddr, MacEntry)>,
    pub peers: BTreeMap<PeerIndex, PeerEntry>,
}

impl Tables {
    /// Opens the maps in a pin directory; `None` if they are not all there.
    pub fn open(pins: &Path) -> Option<Self> {
        let open =
            |name: MapName| Map::from_map_data(MapData::from_pin(pins.join(name.pin)).ok()?).ok();
        Some(Self {
            peers: open(MapName::PEERS)?.try_into().ok()?,
            macs: open(MapName::MACS)?.try_into().ok()?,
            settings: open(MapName::SETTINGS)?.try_into().ok()?,
        })
    }

    /// Reads everything.
    pub fn dump(&self) -> Dump {
        // An entry that went while this looked is none.
        let macs: Vec<(MacKey, MacEntry)> = self.macs.iter().filter_map(Result::ok).collect();
        Dump {
            settings: self.settings(),
            macs: macs.into_iter().map(|(key, entry)| (MacAddr(key.mac), entry)).collect(),
            peers: self.peers.iter().filter_map(Result::ok).collect(),
        }
    }

    /// The settings alone.
    pub fn settings(&self) -> Settings {
        self.settings.get(&0, 0).expect("an array has its entries")
    }

    /// The slots that frames are sent to.
    pub fn forwarding(&self) -> usize {
        self.peers.iter().filter_map(Result::ok).filter(|(_, peer)| forwards(peer)).count()
    }

    /// How many MAC entries there are, live or not.
    pub fn macs(&self) -> usize {
        self.macs.keys().flatten().count()
    }

    /// What the programs would do with a frame for a station.
    pub fn look_up(&self, mac: MacAddr, stamps: bool) -> Option<(MacEntry, PeerEntry)> {
        let key = MacKey::new(self.settings().vni, mac);
        let entry = self.macs.get(&key, 0).ok()?;
        let peer = self.peers.get(&entry.peer, 0).ok()?;
        is_live(&entry, &peer, stamps).then_some((entry, peer))
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

impl Dump {
    /// The entries that frames are sent by, with their slots. Without `stamps`, as programs that ignore
    /// them see it.
    pub fn live(&self, stamps: bool) -> impl Iterator<Item = (MacAddr, &MacEntry, &PeerEntry)> {
        self.macs.iter().filter_map(move |(mac, entry)| {
            let peer = self.peers.get(&entry.peer)?;
            is_live(entry, peer, stamps).then_some((*mac, entry, peer))
        })
    }

    /// The slots that frames are sent to.
    pub fn slots(&self) -> impl Iterator<Item = (PeerIndex, &PeerEntry)> {
        self.peers.iter().filter(|(_, peer)| forwards(peer)).map(|(index, peer)| (*index, peer))
    }

    /// The tunnel address of a slot.
    pub fn address(&self, peer: &PeerEntry) -> IpAddr {
        peer.address(self.settings.family)
    }
}

/// Whether the programs send by this entry.
fn is_live(entry: &MacEntry, peer: &PeerEntry, stamps: bool) -> bool {
    if stamps { judge_mac(entry, peer) == PeerVerdict::Send } else { forwards(peer) }
}

fn forwards(peer: &PeerEntry) -> bool {
    PeerState::from_byte(peer.state) == PeerState::Forwarding
}

/// The data plane that a slot is for, if it names one.
pub(crate) fn data_plane(peer: &PeerEntry) -> Option<u64> {
    (peer.data_plane != 0).then_some(peer.data_plane)
}

/// The data plane whose maps these are, if they name it.
pub(crate) fn own_data_plane(settings: &Settings) -> Option<u64> {
    (settings.data_plane != 0).then_some(settings.data_plane)
}
