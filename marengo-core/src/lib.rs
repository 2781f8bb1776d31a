//! Marengo's decisions, without any IO.
//!
//! Values go in and values come out: this crate opens no socket, reads no clock and waits for
//! nothing. Whatever needs the time takes `now` as an argument, and chance comes from a generator
//! that the caller seeds. A whole cluster therefore runs inside one test on a virtual clock.
//!
//! - [`identity`]: what a node says about itself.
//! - [`members`]: who is there, as the data plane and the operator see it.
//! - [`membership`]: the gossip state machine around foca.
//! - [`slots`]: which place in the data plane stands for which peer.
//! - [`desired`], [`state`], [`plan`], [`op`]: what should be in the kernel, what is, and the way
//!   from one to the other.
//! - [`witness`]: whom of those that gossip lost the data plane still hears.
//! - [`converge`]: when to go that way.
//! - [`fights`]: what another hand keeps undoing.
//! - [`control`]: what a test may take away from all this.
//! - [`settings`]: what the operator decided.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![warn(clippy::wildcard_enum_match_arm)]

pub mod control;
pub mod converge;
pub mod desired;
pub mod fights;
pub mod flood_list;
pub mod identity;
pub mod members;
pub mod membership;
pub mod op;
pub mod plan;
pub mod settings;
pub mod slots;
pub mod state;
pub mod witness;
