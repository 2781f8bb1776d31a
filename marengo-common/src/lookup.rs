//! The decision of the egress programs, apart from the maps, so that it is tested on any host.

use crate::{MOVE_HOLD, MacEntry, PeerEntry, PeerIndex, PeerState};

/// What a MAC entry and its peer's slot say of a frame's destination.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PeerVerdict {
    /// The entry is valid: send to this peer.
    Send,
    /// The entry's stamp is not the slot's generation, or the slot is not forwarded to: as if the
    /// MAC were unknown.
    Stale,
}

/// What becomes of a frame whose source was known behind somebody else.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MoveVerdict {
    /// The station is where the frame came from.
    Move,
    /// The frame was under way while the station moved on to another peer: it is let in, and the
    /// station stays where it is.
    Stay,
    /// The same, and the station is on this node by now: let in, the frame would make the bridge
    /// send to the peer what belongs to its own port.
    Refuse,
}

/// Judges a frame from `sender` whose source is known as `known`.
///
/// `is_live` tells whether `known` points to a slot of its own generation, or to this node: a
/// station behind a peer that is gone is wherever it is heard. A network may keep a frame while
/// newer ones pass, so one that comes from the node that a station has just left says nothing of
/// where the station is.
#[inline(always)]
pub fn judge_move(known: &MacEntry, is_live: bool, sender: PeerIndex, tick: u32) -> MoveVerdict {
    let held = is_live
        && known.moved_from == sender
        && sender != 0
        && tick.wrapping_sub(known.moved_at) < MOVE_HOLD;
    if !held {
        MoveVerdict::Move
    } else if known.peer == 0 {
        MoveVerdict::Refuse
    } else {
        MoveVerdict::Stay
    }
}

/// Judges a MAC entry by the slot that it points to.
///
/// This is where "an entry that points at the wrong node cannot exist" is held: a slot that was
/// freed and given to another peer has a generation that no earlier stamp equals.
#[inline(always)]
pub fn judge_mac(mac: &MacEntry, peer: &PeerEntry) -> PeerVerdict {
    if mac.generation == peer.generation && peer.state == PeerState::Forwarding as u8 {
        PeerVerdict::Send
    } else {
        PeerVerdict::Stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(generation: u32, state: u8) -> PeerEntry {
        PeerEntry { vtep: [0; 16], generation, path_mtu: 1450, state, flags: 0, data_plane: 1 }
    }

    fn stamped(generation: u32) -> MacEntry {
        MacEntry { peer: 1, generation, last_seen_ns: 0, moved_from: 0, moved_at: 0 }
    }

    #[test]
    fn only_an_equal_generation_of_a_forwarding_slot_is_sent_to() {
        let forwarding = PeerState::Forwarding as u8;

        assert_eq!(judge_mac(&stamped(7), &slot(7, forwarding)), PeerVerdict::Send);
        assert_eq!(judge_mac(&stamped(6), &slot(7, forwarding)), PeerVerdict::Stale);
        assert_eq!(judge_mac(&stamped(8), &slot(7, forwarding)), PeerVerdict::Stale);
        assert_eq!(judge_mac(&stamped(7), &slot(7, PeerState::Down as u8)), PeerVerdict::Stale);
    }

    #[test]
    fn a_frame_from_the_node_that_the_station_just_left_does_not_take_it_back() {
        let moved = |peer| MacEntry { peer, moved_from: 2, moved_at: 1000, ..stamped(7) };

        assert_eq!(judge_move(&moved(1), true, 2, 1000 + MOVE_HOLD - 1), MoveVerdict::Stay);
        assert_eq!(judge_move(&moved(0), true, 2, 1001), MoveVerdict::Refuse);
        assert_eq!(judge_move(&moved(1), true, 2, 1000 + MOVE_HOLD), MoveVerdict::Move);
        assert_eq!(judge_move(&moved(1), true, 3, 1001), MoveVerdict::Move, "a third one");
        assert_eq!(judge_move(&moved(1), false, 2, 1001), MoveVerdict::Move, "its home is gone");
        assert_eq!(judge_move(&stamped(7), true, 2, 3), MoveVerdict::Move, "it never moved");
    }
}
