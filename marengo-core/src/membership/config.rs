//! Settings of the membership, and what they mean for foca.

use std::{
    fmt,
    num::{NonZeroU8, NonZeroUsize},
    str::FromStr,
    time::Duration,
};

use foca::PeriodicParams;

use super::envelope::MAX_PAYLOAD;
use crate::{
    control::{Control, Without},
    identity::ClusterName,
};

/// How fast a node is to notice that another one is gone, and what it pays for that.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Profile {
    /// A crash is known everywhere within 6 s, and a node that is stopped for 2 s is not lost.
    #[default]
    Default,
    /// A crash is known everywhere within a second in clusters of up to 16 nodes whose underlay
    /// loses next to nothing. A node that is stopped for a third of a second may be taken for
    /// failed.
    Fast,
}

impl Profile {
    /// The profile in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Fast => "fast",
        }
    }

    /// Time from suspicion to down.
    pub const fn node_timeout(self) -> Duration {
        match self {
            Self::Default => Duration::from_secs(3),
            Self::Fast => Duration::from_millis(300),
        }
    }

    pub(super) const fn pace(self) -> Pace {
        match self {
            Self::Default => Pace {
                probe_period: Duration::from_millis(350),
                probe_rtt: Duration::from_millis(150),
                gossip: Duration::from_millis(100),
                stall: Duration::from_secs(1),
                late: Duration::from_millis(250),
            },
            Self::Fast => Pace {
                probe_period: Duration::from_millis(80),
                probe_rtt: Duration::from_millis(30),
                gossip: Duration::from_millis(25),
                stall: Duration::from_millis(100),
                late: Duration::from_millis(40),
            },
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Default, Self::Fast]
            .into_iter()
            .find(|profile| profile.name() == text)
            .ok_or_else(|| format!("{text:?} is no profile: default and fast are"))
    }
}

/// The clockwork of a profile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How often foca picks a member and pings it.
    pub(super) probe_period: Duration,
    /// How long foca waits for the answer to a ping before it asks others to try.
    pub(super) probe_rtt: Duration,
    /// How often news are told, while there are any.
    pub(super) gossip: Duration,
    /// Lateness from which on the process counts as having been stopped.
    pub(super) stall: Duration,
    /// Lateness from which on the process counts as starved.
    pub(super) late: Duration,
}

/// Settings of a node's membership.
#[derive(Clone, Debug)]
pub struct MembershipConfig {
    /// The cluster this node belongs to. Nodes of other clusters are refused.
    pub cluster: ClusterName,
    /// The software version, told to others for people to read. Cut to 32 bytes.
    pub version: String,
    /// How fast the node is to notice that another one is gone.
    pub profile: Profile,
    /// Time from suspicion to down. A crash is known everywhere about 2 s later than that, or half
    /// a second with the fast profile. Default: what the profile says.
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
            profile: Profile::Default,
            node_timeout: Profile::Default.node_timeout(),
            max_members: 4096,
            remember: Duration::from_hours(24),
            without: Without::default(),
        }
    }

    /// The same with a profile, and with the time from suspicion to down that belongs to it.
    #[must_use]
    pub fn with_profile(self, profile: Profile) -> Self {
        Self { profile, node_timeout: profile.node_timeout(), ..self }
    }

    pub(super) fn has(&self, mechanism: Control) -> bool {
        self.without.has(mechanism)
    }

    /// What foca is given, for a cluster of `size` members.
    pub(super) fn foca(&self, size: usize) -> foca::Config {
        let pace = self.profile.pace();
        foca::Config {
            probe_period: pace.probe_period,
            probe_rtt: pace.probe_rtt,
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
            // Driven from outside, while there is something to tell: an idle node sleeps longer.
            periodic_gossip: None,
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
