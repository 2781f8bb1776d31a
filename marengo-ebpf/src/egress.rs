//! The way out: find the peer behind the destination and set the tunnel key.

use aya_ebpf::programs::TcContext;
use marengo_common::{DropReason, MacKey, PeerVerdict, Settings, judge_mac};

use crate::{
    count, flood, frame,
    maps::{self, MACS, PEERS},
    tunnel_key,
};

/// Runs at two hooks. On the bridge's own egress a frame without a known peer goes on without a key:
/// the bridge may know a local port for it. On the VXLAN device it is the last chance: there it is
/// flooded.
#[inline(always)]
pub(crate) fn try_egress(ctx: &TcContext) -> Result<(), DropReason> {
    let settings = maps::settings()?;
    // SAFETY: the context outlives the program.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let last_chance = ifindex == settings.vxlan_ifindex;

    if last_chance && has_our_key(ctx, settings) {
        return Ok(());
    }

    let destination = frame::addresses(ctx)?.destination;
    if !destination.is_group()
        // SAFETY: values of the map are only ever replaced as a whole.
        && let Some(mac) = unsafe { MACS.get(&MacKey::new(settings.vni, destination)) }
        // SAFETY: as above.
        && let Some(peer) = unsafe { PEERS.get(&mac.peer) }
        && judge_mac(mac, peer) == PeerVerdict::Send
    {
        tunnel_key::set(ctx, settings, &peer.vtep).map_err(|()| DropReason::TunnelKeyRefused)?;
        count::sent(mac.peer, ctx.len());
        return Ok(());
    }

    if last_chance { flood::to_all_peers(ctx, settings) } else { Ok(()) }
}

/// True for a frame whose key one of our programs has set: a host's frame that passed the bridge
/// hook, or a copy made by the flood.
///
/// A frame that arrived through some other tunnel carries that tunnel's key. Its outer source is not
/// this node's VTEP, and it gets a key of ours like any other.
#[inline(always)]
fn has_our_key(ctx: &TcContext, settings: &Settings) -> bool {
    match tunnel_key::get(ctx, settings) {
        Some(key) => key.vni == settings.vni && key.source == settings.vtep,
        None => false,
    }
}
