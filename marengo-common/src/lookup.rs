//! The decision of the egress programs, apart from the maps, so that it is tested on any host.

use crate::{MacEntry, PeerEntry, PeerState};

/// What a MAC entry and its peer's slot say of a frame's destination.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PeerVerdict {
    /// The entry is valid: send to this peer.
    Send,
    /// The entry's stamp is not the slot's generation, or the slot is not forwarded to: as if the
    /// MAC were unknown.
    Stale,
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
        PeerEntry { vtep: [0; 16], generation, path_mtu: 1450, state, flags: 0 }
    }

    fn stamped(generation: u32) -> MacEntry {
        MacEntry { peer: 1, generation, last_seen_ns: 0 }
    }

    #[test]
    fn only_an_equal_generation_of_a_forwarding_slot_is_sent_to() {
        let forwarding = PeerState::Forwarding as u8;

        assert_eq!(judge_mac(&stamped(7), &slot(7, forwarding)), PeerVerdict::Send);
        assert_eq!(judge_mac(&stamped(6), &slot(7, forwarding)), PeerVerdict::Stale);
        assert_eq!(judge_mac(&stamped(8), &slot(7, forwarding)), PeerVerdict::Stale);
        assert_eq!(judge_mac(&stamped(7), &slot(7, PeerState::Down as u8)), PeerVerdict::Stale);
    }
}
