//! The eBPF object, loaded without a daemon.

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, MapData, PerCpuArray, PerCpuHashMap},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use marengo_common::{
    DropCount, DropReason, FloodChunk, FloodPosition, MacEntry, MacKey, MapName, PeerEntry,
    PeerIndex, PeerStats, ProgramName, Settings, VtepEntry, VtepKey, WITHOUT,
};

use crate::requirements;

/// The level below which the programs log: aya-log's global.
const LOG_LEVEL: &str = "AYA_LOG_LEVEL";

/// Both programs, and all maps.
#[derive(Debug)]
pub struct Object {
    ebpf: Ebpf,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Dropped: `TC_ACT_SHOT`.
    Shot,
    /// On to whatever is attached behind: `TC_ACT_UNSPEC`.
    Next,
    /// Anything else.
    Other(u32),
}

/// What the verifier and the compiler have made of a program.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Instructions that the verifier looked at.
    pub verified: u32,
    /// Bytes after the verifier has taken out what cannot be reached.
    pub translated: u32,
}

impl Object {
    /// Loads the object and its programs. Level 0 is none, 4 is debug.
    pub fn load(log_level: u8) -> Self {
        Self::load_with(log_level, 0)
    }

    /// Loads it without some of its mechanisms.
    pub fn load_without(without: u32) -> Self {
        Self::load_with(0, without)
    }

    fn load_with(log_level: u8, without: u32) -> Self {
        let bytes = std::fs::read(requirements::bpf_object()).expect("the object can be read");
        let mut loader = EbpfLoader::new();
        let mut ebpf = loader
            .override_global(LOG_LEVEL, &log_level, true)
            .override_global(WITHOUT, &without, true)
            .load(&bytes)
            .unwrap_or_else(|error| panic!("the kernel refused the maps: {error:?}"));
        for name in [ProgramName::INGRESS, ProgramName::EGRESS] {
            let program: &mut SchedClassifier = ebpf
                .program_mut(name)
                .unwrap_or_else(|| panic!("the object has no {name}"))
                .try_into()
                .expect("it is a TC program");
            program
                .load()
                .unwrap_or_else(|error| panic!("{name} at log level {log_level}: {error}"));
        }
        Self { ebpf }
    }

    fn program(&self, name: &str) -> &SchedClassifier {
        let program = self.ebpf.program(name).expect("it was loaded");
        program.try_into().expect("it is a TC program")
    }

    pub fn size(&self, name: &str) -> Size {
        let info = self.program(name).info().expect("a loaded program can be asked");
        Size {
            verified: info.verified_instruction_count().expect("kernels since 5.16 count them"),
            translated: info.size_translated().expect("root may see it"),
        }
    }

    /// Runs a program on a frame, as if it passed the device with this index.
    pub fn run(&self, name: &str, frame: &[u8], ifindex: u32) -> Verdict {
        // __sk_buff: 48 words as of its first version with `hwtstamp`; `ifindex` is the tenth.
        let mut context = [0; 192];
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let result = self.program(name).test_run(options);
        match result.expect("the kernel runs it").return_value {
            2 => Verdict::Shot,
            u32::MAX => Verdict::Next,
            other => Verdict::Other(other),
        }
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: MapName) -> HashMap<&mut MapData, K, V> {
        let map = self.ebpf.map_mut(name.kernel);
        let map = map.unwrap_or_else(|| panic!("the object has no {}", name.kernel));
        map.try_into().expect("the map has the types of marengo-common")
    }

    pub fn put_settings(&mut self, settings: Settings) {
        let map = self.ebpf.map_mut(MapName::SETTINGS.kernel).expect("the object has settings");
        let mut map: Array<_, Settings> = map.try_into().expect("it is an array");
        map.set(0, settings, 0).expect("there is room");
    }

    pub fn put_peer(&mut self, index: PeerIndex, peer: PeerEntry) {
        self.hash(MapName::PEERS).insert(index, peer, 0).expect("there is room");
        let vtep = VtepKey { vtep: peer.vtep };
        let entry = VtepEntry { peer: index, heard: 0 };
        self.hash(MapName::VTEPS).insert(vtep, entry, 0).expect("there is room");
    }

    pub fn put_mac(&mut self, key: MacKey, entry: MacEntry) {
        self.hash(MapName::MACS).insert(key, entry, 0).expect("there is room");
    }

    pub fn mac(&mut self, key: MacKey) -> Option<MacEntry> {
        self.hash(MapName::MACS).get(&key, 0).ok()
    }

    pub fn put_flood(&mut self, position: u32, chunk: FloodChunk) {
        let position = FloodPosition { position };
        self.hash(MapName::FLOOD).insert(position, chunk, 0).expect("there is room");
    }

    /// Frames dropped for a reason, on all CPUs.
    pub fn drops(&mut self, reason: DropReason) -> u64 {
        let map = self.ebpf.map(MapName::DROPS.kernel).expect("the object has drops");
        let map: PerCpuArray<_, DropCount> = map.try_into().expect("it is an array");
        let counts = map.get(&(reason as u32), 0).expect("every reason has a slot");
        counts.iter().map(|count| count.packets).sum()
    }

    /// Frames and bytes sent to a peer, on all CPUs.
    pub fn sent(&mut self, peer: PeerIndex) -> (u64, u64) {
        let map = self.ebpf.map(MapName::STATS.kernel).expect("the object has stats");
        let map: PerCpuHashMap<_, PeerIndex, PeerStats> = map.try_into().expect("it is a hash");
        let Ok(stats) = map.get(&peer, 0) else { return (0, 0) };
        stats.iter().fold((0, 0), |(packets, bytes), stats| {
            (packets + stats.tx_packets, bytes + stats.tx_bytes)
        })
    }
}
