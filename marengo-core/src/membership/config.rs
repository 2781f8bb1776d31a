//! Settings of the membership, and what they mean for foca.

use std::{
    num::{NonZeroU8, NonZeroUsize},
    time::Duration,
};

use foca::PeriodicParams;

use super::envelope::MAX_PAYLOAD;
use crate::{
    control::{Control, Without},
    identity::ClusterName,
};

/// How often foca picks a member and pings it.
const PROBE_PERIOD: Duration = Duration::from_millis(500);

/// How long foca waits for the answer to a ping before it asks others to try.
pub(super) const PROBE_RTT: Duration = Duration::from_millis(200);

/// Settings of a node's membership.
#[derive(Clone, Debug)]
pub struct MembershipConfig {
    /// The cluster this node belongs to. Nodes of other clusters are refused.
    pub cluster: ClusterName,
    /// The software version, told to others for people to read. Cut to 32 bytes.
    pub version: String,
    /// Time from suspicion to down. A crash is known everywhere about 1.5 s later than that.
    /// Raise it on networks that lose many packets. Default: 3 s.
    pub node_timeout: Duration,
    /// The most other members to remember, those that are down included. Default: 4096.
    pub max_members: usize,
    /// For tests: how long a member that is down or left is remembered. Default: a day.
    #[doc(hidden)]
    pub remember: Duration,
    /// For tests: what this node does without.
    #[doc(hidden)]
    pub without: Without,
}

impl MembershipConfig {
    /// The defaults for a cluster.
    pub fn new(cluster: ClusterName) -> Self {
        Self {
            cluster,
            version: String::new(),
            node_timeout: Duration::from_secs(3),
            max_members: 4096,
            remember: Duration::from_hours(24),
            without: Without::default(),
        }
    }

    pub(super) fn has(&self, mechanism: Control) -> bool {
        self.without.has(mechanism)
    }

    /// What foca is given, for a cluster of `size` members.
    pub(super) fn foca(&self, size: usize) -> foca::Config {
        foca::Config {
            probe_period: PROBE_PERIOD,
            probe_rtt: PROBE_RTT,
            num_indirect_probes: count(3),
            max_transmissions: transmissions(size),
            suspect_to_down_after: self.node_timeout,
            // Members that are down are forgotten by the roster, which is bounded. foca would
            // keep one timer of a day for each.
            remove_down_after: None,
            max_packet_size: count(MAX_PAYLOAD),
            notify_down_members: true,
            periodic_announce: Some(every(Duration::from_secs(30), 1)),
            periodic_announce_to_down_members: self
                .has(Control::Rejoin)
                .then(|| every(Duration::from_secs(5), 2)),
            periodic_gossip: Some(every(Duration::from_millis(200), 3)),
        }
    }
}

/// How often each node repeats an update: four times the decimal logarithm of the cluster's size,
/// as SWIM's epidemic needs, and never so seldom that a lost packet or two stop it.
pub(super) fn transmissions(size: usize) -> NonZeroU8 {
    let rounds = match size {
        ..=10 => 6,
        11..=30 => 8,
        31..=100 => 10,
        101..=300 => 12,
        301..=1000 => 14,
        1001..=3000 => 16,
        _ => 18,
    };
    NonZeroU8::new(rounds).unwrap_or(NonZeroU8::MIN)
}

fn every(frequency: Duration, num_members: usize) -> PeriodicParams {
    PeriodicParams { frequency, num_members: count(num_members) }
}

fn count(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_clusters_repeat_updates_more_often() {
        let rounds = [1, 10, 30, 100, 1000, 4096].map(|size| transmissions(size).get());

        assert_eq!(rounds, [6, 6, 8, 10, 14, 18]);
    }
}
