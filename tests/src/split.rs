//! Splits of the underlay: the router forgets how to forward some packets.

use std::fmt::Write as _;

use crate::{
    Mesh,
    node::{GOSSIP_PORT, LISTEN_PORT},
};

/// Who does not hear whom: `(1, 2)` stops what node 1 sends to node 2, and nothing else.
pub type Deaf = (u8, u8);

/// Cuts every pair whose nodes are in different groups, both ways.
pub fn between(groups: &[&[u8]]) -> Vec<Deaf> {
    let mut deaf = Vec::new();
    for group in groups {
        let others = groups.iter().filter(|other| *other != group).copied().flatten();
        deaf.extend(others.flat_map(|to| group.iter().map(move |from| (*from, *to))));
    }
    deaf
}

/// What a split stops.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum What {
    /// Everything.
    All,
    /// What daemons say to each other. The tunnels work.
    Gossip,
}

impl What {
    /// The rule's condition on a packet.
    fn condition(self) -> String {
        match self {
            Self::All => String::new(),
            // Answers over TCP come from that port.
            Self::Gossip => {
                let http = LISTEN_PORT;
                format!("th dport {{ {GOSSIP_PORT}, {http} }} ip protocol {{ tcp, udp }}")
            }
        }
    }
}

impl Mesh {
    /// Stops packets in the router. A split that was there before is over.
    pub fn split(&self, what: What, deaf: &[Deaf]) {
        let mut pairs = String::new();
        for (from, to) in deaf {
            let address = |number: &u8| self.node(usize::from(*number)).underlay();
            let comma = if pairs.is_empty() { "" } else { ", " };
            write!(pairs, "{comma}{} . {}", address(from), address(to)).expect("memory is there");
        }
        let elements =
            if pairs.is_empty() { String::new() } else { format!("elements = {{ {pairs} }}") };
        // One transaction: there is no moment between two splits.
        self.router.nft(&format!(
            "table ip split {{}}
             delete table ip split
             table ip split {{
                 set deaf {{ type ipv4_addr . ipv4_addr; {elements}; }}
                 chain forward {{
                     type filter hook forward priority 0;
                     {} ip saddr . ip daddr @deaf drop
                 }}
             }}",
            what.condition()
        ));
    }

    /// Ends a split.
    pub fn mend(&self) {
        self.split(What::All, &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_cut_both_ways_and_not_inside() {
        let mut deaf = between(&[&[1, 2], &[3]]);
        deaf.sort_unstable();

        assert_eq!(deaf, [(1, 3), (2, 3), (3, 1), (3, 2)]);
    }
}
