//! Which station is where: learning, and unlearning.

use core::ptr;

use marengo_common::{
    DropReason, MacAddr, MacEntry, MacKey, MoveVerdict, PeerEntry, PeerIndex, PeerVerdict,
    Settings, VtepBytes, judge_mac, judge_move,
};

use crate::{
    maps::{MACS, PEERS},
    without::{self, WITHOUT_GENERATIONS, WITHOUT_MOVES},
};

/// A MAC entry's time is renewed at most this often, so that a busy station does not dirty its
/// cache line with each frame.
const RENEW_AFTER_NS: u64 = 1_000_000_000;

/// The peer behind which a station is: its index and its address.
///
/// The address is read before the stamp is compared: the kernel uses the memory of a slot that was
/// replaced again, and what was another peer's by the time that its address was read has another
/// stamp.
#[inline(always)]
pub(crate) fn peer_of(settings: &Settings, mac: MacAddr) -> Option<(PeerIndex, VtepBytes)> {
    // SAFETY: values of the map are only ever replaced as a whole.
    let mac = unsafe { MACS.get(&MacKey::new(settings.vni, mac)) }?;
    let index = mac.peer;
    // SAFETY: as above.
    let peer = unsafe { PEERS.get(&index) }?;
    // SAFETY: the reference is valid; volatile, so that the stamp is not read earlier.
    let vtep = unsafe { ptr::read_volatile(&raw const peer.vtep) };
    // SAFETY: as above.
    let generation = unsafe { ptr::read_volatile(&raw const peer.generation) };
    is_valid(mac, &PeerEntry { generation, ..*peer }).then_some((index, vtep))
}

/// The slot that an entry points to, if it is a valid entry.
#[inline(always)]
fn slot(mac: &MacEntry) -> Option<&'static PeerEntry> {
    // SAFETY: values of the map are only ever replaced as a whole.
    let peer = unsafe { PEERS.get(&mac.peer) }?;
    if is_valid(mac, peer) { Some(peer) } else { None }
}

#[inline(always)]
fn is_valid(mac: &MacEntry, peer: &PeerEntry) -> bool {
    judge_mac(mac, peer) == PeerVerdict::Send || !without::has(WITHOUT_GENERATIONS)
}

/// Remembers that a station is behind a peer. Fails if the frame was overtaken by its own station.
#[inline(always)]
pub(crate) fn learn(
    settings: &Settings,
    mac: MacAddr,
    peer: PeerIndex,
    generation: u32,
    now: u64,
) -> Result<(), DropReason> {
    let key = MacKey::new(settings.vni, mac);
    let tick = MacEntry::move_tick(now);
    let mut moved_from = 0;
    if let Some(known) = MACS.get_ptr_mut(&key) {
        // SAFETY: the verifier has seen the null check.
        let known: &mut MacEntry = unsafe { &mut *known };
        if known.peer == peer && known.generation == generation {
            if now.wrapping_sub(known.last_seen_ns) > RENEW_AFTER_NS {
                known.last_seen_ns = now;
            }
            return Ok(());
        }
        if without::has(WITHOUT_MOVES) {
            let is_live = known.peer == 0 || slot(known).is_some();
            match judge_move(known, is_live, peer, tick) {
                MoveVerdict::Move if is_live => moved_from = known.peer,
                MoveVerdict::Move => {}
                MoveVerdict::Stay => return Ok(()),
                MoveVerdict::Refuse => return Err(DropReason::Overtaken),
            }
        }
    }
    // A station that moved replaces its whole entry: an index beside another's generation is never
    // seen. If there is no memory for it, its frames are flooded, as before it was learnt.
    let entry = MacEntry { peer, generation, last_seen_ns: now, moved_from, moved_at: tick };
    let _learnt = MACS.insert(&key, &entry, 0);
    Ok(())
}

/// Takes note that a station sends from this node: if it was known behind a peer, it no longer is.
#[inline(always)]
pub(crate) fn is_here(settings: &Settings, mac: MacAddr, now: impl FnOnce() -> u64) {
    if !without::has(WITHOUT_MOVES) {
        return;
    }
    let key = MacKey::new(settings.vni, mac);
    // SAFETY: values of the map are only ever replaced as a whole.
    let Some(known) = (unsafe { MACS.get(&key) }) else { return };
    if known.peer == 0 {
        return;
    }
    let moved_from = if slot(known).is_some() { known.peer } else { 0 };
    let now = now();
    let entry = MacEntry {
        peer: 0,
        generation: 0,
        last_seen_ns: now,
        moved_from,
        moved_at: MacEntry::move_tick(now),
    };
    let _unlearnt = MACS.insert(&key, &entry, 0);
}
