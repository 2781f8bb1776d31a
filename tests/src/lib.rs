//! The harness of the integration tests: namespaces, daemons, packets, faults.
//!
//! A test makes a [`Mesh`]: a router namespace and one namespace a node, joined by capped veths. It
//! starts daemons on the nodes, looks at what they say and what the kernel holds, breaks something,
//! and waits for what must follow. Whatever happens, nothing is left behind.
//!
//! Functions here panic when something fails: they are called by tests alone.
#![allow(clippy::print_stderr, reason = "what a failed test prints is all that one has of it")]

pub mod bpf;
pub mod capture;
pub mod container;
pub mod cpu_quota;
pub mod diagnostics;
pub mod exec;
pub mod faults;
pub mod host_state;
pub mod http;
pub mod link_events;
pub mod map_writes;
pub mod mesh;
pub mod netns;
pub mod node;
pub mod object;
pub mod packet;
pub mod packet_socket;
pub mod probe;
pub mod requirements;
pub mod rounds;
pub mod sandbox;
pub mod split;
pub mod stream;
mod tell;
pub mod truth;
pub mod view;
pub mod wait;
mod watchdog;

pub use self::{
    capture::Capture, container::Container, faults::Saboteur, host_state::HostState, mesh::Mesh,
    netns::Namespace, node::Node, probe::Probe, tell::tell,
};
