//! The way in: who sent this, may it come in, and which station is behind that peer?

use aya_ebpf::{bindings::TC_ACT_UNSPEC, helpers::bpf_ktime_get_ns, programs::TcContext};
use marengo_common::{ASK_ETHERTYPE, DropReason, Heard, PeerState, VtepEntry, VtepKey};

use crate::{
    ask, count, frame, macs,
    maps::{self, PEERS, VTEPS},
    tunnel_key,
};

/// Lets a frame in if it comes from a member and belongs to our network. Returns what the kernel is
/// to do with it.
///
/// A collect-metadata device takes every VNI from every sender (`vxlan_vs_find_vni`): this program
/// is the lock on that door.
#[inline(always)]
pub(crate) fn try_ingress(ctx: &TcContext) -> Result<i32, DropReason> {
    let settings = maps::settings()?;
    let key = tunnel_key::get(ctx, settings).ok_or(DropReason::NoTunnelKey)?;
    if key.vni != settings.vni {
        return Err(DropReason::WrongVni);
    }
    let vtep = VTEPS.get_ptr_mut(&VtepKey { vtep: key.source }).ok_or(DropReason::UnknownVtep)?;
    // SAFETY: the verifier has seen the null check; nobody else writes `heard`.
    let vtep: &mut VtepEntry = unsafe { &mut *vtep };
    // SAFETY: values of the map are only ever replaced as a whole.
    let peer = unsafe { PEERS.get(&vtep.peer) }.ok_or(DropReason::UnknownVtep)?;
    if peer.state != PeerState::Forwarding as u8 {
        return Err(DropReason::UnknownVtep);
    }
    let header = frame::header(ctx)?;
    if header.source.is_group() || header.source.is_zero() {
        return Err(DropReason::BadSourceMac);
    }

    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let tick = Heard::tick(now);
    if header.ethertype == ASK_ETHERTYPE
        && let Some(asked) = ask::read(ctx)
    {
        return ask::handle(ctx, settings, asked, &key.source, peer, vtep, tick);
    }
    let heard = Heard(vtep.heard).frame(tick);
    if vtep.heard != heard.0 {
        vtep.heard = heard.0;
    }
    macs::learn(settings, header.source, vtep.peer, peer.generation, now)?;
    count::received(vtep.peer, ctx.len());
    Ok(TC_ACT_UNSPEC)
}
