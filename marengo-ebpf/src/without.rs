//! What a test has taken away: a constant that the daemon sets before the programs are loaded, so
//! that the verifier removes what is not asked for.

use core::ptr;

pub(crate) use marengo_common::{WITHOUT_GENERATIONS, WITHOUT_MOVES};

/// Its name is [`marengo_common::WITHOUT`].
#[unsafe(no_mangle)]
static MARENGO_WITHOUT: u32 = 0;

/// Whether the mechanism is there.
#[inline(always)]
pub(crate) fn has(mechanism: u32) -> bool {
    // SAFETY: a static is readable; volatile, so that the compiler does not take it for zero.
    unsafe { ptr::read_volatile(&raw const MARENGO_WITHOUT) & mechanism == 0 }
}
