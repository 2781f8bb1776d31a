//! The ABI between Marengo's eBPF programs and its daemon: the keys and values of the maps, the
//! names they have in the kernel, and the arithmetic that both sides must agree on.
//!
//! Nothing here allocates, does IO or knows aya's programs. Every type that lies in a map is
//! `repr(C)`, has no implicit padding (the asserts beside each type hold that), and stores
//! addresses as bytes in network order, so that `bpftool map dump` shows them as people write
//! them. A change of any layout is a new [`ABI_VERSION`].
#![no_std]
#![warn(missing_docs)]

mod ask;
mod drop_reason;
mod lookup;
mod maps;
mod net;
mod without;

pub use ask::{
    ASK_ETHERTYPE, ASK_ID_OFFSET, ASK_KIND_OFFSET, ASK_LEN, ASK_MAC, ASK_MAGIC, ASK_MAGIC_OFFSET,
    ASK_VERSION, AskKind, question,
};
pub use drop_reason::DropReason;
pub use lookup::{MoveVerdict, PeerVerdict, judge_mac, judge_move};
pub use maps::{
    ABI_VERSION, DropCount, FLOOD_CHUNK, FloodChunk, FloodPosition, Heard, MAX_MACS, MOVE_HOLD,
    MacEntry, MacKey, MapName, PeerEntry, PeerIndex, PeerState, PeerStats, ProgramName, Settings,
    VtepEntry, VtepKey,
};
pub use net::{InvalidVni, MacAddr, Vni, VtepBytes};
pub use without::{WITHOUT, WITHOUT_GENERATIONS, WITHOUT_MOVES};
