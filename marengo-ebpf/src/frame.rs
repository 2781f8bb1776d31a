//! Reading an Ethernet header.

use aya_ebpf::programs::TcContext;
use marengo_common::{DropReason, MacAddr};

/// The two addresses of an Ethernet header.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) destination: MacAddr,
    pub(crate) source: MacAddr,
}

/// Reads the addresses. `bpf_skb_load_bytes` also reads what is not in the linear part.
#[inline(always)]
pub(crate) fn addresses(ctx: &TcContext) -> Result<Addresses, DropReason> {
    let bytes: [u8; 12] = ctx.load(0).map_err(|_| DropReason::TooShort)?;
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = bytes;
    Ok(Addresses {
        destination: MacAddr([d0, d1, d2, d3, d4, d5]),
        source: MacAddr([s0, s1, s2, s3, s4, s5]),
    })
}
