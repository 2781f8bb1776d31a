//! Setting and reading a frame's tunnel key.

use core::mem::{size_of, zeroed};

use aya_ebpf::{
    bindings::{BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, bpf_tunnel_key},
    helpers::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key},
    programs::TcContext,
};
use marengo_common::{Settings, VtepBytes};

/// Hops that an outer packet may take: a routed underlay is a handful, this is generous.
const TTL: u8 = 64;

/// What a frame's tunnel key says.
#[derive(Clone, Copy)]
pub(crate) struct TunnelKey {
    pub(crate) vni: u32,
    /// Outer source address: of a frame that came, its sender; of one that goes, this node.
    pub(crate) source: VtepBytes,
}

/// Makes the VXLAN device send the frame to `remote`, from this node's own VTEP.
#[inline(always)]
pub(crate) fn set(ctx: &TcContext, settings: &Settings, remote: &VtepBytes) -> Result<(), ()> {
    // SAFETY: zero is a value of every field, and the kernel wants the padding to be zero.
    let mut key: bpf_tunnel_key = unsafe { zeroed() };
    key.tunnel_id = settings.vni;
    key.tunnel_ttl = TTL;
    let flags = if settings.family == 6 {
        key.__bindgen_anon_1.remote_ipv6 = words(remote);
        key.__bindgen_anon_3.local_ipv6 = words(&settings.vtep);
        // RFC 6935 allows UDP without a checksum over IPv6 for tunnels, but middle boxes need not
        // know it.
        BPF_F_TUNINFO_IPV6
    } else {
        key.__bindgen_anon_1.remote_ipv4 = host_order(remote);
        key.__bindgen_anon_3.local_ipv4 = host_order(&settings.vtep);
        // RFC 7348, section 5: the outer checksum should be zero over IPv4.
        BPF_F_ZERO_CSUM_TX
    };
    // SAFETY: `key` is initialized and as long as the size says.
    let result = unsafe {
        bpf_skb_set_tunnel_key(
            ctx.skb.skb,
            &raw mut key,
            size_of::<bpf_tunnel_key>() as u32,
            u64::from(flags),
        )
    };
    if result == 0 { Ok(()) } else { Err(()) }
}

/// Reads the frame's tunnel key, if it has one of the mesh's family.
#[inline(always)]
pub(crate) fn get(ctx: &TcContext, settings: &Settings) -> Option<TunnelKey> {
    // SAFETY: zero is a value of every field.
    let mut key: bpf_tunnel_key = unsafe { zeroed() };
    let v6 = settings.family == 6;
    let flags = if v6 { BPF_F_TUNINFO_IPV6 } else { 0 };
    // SAFETY: `key` is as long as the size says.
    let result = unsafe {
        bpf_skb_get_tunnel_key(
            ctx.skb.skb,
            &raw mut key,
            size_of::<bpf_tunnel_key>() as u32,
            u64::from(flags),
        )
    };
    if result != 0 {
        return None;
    }
    // `bpf_skb_get_tunnel_key` calls the outer source "remote", whichever way the frame goes.
    let mut source = [0; 16];
    // SAFETY: the flags chose which member of the union the kernel has written.
    unsafe {
        if v6 {
            let words = key.__bindgen_anon_1.remote_ipv6;
            for (to, word) in source.chunks_exact_mut(4).zip(words) {
                to.copy_from_slice(&word.to_ne_bytes());
            }
        } else {
            source[..4].copy_from_slice(&key.__bindgen_anon_1.remote_ipv4.to_be_bytes());
        }
    }
    Some(TunnelKey { vni: key.tunnel_id, source })
}

/// An IPv4 address the way `bpf_tunnel_key` wants it.
#[inline(always)]
fn host_order(bytes: &VtepBytes) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// An IPv6 address the way `bpf_tunnel_key` wants it: the bytes as they are, as four words.
#[inline(always)]
fn words(bytes: &VtepBytes) -> [u32; 4] {
    let b = bytes;
    [
        u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
        u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
        u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
    ]
}
