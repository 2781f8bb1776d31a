//! The way in: who sent this, may it come in, and which station is behind that peer?

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::TcContext};
use marengo_common::{
    DropReason, MacAddr, MacEntry, MacKey, PeerIndex, PeerState, Settings, VtepEntry, VtepKey,
};

use crate::{
    count, frame,
    maps::{self, MACS, PEERS, VTEPS},
    tunnel_key,
};

/// A MAC entry's time is renewed at most this often, so that a busy station does not dirty its
/// cache line with each frame.
const RENEW_AFTER_NS: u64 = 1_000_000_000;

/// Lets a frame in if it comes from a member and belongs to our network.
///
/// A collect-metadata device takes every VNI from every sender (`vxlan_vs_find_vni`): this program
/// is the lock on that door.
#[inline(always)]
pub(crate) fn try_ingress(ctx: &TcContext) -> Result<(), DropReason> {
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
    let source = frame::addresses(ctx)?.source;
    if source.is_group() || source.is_zero() {
        return Err(DropReason::BadSourceMac);
    }

    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let heard = (now >> VtepEntry::HEARD_SHIFT) as u32;
    if vtep.heard != heard {
        vtep.heard = heard;
    }
    learn(settings, source, vtep.peer, peer.generation, now);
    count::received(vtep.peer, ctx.len());
    Ok(())
}

/// Remembers that a station is behind a peer.
#[inline(always)]
fn learn(settings: &Settings, mac: MacAddr, peer: PeerIndex, generation: u32, now: u64) {
    let key = MacKey::new(settings.vni, mac);
    if let Some(known) = MACS.get_ptr_mut(&key) {
        // SAFETY: the verifier has seen the null check.
        let known: &mut MacEntry = unsafe { &mut *known };
        if known.peer == peer && known.generation == generation {
            if now.wrapping_sub(known.last_seen_ns) > RENEW_AFTER_NS {
                known.last_seen_ns = now;
            }
            return;
        }
    }
    // A station that moved replaces its whole entry: an index beside another's generation is never
    // seen. If there is no memory for it, its frames are flooded, as before it was learnt.
    let _learnt = MACS.insert(&key, &MacEntry { peer, generation, last_seen_ns: now }, 0);
}
