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
    maps::{FLOOD, PEERS},
    tunnel_key,
};

/// Chunks that are looked at, so that the loop has a bound: more than any `peers` map has slots.
const MAX_CHUNKS: u32 = 4096;

/// What the loop over the chunks needs. Holds the peer that has not been sent to yet: the last one
/// of the list gets the frame itself, not a copy.
#[repr(C)]
struct Walk {
    skb: *mut __sk_buff,
    settings: Settings,
    pending: u32,
    vtep: VtepBytes,
}

/// Sends the frame to every peer on the list.
///
/// A copy enters the VXLAN device through `bpf_clone_redirect` and so runs the egress program once
/// more, where its key tells that it is done. That works because the device has no queue.
#[inline(always)]
pub(crate) fn to_all_peers(ctx: &TcContext, settings: &Settings) -> Result<(), DropReason> {
    let mut walk = Walk { skb: ctx.skb.skb, settings: *settings, pending: 0, vtep: [0; 16] };

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
extern "C" fn visit_chunk(position: u64, walk: *mut c_void) -> i64 {
    // SAFETY: `to_all_peers` passes a `Walk`.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    let Some(chunk) = (
        // SAFETY: values of the map are only ever replaced as a whole.
        unsafe { FLOOD.get(&FloodPosition { position: position as u32 }) }
    ) else {
        return 1;
    };
    for slot in 0..FLOOD_CHUNK {
        let index = chunk.peers[slot];
        if index == 0 {
            continue;
        }
        // SAFETY: as above.
        let Some(peer) = (unsafe { PEERS.get(&index) }) else { continue };
        if peer.state == PeerState::Forwarding as u8 {
            visit_peer(walk, index, peer);
        }
    }
    0
}

/// Sends a copy to the peer visited before, and leaves this one pending.
#[inline(always)]
fn visit_peer(walk: &mut Walk, index: u32, peer: &PeerEntry) {
    let (previous, vtep) = (walk.pending, walk.vtep);
    walk.pending = index;
    walk.vtep = peer.vtep;
    if previous == 0 {
        return;
    }
    let ctx = TcContext::new(walk.skb);
    let len = ctx.len();
    if tunnel_key::set(&ctx, &walk.settings, &vtep).is_err() {
        count::dropped(DropReason::TunnelKeyRefused, len);
        return;
    }
    // SAFETY: the context is the program's own.
    let result = unsafe { bpf_clone_redirect(walk.skb, walk.settings.vxlan_ifindex, 0) };
    if result == 0 {
        count::sent(previous, len);
    } else {
        count::dropped(DropReason::CopyFailed, len);
    }
}
