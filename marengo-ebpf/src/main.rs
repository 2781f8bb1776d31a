//! Marengo's TC programs: look up, set the tunnel key, count. No policy and no state machine: what
//! can be decided earlier, the daemon decides and leaves in a map.
#![no_std]
#![no_main]
#![expect(unreachable_pub, reason = "programs are found by their symbol")]

mod ask;
mod count;
mod egress;
mod flood;
mod frame;
mod ingress;
mod macs;
mod maps;
mod tunnel_key;
mod without;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use aya_log_ebpf::debug;
use marengo_common::DropReason;

/// At TC egress of the bridge (frames of the host's own stack) and of the VXLAN device (all other
/// frames, and every frame for more than one peer).
#[classifier]
pub fn marengo_egress(ctx: TcContext) -> i32 {
    verdict(&ctx, egress::try_egress(&ctx).map(|()| TC_ACT_UNSPEC))
}

/// At TC ingress of the VXLAN device.
#[classifier]
pub fn marengo_ingress(ctx: TcContext) -> i32 {
    verdict(&ctx, ingress::try_ingress(&ctx))
}

/// A frame that is not dropped goes on to whatever program is attached behind this one
/// (`TC_ACT_UNSPEC`), or where the program sent it.
#[inline(always)]
fn verdict(ctx: &TcContext, result: Result<i32, DropReason>) -> i32 {
    match result {
        Ok(action) => action,
        Err(reason) => {
            count::dropped(reason, ctx.len());
            debug!(ctx, "frame of {} bytes dropped: {}", ctx.len(), reason.label());
            TC_ACT_SHOT
        }
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
