//! Helpers for the unit tests of this module.

use std::{net::SocketAddr, time::Instant};

use rand::{SeedableRng as _, rngs::StdRng};

use super::{Membership, MembershipConfig, MembershipEvent, Transmit};
use crate::identity::{ClusterName, DataPlaneId, Generation, Identity, NodeName};

/// Some instant to count from.
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to begin with")]
pub(crate) fn start() -> Instant {
    Instant::now()
}

/// The identity of node `number`.
pub(crate) fn identity(number: u8) -> Identity {
    let ip = [10, 0, 0, number].into();
    Identity::new(
        NodeName::new(&format!("n{number}")).unwrap(),
        SocketAddr::new(ip, 7946),
        ip,
        SocketAddr::new(ip, 8080),
        Generation(1_000_000 + u64::from(number)),
        DataPlaneId::new(u64::from(number)).unwrap(),
    )
    .unwrap()
}

pub(crate) fn config(cluster: &str) -> MembershipConfig {
    MembershipConfig::new(ClusterName::new(cluster).unwrap())
}

/// A node that is not connected to anybody.
pub(crate) fn node(now: Instant, number: u8) -> Membership {
    let rng = StdRng::seed_from_u64(u64::from(number));
    Membership::new(now, config("test"), identity(number), rng)
}

pub(crate) fn transmits(node: &mut Membership) -> Vec<Transmit> {
    std::iter::from_fn(|| node.poll_transmit()).collect()
}

pub(crate) fn events(node: &mut Membership) -> Vec<MembershipEvent> {
    std::iter::from_fn(|| node.poll_event()).collect()
}

/// Carries datagrams between nodes, without delay, until there are none.
pub(crate) fn exchange(now: Instant, nodes: &mut [&mut Membership]) {
    for _ in 0..100 {
        let mut quiet = true;
        for sender in 0..nodes.len() {
            let from = nodes[sender].identity().addr;
            for transmit in transmits(nodes[sender]) {
                quiet = false;
                let to = nodes.iter_mut().find(|node| node.identity().addr == transmit.to);
                if let Some(to) = to {
                    let _refused = to.handle_datagram(now, from, &transmit.data);
                }
            }
        }
        if quiet {
            return;
        }
    }
    panic!("the nodes do not come to rest");
}
