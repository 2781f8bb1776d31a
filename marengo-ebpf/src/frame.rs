//! Reading an Ethernet header.

use aya_ebpf::programs::TcContext;
use marengo_common::{DropReason, MacAddr};

/// An Ethernet header.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub(crate) destination: MacAddr,
    pub(crate) source: MacAddr,
    pub(crate) ethertype: u16,
}

/// Reads the header. `bpf_skb_load_bytes` also reads what is not in the linear part.
#[inline(always)]
pub(crate) fn header(ctx: &TcContext) -> Result<Header, DropReason> {
    let bytes: [u8; 14] = ctx.load(0).map_err(|_| DropReason::TooShort)?;
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = bytes;
    Ok(Header {
        destination: MacAddr([d0, d1, d2, d3, d4, d5]),
        source: MacAddr([s0, s1, s2, s3, s4, s5]),
        ethertype: u16::from_be_bytes([t0, t1]),
    })
}
