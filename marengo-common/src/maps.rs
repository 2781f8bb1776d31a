//! Keys, values, names and sizes of the BPF maps.

use core::{
    mem::{align_of, size_of},
    net::IpAddr,
};

use crate::net::{MacAddr, Vni, VtepBytes, vtep_address, vtep_bytes};

/// The version of every layout in this file, kept in [`Settings::abi_version`].
///
/// A daemon adopts pinned maps only when they carry its own version.
pub const ABI_VERSION: u32 = 2;

/// How many MAC addresses the `macs` map holds before it forgets the least recently used.
pub const MAX_MACS: u32 = 131_072;

/// A station's frame that comes this long after the station was found to have left its sender does
/// not take the station back there: it was under way meanwhile. In units of [`MacEntry::moved_at`]:
/// about 250 ms.
pub const MOVE_HOLD: u32 = 15;

/// How many peers one entry of the flood list names.
pub const FLOOD_CHUNK: usize = 16;

/// A map's names: the one in the kernel (at most 15 characters) and the file under the pin
/// directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapName {
    /// `bpftool map dump name <this>`.
    pub kernel: &'static str,
    /// `bpftool map dump pinned <pin directory>/<this>`.
    pub pin: &'static str,
}

impl MapName {
    /// Peer index to [`PeerEntry`]; written by the daemon.
    pub const PEERS: Self = Self { kernel: "marengo_peers", pin: "peers" };
    /// [`VtepKey`] to [`VtepEntry`]; written by the daemon, but for the time of the last arrival.
    pub const VTEPS: Self = Self { kernel: "marengo_vteps", pin: "vteps" };
    /// [`MacKey`] to [`MacEntry`]; written by the ingress program.
    pub const MACS: Self = Self { kernel: "marengo_macs", pin: "macs" };
    /// [`FloodPosition`] to [`FloodChunk`]; written by the daemon.
    pub const FLOOD: Self = Self { kernel: "marengo_flood", pin: "flood" };
    /// Peer index to [`PeerStats`] on each CPU; written by the programs.
    pub const STATS: Self = Self { kernel: "marengo_stats", pin: "stats" };
    /// [`crate::DropReason`] to [`DropCount`] on each CPU; written by the programs.
    pub const DROPS: Self = Self { kernel: "marengo_drops", pin: "drops" };
    /// One [`Settings`]; written by the daemon.
    pub const SETTINGS: Self = Self { kernel: "marengo_setting", pin: "settings" };

    /// Every map, in the order in which they are made.
    pub const ALL: [Self; 7] = [
        Self::SETTINGS,
        Self::PEERS,
        Self::VTEPS,
        Self::MACS,
        Self::FLOOD,
        Self::STATS,
        Self::DROPS,
    ];
}

/// The names of the programs in the object and in the kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProgramName;

impl ProgramName {
    /// At TC egress of the bridge and of the VXLAN device.
    pub const EGRESS: &'static str = "marengo_egress";
    /// At TC ingress of the VXLAN device.
    pub const INGRESS: &'static str = "marengo_ingress";
}

/// A peer's place in the data plane: key of `peers` and `stats`. Zero is nobody.
pub type PeerIndex = u32;

/// What the programs do with a peer's slot.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum PeerState {
    /// Nothing is sent there and nothing from there is accepted.
    Down = 0,
    /// Frames are sent and accepted.
    Forwarding = 1,
}

impl PeerState {
    /// Reads the byte of a slot; an unknown one is [`PeerState::Down`], as the programs take it.
    pub const fn from_byte(byte: u8) -> Self {
        if byte == Self::Forwarding as u8 { Self::Forwarding } else { Self::Down }
    }
}

/// A peer's slot: the value of `peers`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PeerEntry {
    /// The peer's tunnel address.
    pub vtep: VtepBytes,
    /// A MAC entry is valid only while its stamp equals this. Never the same for two peers of one
    /// data plane.
    pub generation: u32,
    /// The largest inner frame, without its Ethernet header, that fits the path there. Bytes.
    pub path_mtu: u16,
    /// A [`PeerState`].
    pub state: u8,
    /// None defined; zero.
    pub flags: u8,
    /// The identity of the peer's data plane, as it answers when it is asked; zero: not known.
    pub data_plane: u64,
}

impl PeerEntry {
    /// The peer's tunnel address, given the mesh's family: 4 or 6.
    pub fn address(&self, family: u8) -> IpAddr {
        vtep_address(self.vtep, family)
    }
}

/// A tunnel address: the key of `vteps`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct VtepKey {
    /// Network order.
    pub vtep: VtepBytes,
}

impl VtepKey {
    /// Lays an address out as the maps hold it.
    pub fn new(address: IpAddr) -> Self {
        Self { vtep: vtep_bytes(address) }
    }
}

/// Who sends from a tunnel address: the value of `vteps`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VtepEntry {
    /// Index of the peer's slot.
    pub peer: PeerIndex,
    /// A [`Heard`]; written by the ingress program.
    pub heard: u32,
}

/// When the ingress program last accepted a frame from an address, and whether the data plane there
/// is the one that it should be.
///
/// The low 31 bits count units of 2^26 ns (about 67 ms) of the monotonic clock, zero being never.
/// Coarse, so that a busy peer dirties its cache line 15 times a second and not with each frame.
/// They wrap after 4.5 years of uptime: what was heard then is taken for older than it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Heard(pub u32);

impl Heard {
    const SHIFT: u32 = 26;
    /// The data plane that last answered from there is not the peer's.
    const STRANGER: u32 = 1 << 31;

    /// The moment `now_ns` of the monotonic clock, in the map's units.
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are what is kept")]
    pub const fn tick(now_ns: u64) -> u32 {
        (now_ns >> Self::SHIFT) as u32 & !Self::STRANGER
    }

    /// After a frame that says nothing of who sent it.
    #[must_use]
    pub const fn frame(self, tick: u32) -> Self {
        Self(tick | self.0 & Self::STRANGER)
    }

    /// After an answer of the data plane there.
    #[must_use]
    pub const fn answer(tick: u32, is_the_peer: bool) -> Self {
        if is_the_peer { Self(tick) } else { Self(tick | Self::STRANGER) }
    }

    /// Whether the data plane that last answered is not the peer's: what is heard from there is no
    /// sign of the peer.
    pub const fn is_stranger(self) -> bool {
        self.0 & Self::STRANGER != 0
    }

    /// How long before `now_ns` that was, in nanoseconds; `None`: never.
    pub const fn ago_ns(self, now_ns: u64) -> Option<u64> {
        let tick = self.0 & !Self::STRANGER;
        if tick == 0 {
            return None;
        }
        let ticks = Self::tick(now_ns).wrapping_sub(tick) & !Self::STRANGER;
        // Heard since the clock was read.
        let ticks = if ticks > Self::STRANGER - 16 { 0 } else { ticks };
        Some((ticks as u64) << Self::SHIFT)
    }
}

/// A station of the overlay: the key of `macs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct MacKey {
    /// The VXLAN network, host byte order.
    pub vni: u32,
    /// The station's address.
    pub mac: [u8; 6],
    /// Always zero: hash maps compare every byte.
    pub pad: [u8; 2],
}

impl MacKey {
    /// The key of `mac` in network `vni`.
    pub const fn new(vni: u32, mac: MacAddr) -> Self {
        Self { vni, mac: mac.0, pad: [0; 2] }
    }
}

/// Where a station is: the value of `macs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MacEntry {
    /// Index of the slot of the peer behind which the station is. Zero: it was behind a peer, and
    /// has sent from this node since.
    pub peer: PeerIndex,
    /// The slot's generation when the station was heard.
    pub generation: u32,
    /// When it was last heard, give or take a second. Nanoseconds of the monotonic clock.
    pub last_seen_ns: u64,
    /// Index of the slot of the peer that it left, at [`MacEntry::moved_at`]; zero: none.
    pub moved_from: PeerIndex,
    /// When it came to where it is, in units of 2^24 ns (about 17 ms) of the monotonic clock; the
    /// low 32 bits.
    pub moved_at: u32,
}

impl MacEntry {
    /// The moment `now_ns` of the monotonic clock, in the units of [`MacEntry::moved_at`].
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are what is kept")]
    pub const fn move_tick(now_ns: u64) -> u32 {
        (now_ns >> 24) as u32
    }
}

/// A place in the flood list: the key of `flood`. Positions have no gaps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct FloodPosition {
    /// From zero.
    pub position: u32,
}

/// Peers that get a copy of each flooded frame: the value of `flood`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FloodChunk {
    /// Indexes of slots; zeros, at the end of the last chunk, are nobody.
    pub peers: [PeerIndex; FLOOD_CHUNK],
}

/// Traffic with one peer, of one CPU: the value of `stats`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PeerStats {
    /// Frames sent to the peer.
    pub tx_packets: u64,
    /// Bytes of those frames, inner Ethernet headers included.
    pub tx_bytes: u64,
    /// Frames accepted from the peer.
    pub rx_packets: u64,
    /// Bytes of those frames, inner Ethernet headers included.
    pub rx_bytes: u64,
}

/// Drops for one reason, of one CPU: the value of `drops`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DropCount {
    /// Frames.
    pub packets: u64,
    /// Bytes of those frames.
    pub bytes: u64,
}

/// What the programs know of this node: the only value of `settings`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// [`ABI_VERSION`] of the daemon that made the maps; zero until the daemon has written it.
    pub abi_version: u32,
    /// The VXLAN network, host byte order.
    pub vni: u32,
    /// The identity of this data plane: it is as old as the maps, and the programs tell it to peers
    /// that ask.
    pub data_plane: u64,
    /// This node's tunnel address: the outer source of every frame.
    pub vtep: VtepBytes,
    /// Interface index of the VXLAN device.
    pub vxlan_ifindex: u32,
    /// The highest generation that a slot was ever given. The daemon raises it before it gives one
    /// out, so that no generation is used twice even if a slot is lost.
    pub generation: u32,
    /// Family of every VTEP: 4 or 6.
    pub family: u8,
    /// Always zero.
    pub pad: [u8; 7],
}

impl Settings {
    /// Lays out the settings of a node.
    pub fn new(
        vni: Vni,
        vtep: IpAddr,
        data_plane: u64,
        vxlan_ifindex: u32,
        generation: u32,
    ) -> Self {
        Self {
            abi_version: ABI_VERSION,
            vni: vni.get(),
            data_plane,
            vtep: vtep_bytes(vtep),
            vxlan_ifindex,
            generation,
            family: if vtep.is_ipv4() { 4 } else { 6 },
            pad: [0; 7],
        }
    }
}

const _: () = {
    assert!(size_of::<PeerEntry>() == 32 && align_of::<PeerEntry>() == 8);
    assert!(size_of::<VtepKey>() == 16);
    assert!(size_of::<VtepEntry>() == 8);
    assert!(size_of::<MacKey>() == 12);
    assert!(size_of::<MacEntry>() == 24);
    assert!(size_of::<FloodPosition>() == 4);
    assert!(size_of::<FloodChunk>() == 64);
    assert!(size_of::<PeerStats>() == 32);
    assert!(size_of::<DropCount>() == 16);
    assert!(size_of::<Settings>() == 48);
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        DropCount, FloodChunk, FloodPosition, MacEntry, MacKey, PeerEntry, PeerStats, Settings,
        VtepEntry, VtepKey,
    };

    macro_rules! pod {
        ($($type:ty),*) => {
            $(
                // SAFETY: `repr(C)` with explicit padding only, as the asserts above hold, and every
                // bit pattern is a value.
                unsafe impl aya::Pod for $type {}
            )*
        };
    }

    pod!(
        DropCount,
        FloodChunk,
        FloodPosition,
        MacEntry,
        MacKey,
        PeerEntry,
        PeerStats,
        Settings,
        VtepEntry,
        VtepKey
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_is_told_with_its_age_and_whose_it_is() {
        let second = 1_000_000_000;
        let tick = Heard::tick(90 * second);

        let heard = Heard::default().frame(tick);
        assert!(!heard.is_stranger());
        assert_eq!(Heard::default().ago_ns(second), None);
        let ago = heard.ago_ns(92 * second).unwrap();
        assert!((1_900_000_000..2_100_000_000).contains(&ago), "{ago}");

        assert_eq!(heard.ago_ns(90 * second - 500_000_000), Some(0), "read before it was heard");

        let stranger = Heard::answer(tick, false);
        assert!(stranger.is_stranger() && stranger.frame(tick + 1).is_stranger());
        assert_eq!(stranger.ago_ns(90 * second), Some(0));
        assert!(!Heard::answer(tick, true).is_stranger());
    }

    #[test]
    fn kernel_names_fit_the_15_characters_that_the_kernel_keeps() {
        for name in MapName::ALL {
            assert!(name.kernel.len() <= 15, "{}", name.kernel);
        }
        assert!(ProgramName::EGRESS.len() <= 15 && ProgramName::INGRESS.len() <= 15);
    }
}
