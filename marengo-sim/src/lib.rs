//! A Marengo cluster in a box: no socket, no thread, no sleep.
//!
//! The membership and the converge code are the real ones; the network, the kernels, the clocks and
//! the accidents are not. One seed decides everything that happens in a run.

#![forbid(unsafe_code)]

pub mod chaos;
pub mod cpu;
pub mod fake_kernel;
pub mod host_kernel;
pub mod measure;
pub mod network;
pub mod node;
mod queue;
pub mod shell;
pub mod world;

use std::time::Duration;

/// So many milliseconds.
pub const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// So many seconds.
pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}
