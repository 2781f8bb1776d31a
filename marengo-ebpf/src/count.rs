//! Counters. Each CPU has its own, so adding is no atomic operation.

use marengo_common::{DropCount, DropReason, PeerIndex, PeerStats};

use crate::maps::{DROPS, STATS};

/// Counts a frame that was dropped.
#[inline(always)]
pub(crate) fn dropped(reason: DropReason, bytes: u32) {
    let Some(count) = DROPS.get_ptr_mut(reason as u32) else { return };
    // SAFETY: the verifier has seen the null check; the slot belongs to this CPU.
    let count: &mut DropCount = unsafe { &mut *count };
    count.packets += 1;
    count.bytes += u64::from(bytes);
}

/// Counts a frame sent to a peer.
#[inline(always)]
pub(crate) fn sent(peer: PeerIndex, bytes: u32) {
    if let Some(stats) = stats_of(peer) {
        stats.tx_packets += 1;
        stats.tx_bytes += u64::from(bytes);
    }
}

/// Counts a frame accepted from a peer.
#[inline(always)]
pub(crate) fn received(peer: PeerIndex, bytes: u32) {
    if let Some(stats) = stats_of(peer) {
        stats.rx_packets += 1;
        stats.rx_bytes += u64::from(bytes);
    }
}

/// The peer's counters on this CPU, made when its first frame passes. `None` if there is no memory
/// for them: the frame passes uncounted.
#[inline(always)]
fn stats_of(peer: PeerIndex) -> Option<&'static mut PeerStats> {
    let stats = match STATS.get_ptr_mut(peer) {
        Some(stats) => stats,
        None => {
            // Another CPU may have been first: then this fails and the next look-up finds it.
            let _made = STATS.insert(peer, &PeerStats::default(), 1 /* BPF_NOEXIST */);
            STATS.get_ptr_mut(peer)?
        }
    };
    // SAFETY: the verifier has seen the null check; the slot belongs to this CPU.
    Some(unsafe { &mut *stats })
}
