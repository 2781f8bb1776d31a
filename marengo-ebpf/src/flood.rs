//! Head-end replication: one copy of a frame for each peer on the flood list.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_clone_redirect, bpf_loop},
    programs::TcContext,
};
use marengo_common::{
    DropReason, FLOOD_CHUNK, FloodPosition, PeerEntry, PeerState, Settings, VtepBytes,
};

use crate::{
    count,
    maps::{self, FLOOD, PEERS},
    tunnel_key,
};

/// Chunks that are looked at, so that the loop has a bound: more than any `peers` map has slots.
const MAX_CHUNKS: u32 = 4096;

/// What the loop over the chunks needs. Holds the peer that has not been sent to yet: the last one
/// of the list gets the frame itself, not a copy.
#[repr(C)]
struct Walk {
    skb: *mut __sk_buff,
    pending: u32,
    vtep: VtepBytes,
}

/// Sends the frame to every peer on the list.
///
/// A copy enters the VXLAN device through `bpf_clone_redirect` and so runs the egress program once
/// more, where its key tells that it is done. That works because the device has no queue.
#[inline(always)]
pub(crate) fn to_all_peers(ctx: &TcContext, settings: &Settings) -> Result<(), DropReason> {
    let mut walk = Walk { skb: ctx.skb.skb, pending: 0, vtep: [0; 16] };

    // SAFETY: the callback takes the context that is passed beside it, and does not keep it.
    unsafe {
        bpf_loop(MAX_CHUNKS, visit_chunk as *const () as *mut c_void, (&raw mut walk).cast(), 0);
    }

    if walk.pending == 0 {
        return Err(DropReason::NoPeers);
    }
    tunnel_key::set(ctx, settings, &walk.vtep).map_err(|()| DropReason::TunnelKeyRefused)?;
    count::sent(walk.pending, ctx.len());
    Ok(())
}

/// Visits one chunk of the list. Returns 1, which ends the loop, behind the last chunk.
///
/// Copies take their time, and the kernel uses the memory of a chunk that was replaced meanwhile
/// again: after each peer the chunk is looked up anew.
extern "C" fn visit_chunk(position: u64, walk: *mut c_void) -> i64 {
    // SAFETY: `to_all_peers` passes a `Walk`.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    let position = FloodPosition { position: position as u32 };
    // SAFETY: values of the map are only ever replaced as a whole.
    let Some(mut chunk) = (unsafe { FLOOD.get(&position) }) else { return 1 };
    // As they are now: a copy with another address would not be known for one.
    let Ok(settings) = maps::settings() else { return 1 };
    for slot in 0..FLOOD_CHUNK {
        let index = chunk.peers[slot];
        if index == 0 {
            continue;
        }
        // SAFETY: as above.
        let Some(peer) = (unsafe { PEERS.get(&index) }) else { continue };
        if peer.state == PeerState::Forwarding as u8 {
            visit_peer(walk, settings, index, peer);
            // SAFETY: as above.
            let Some(now) = (unsafe { FLOOD.get(&position) }) else { return 1 };
            chunk = now;
        }
    }
    0
}

/// Sends a copy to the peer visited before, and leaves this one pending.
#[inline(always)]
fn visit_peer(walk: &mut Walk, settings: &Settings, index: u32, peer: &PeerEntry) {
    let (previous, vtep) = (walk.pending, walk.vtep);
    walk.pending = index;
    walk.vtep = peer.vtep;
    if previous == 0 {
        return;
    }
    let ctx = TcContext::new(walk.skb);
    let len = ctx.len();
    if tunnel_key::set(&ctx, settings, &vtep).is_err() {
        count::dropped(DropReason::TunnelKeyRefused, len);
        return;
    }
    // SAFETY: the context is the program's own.
    let result = unsafe { bpf_clone_redirect(walk.skb, settings.vxlan_ifindex, 0) };
    if result == 0 {
        count::sent(previous, len);
    } else {
        count::dropped(DropReason::CopyFailed, len);
    }
}
