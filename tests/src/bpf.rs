//! What BPF objects there are: through bpftool, and directly where it must be quick.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use aya::{
    maps::{Array, HashMap, Map, MapData},
    programs::{SchedClassifier, TcAttachType},
};
use marengo_common::{FloodChunk, FloodPosition, MapName, PeerEntry, Settings, VtepEntry, VtepKey};
use serde_json::Value;

use crate::{exec, netns::Namespace, node::Node};

/// The entries of a pinned map, by field name: `{"key": .., "value": ..}`, or `"values"` for a map
/// that has one on each CPU. Panics if bpftool has no names for them.
pub fn dump(pin: &Path) -> Vec<Value> {
    let mut command = exec::command("bpftool");
    let text = exec::capture(command.args(["--json", "map", "dump", "pinned"]).arg(pin));
    let entries: Value = serde_json::from_str(&text).expect("bpftool prints JSON");
    let entries = entries.as_array().expect("bpftool prints a list").iter();
    entries
        .map(|entry| {
            let formatted = &entry["formatted"];
            assert!(formatted.is_object(), "no field names in {}: {entry}", pin.display());
            formatted.clone()
        })
        .collect()
}

/// The kernel's number of a pinned map or program.
pub fn id(kind: &str, pin: &Path) -> u64 {
    let mut command = exec::command("bpftool");
    let text = exec::capture(command.args(["--json", kind, "show", "pinned"]).arg(pin));
    let object: Value = serde_json::from_str(&text).expect("bpftool prints JSON");
    object["id"].as_u64().expect("an object has an id")
}

/// A program at a hook of a device.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Attachment {
    pub device: String,
    /// `ingress` or `egress`.
    pub hook: &'static str,
    /// The program's name.
    pub program: String,
    /// The kernel's number of the program.
    pub program_id: u32,
}

impl Attachment {
    /// Device, hook and program.
    pub fn names(&self) -> (&str, &str, &str) {
        (&self.device, self.hook, &self.program)
    }
}

/// What is attached at the TCX hooks in a namespace. (The kernel is asked, because a bpftool older than
/// 7.3 does not know TCX.)
pub fn attachments(namespace: &Namespace) -> Vec<Attachment> {
    let mut attachments = Vec::new();
    for device in namespace.devices() {
        for hook in ["ingress", "egress"] {
            attachments.extend(attached_at(namespace, &device, hook));
        }
    }
    attachments.sort();
    attachments
}

/// What is attached at one TCX hook; nothing if there is no such device.
pub fn attached_at(namespace: &Namespace, device: &str, hook: &'static str) -> Vec<Attachment> {
    namespace.inside(|| attached_here(device, hook))
}

/// As [`attached_at`], for a thread that is inside already.
pub fn attached_here(device: &str, hook: &'static str) -> Vec<Attachment> {
    let attach_type = if hook == "ingress" { TcAttachType::Ingress } else { TcAttachType::Egress };
    let Ok((_, programs)) = SchedClassifier::query_tcx(device, attach_type) else {
        return Vec::new();
    };
    programs
        .iter()
        .map(|program| Attachment {
            device: device.to_owned(),
            hook,
            program: program.name_as_str().unwrap_or_default().to_owned(),
            program_id: program.id(),
        })
        .collect()
}

/// All that the daemon has written into the maps.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Content {
    pub settings: Settings,
    pub slots: BTreeMap<u32, PeerEntry>,
    /// Slot by address.
    pub vteps: BTreeMap<VtepKey, u32>,
    /// In order.
    pub flood: Vec<u32>,
}

/// The maps that the daemon writes, read and changed without going through it.
pub struct Maps {
    pub settings: Array<MapData, Settings>,
    pub peers: HashMap<MapData, u32, PeerEntry>,
    pub vteps: HashMap<MapData, VtepKey, VtepEntry>,
    pub flood: HashMap<MapData, FloodPosition, FloodChunk>,
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.content().fmt(f)
    }
}

impl Maps {
    /// Opens the pinned maps of a node.
    pub fn open(node: &Node) -> Self {
        let pin = |name: MapName| {
            MapData::from_pin(node.pins().join(name.pin))
                .unwrap_or_else(|error| panic!("{} of {}: {error}", name.pin, node.name()))
        };
        let fits = "the map has the types of marengo-common";
        Self {
            settings: Array::try_from(Map::from_map_data(pin(MapName::SETTINGS)).expect(fits))
                .expect(fits),
            peers: Map::from_map_data(pin(MapName::PEERS)).expect(fits).try_into().expect(fits),
            vteps: Map::from_map_data(pin(MapName::VTEPS)).expect(fits).try_into().expect(fits),
            flood: Map::from_map_data(pin(MapName::FLOOD)).expect(fits).try_into().expect(fits),
        }
    }

    /// Whether a tunnel address is in the maps: known as a sender, and in a slot.
    pub fn has(&self, vtep: IpAddr) -> bool {
        let Ok(entry) = self.vteps.get(&VtepKey::new(vtep), 0) else { return false };
        self.peers.get(&entry.peer, 0).is_ok_and(|peer| peer.vtep == VtepKey::new(vtep).vtep)
    }

    /// Whether a tunnel address is in none of the maps.
    pub fn lacks(&self, vtep: IpAddr) -> bool {
        let key = VtepKey::new(vtep);
        self.vteps.get(&key, 0).is_err() && self.slots().values().all(|peer| peer.vtep != key.vtep)
    }

    /// Every slot.
    pub fn slots(&self) -> BTreeMap<u32, PeerEntry> {
        // An entry that went while this looked is none.
        self.peers.iter().filter_map(Result::ok).collect()
    }

    /// The indexes on the flood list.
    pub fn flood_list(&self) -> Vec<u32> {
        let chunks = self.flood.iter().filter_map(Result::ok);
        let mut list: Vec<u32> =
            chunks.flat_map(|(_, chunk)| chunk.peers).filter(|index| *index != 0).collect();
        list.sort_unstable();
        list
    }

    /// Everything, for comparing.
    pub fn content(&self) -> Content {
        let vteps = self.vteps.iter().filter_map(Result::ok);
        Content {
            settings: self.settings.get(&0, 0).expect("an array has its entries"),
            slots: self.slots(),
            vteps: vteps.map(|(key, entry)| (key, entry.peer)).collect(),
            flood: self.flood_list(),
        }
    }
}
