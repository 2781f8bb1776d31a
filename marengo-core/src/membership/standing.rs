//! Who among the known members stands: of several identities of one data plane, one.

use std::collections::BTreeMap;

use crate::{
    identity::{DataPlaneId, Identity},
    members::Standing,
};

/// A member as the roster knows it, and what gossip thinks of it; no standing if it left.
pub(super) type Known<'a> = (&'a Identity, Option<Standing>);

/// Who stands, and who has the data plane of somebody who does.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Standings<'a> {
    /// The members that stand, but for those that left.
    pub(super) members: Vec<(&'a Identity, Standing)>,
    /// Live members with the data plane of another live one: this node or one that stands, first.
    pub(super) clones: Vec<(&'a Identity, &'a Identity)>,
}

/// Finds out who stands.
///
/// Of those with one data plane, one does: one that is there if there is any, else one that said
/// that it is back soon (it is back, and its clock was set back, if another one is there), and of
/// several the one with the highest generation. What has this node's own data plane never does.
pub(super) fn standings<'a>(
    own: &'a Identity,
    known: impl Iterator<Item = Known<'a>>,
) -> Standings<'a> {
    let presence = |(_, standing): &Known<'_>| match standing {
        Some(Standing::Alive | Standing::Suspect) => 2,
        Some(Standing::Restarting) => 1,
        Some(Standing::Lost) | None => 0,
    };
    let is_live = |member: &Known<'_>| presence(member) == 2;
    let rank = |member: &Known<'_>| (presence(member), member.0.generation, member.0.addr);
    let mut by_data_plane: BTreeMap<DataPlaneId, Known<'_>> = BTreeMap::new();
    let mut losers = Vec::new();
    for member in known {
        if member.0.data_plane == own.data_plane {
            losers.extend(is_live(&member).then_some(member.0));
            continue;
        }
        let holder = by_data_plane.entry(member.0.data_plane).or_insert(member);
        if holder.0.addr == member.0.addr {
            continue;
        }
        let loser =
            if rank(&member) > rank(holder) { std::mem::replace(holder, member) } else { member };
        losers.extend(is_live(&loser).then_some(loser.0));
    }
    let clones = losers.into_iter().map(|loser| {
        (by_data_plane.get(&loser.data_plane).map_or(own, |(holder, _)| *holder), loser)
    });
    Standings {
        clones: clones.collect(),
        members: by_data_plane
            .into_values()
            .filter_map(|(member, standing)| standing.map(|standing| (member, standing)))
            .collect(),
    }
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

                let own = identity(1);
                let found = standings(&own, known.into_iter());

                assert_eq!(found.members, [(&new, Standing::Alive)]);
            }
        }
    }

    #[test]
    fn a_node_that_left_from_its_new_address_is_not_lost_at_the_old_one() {
        let (old, new) = (identity(2), renumbered());

        let known = [(&old, Some(Standing::Lost)), (&new, None)];

        assert_eq!(standings(&identity(1), known.into_iter()).members, []);
    }

    #[test]
    fn an_earlier_self_of_this_node_does_not_stand() {
        let (old, new) = (identity(2), renumbered());

        let found = standings(&new, [(&old, Some(Standing::Lost))].into_iter());

        assert_eq!(found, Standings::default());
    }

    #[test]
    fn of_two_live_ones_with_one_data_plane_the_later_stands_and_the_other_is_a_clone() {
        let (own, old, new) = (identity(1), identity(2), renumbered());
        let known = [(&new, Some(Standing::Suspect)), (&old, Some(Standing::Alive))];

        let found = standings(&own, known.into_iter());
        assert_eq!(found.members, [(&new, Standing::Suspect)]);
        assert_eq!(found.clones, [(&new, &old)]);

        let found = standings(&new, [(&old, Some(Standing::Alive))].into_iter());
        assert_eq!((found.members, found.clones), (vec![], vec![(&new, &old)]));
    }

    #[test]
    fn one_that_is_back_at_another_address_stands_before_what_it_said_before_it_went() {
        let (own, back, before) = (identity(1), identity(2), renumbered());
        let known = [(&back, Some(Standing::Alive)), (&before, Some(Standing::Restarting))];

        let found = standings(&own, known.into_iter());

        assert_eq!((found.members, found.clones), (vec![(&back, Standing::Alive)], vec![]));
    }

    #[test]
    fn a_live_one_stands_before_a_lost_one_whatever_their_generations() {
        let (own, old, new) = (identity(1), identity(2), renumbered());
        let known = [(&new, Some(Standing::Lost)), (&old, Some(Standing::Alive))];

        let found = standings(&own, known.into_iter());

        assert_eq!((found.members, found.clones), (vec![(&old, Standing::Alive)], vec![]));
    }
}
