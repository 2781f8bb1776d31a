//! Who among the known members stands: of several identities of one data plane, one.

use std::collections::BTreeMap;

use crate::{
    identity::{DataPlaneId, Identity},
    members::Standing,
};

/// A member as the roster knows it, and what gossip thinks of it; no standing if it left.
pub(super) type Known<'a> = (&'a Identity, Option<Standing>);

/// The members that stand, but for those that left.
///
/// A node that changed its address is known under both for a while. The identity with the higher
/// generation stands, whatever became of the other; and what has this node's own data plane is an
/// earlier self of this node.
pub(super) fn standing<'a>(
    own: &Identity,
    known: impl Iterator<Item = Known<'a>>,
) -> Vec<(&'a Identity, Standing)> {
    let mut by_data_plane: BTreeMap<DataPlaneId, Known<'_>> = BTreeMap::new();
    for member in known.filter(|(member, _)| member.data_plane != own.data_plane) {
        let rank = |(member, _): &Known<'_>| (member.generation, member.addr);
        by_data_plane
            .entry(member.0.data_plane)
            .and_modify(|holder| {
                if rank(&member) > rank(holder) {
                    *holder = member;
                }
            })
            .or_insert(member);
    }
    by_data_plane
        .into_values()
        .filter_map(|(member, standing)| standing.map(|standing| (member, standing)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::testing::identity;

    /// Node 2 at another address, in its next generation.
    fn renumbered() -> Identity {
        let old = identity(2);
        Identity { data_plane: old.data_plane, generation: old.generation.next(), ..identity(9) }
    }

    #[test]
    fn of_two_identities_of_one_data_plane_the_later_stands_in_whatever_order_they_come() {
        let (old, new) = (identity(2), renumbered());
        for old_standing in [Some(Standing::Alive), Some(Standing::Lost), None] {
            for reverse in [false, true] {
                let mut known = vec![(&old, old_standing), (&new, Some(Standing::Alive))];
                if reverse {
                    known.reverse();
                }

                let found = standing(&identity(1), known.into_iter());

                assert_eq!(found, [(&new, Standing::Alive)]);
            }
        }
    }

    #[test]
    fn a_node_that_left_from_its_new_address_is_not_lost_at_the_old_one() {
        let (old, new) = (identity(2), renumbered());

        let known = [(&old, Some(Standing::Lost)), (&new, None)];

        assert_eq!(standing(&identity(1), known.into_iter()), []);
    }

    #[test]
    fn an_earlier_self_of_this_node_does_not_stand() {
        let (old, new) = (identity(2), renumbered());

        assert_eq!(standing(&new, [(&old, Some(Standing::Lost))].into_iter()), []);
    }
}
