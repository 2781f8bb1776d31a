//! "Are you there?" answered by the program itself: no process of this node has a part in it, so
//! the answer tells of the data plane alone.

use aya_ebpf::{bindings::TC_ACT_SHOT, helpers::bpf_redirect, programs::TcContext};
use marengo_common::{
    ASK_ID_OFFSET, ASK_KIND_OFFSET, ASK_MAGIC, ASK_MAGIC_OFFSET, ASK_VERSION, AskKind, DropReason,
    Heard, PeerEntry, Settings, VtepBytes, VtepEntry,
};

use crate::tunnel_key;

/// A question, or an answer and who gives it.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    kind: u8,
    data_plane: u64,
}

/// Reads a frame of the experimental EtherType; `None` if it is somebody else's experiment.
#[inline(always)]
pub(crate) fn read(ctx: &TcContext) -> Option<Asked> {
    let bytes: [u8; 16] = ctx.load(ASK_MAGIC_OFFSET).ok()?;
    let [m0, m1, m2, m3, version, kind, _, _, i0, i1, i2, i3, i4, i5, i6, i7] = bytes;
    if [m0, m1, m2, m3] != ASK_MAGIC || version != ASK_VERSION {
        return None;
    }
    let data_plane = u64::from_be_bytes([i0, i1, i2, i3, i4, i5, i6, i7]);
    Some(Asked { kind, data_plane })
}

/// Sends a question back as an answer, and takes note of an answer. Neither reaches the bridge.
#[inline(always)]
pub(crate) fn handle(
    ctx: &TcContext,
    settings: &Settings,
    asked: Asked,
    sender: &VtepBytes,
    peer: &PeerEntry,
    vtep: &mut VtepEntry,
    tick: u32,
) -> Result<i32, DropReason> {
    if asked.kind == AskKind::Answer as u8 {
        // A slot that does not say whose it is is anybody's.
        let is_the_peer = asked.data_plane == peer.data_plane || peer.data_plane == 0;
        vtep.heard = Heard::answer(tick, is_the_peer).0;
        return Ok(TC_ACT_SHOT);
    }
    vtep.heard = Heard(vtep.heard).frame(tick).0;
    if asked.kind != AskKind::Question as u8 {
        return Ok(TC_ACT_SHOT);
    }
    let id = settings.data_plane.to_be_bytes();
    ctx.store(ASK_KIND_OFFSET, &(AskKind::Answer as u8), 0).map_err(|_| DropReason::TooShort)?;
    ctx.store(ASK_ID_OFFSET, &id, 0).map_err(|_| DropReason::TooShort)?;
    tunnel_key::set(ctx, settings, sender).map_err(|()| DropReason::TunnelKeyRefused)?;
    // Out by the way that all frames take. There the key tells that it needs no other.
    // SAFETY: the helper reads its arguments alone.
    Ok(unsafe { bpf_redirect(settings.vxlan_ifindex, 0) } as i32)
}
