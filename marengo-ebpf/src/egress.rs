//! The way out: find the peer behind the destination and set the tunnel key.

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::TcContext};
use marengo_common::{ASK_ETHERTYPE, DropReason, Settings};

use crate::{ask, count, flood, frame, macs, maps, tunnel_key};

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

    let header = frame::header(ctx)?;
    if header.ethertype == ASK_ETHERTYPE && ask::read(ctx).is_some() {
        // Stations have no say in who is there.
        return Err(DropReason::Forged);
    }
    // SAFETY: the helper takes no argument.
    macs::is_here(settings, header.source, || unsafe { bpf_ktime_get_ns() });
    if !header.destination.is_group()
        && let Some((index, vtep)) = macs::peer_of(settings, header.destination)
    {
        tunnel_key::set(ctx, settings, &vtep).map_err(|()| DropReason::TunnelKeyRefused)?;
        count::sent(index, ctx.len());
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
