//! What the maps say, held against what is true.
//!
//! Some hosts, some stations that move between them, and a seed that says what happens: daemons are
//! killed, stopped, leave and come back, hosts lose their power, are replaced and renumbered. A model
//! knows where each station is and what each node has heard of that. After each event a checker reads
//! every node's maps, and every frame that the stations send is followed to where it comes out.

mod check;
mod event;
mod host;
mod model;
mod report;
mod run;
pub mod tables;
mod tag;
mod tap;
mod traffic;

pub use self::{
    check::Checks,
    report::{Report, Violation},
    run::{Plan, run},
    traffic::Frames,
};
