//! The frames of the stations: each says who sent it, from which home, and to whom.

use std::net::Ipv4Addr;

use crate::packet::{self, BROADCAST, MARKED};

const ARP: u16 = 0x0806;
const MAGIC: [u8; 4] = *b"MTTF";
/// Where the tag begins in a frame of [`MARKED`].
const MARKED_AT: usize = 14;
/// Where the tag begins in an ARP frame: in its padding.
const ARP_AT: usize = 42;
/// Bytes of a tag.
const LEN: usize = 16;

/// Number of a station.
pub(crate) type StationNumber = u16;

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Tag {
    /// The station that sent it.
    pub(crate) source: StationNumber,
    /// Which home of the station's it was sent from: see `Station`.
    pub(crate) epoch: u32,
    /// The number of the frame in its run.
    pub(crate) sequence: u32,
    /// The station that it is for; the source itself in a frame for everybody.
    pub(crate) destination: StationNumber,
}

impl Tag {
    /// A gratuitous ARP request: the first frame that a container sends.
    pub(crate) fn announcement(self, address: Ipv4Addr) -> Vec<u8> {
        let mac = mac(self.source);
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend(mac);
        arp.extend(address.octets());
        arp.extend([0; 6]);
        arp.extend(address.octets());
        arp.extend(self.bytes());
        packet::ethernet(BROADCAST, mac, ARP, &arp)
    }

    /// A frame for one station.
    pub(crate) fn unicast(self) -> Vec<u8> {
        packet::ethernet(mac(self.destination), mac(self.source), MARKED, &self.bytes())
    }

    /// Reads the tag of a frame; `None` if it has none.
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        let at = match u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?) {
            MARKED => MARKED_AT,
            ARP => ARP_AT,
            _ => return None,
        };
        let bytes: &[u8; LEN] = frame.get(at..at + LEN)?.try_into().ok()?;
        let [m0, m1, m2, m3, s0, s1, d0, d1, e0, e1, e2, e3, n0, n1, n2, n3] = *bytes;
        ([m0, m1, m2, m3] == MAGIC).then(|| Self {
            source: u16::from_be_bytes([s0, s1]),
            destination: u16::from_be_bytes([d0, d1]),
            epoch: u32::from_be_bytes([e0, e1, e2, e3]),
            sequence: u32::from_be_bytes([n0, n1, n2, n3]),
        })
    }

    fn bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.source.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.destination.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.epoch.to_be_bytes());
        bytes[12..].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }
}

/// The address of a station.
pub(crate) const fn mac(station: StationNumber) -> [u8; 6] {
    let [high, low] = station.to_be_bytes();
    [0x02, 0x4d, 0x54, 0x53, high, low]
}

/// The station that has an address; `None` if it is no station's.
pub(crate) const fn station(mac: [u8; 6]) -> Option<StationNumber> {
    match mac {
        [0x02, 0x4d, 0x54, 0x53, high, low] => Some(u16::from_be_bytes([high, low])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_read_back_from_both_kinds_of_frame() {
        let tag = Tag { source: 7, epoch: 70_000, sequence: 9, destination: 300 };

        let unicast = tag.unicast();
        let announcement = tag.announcement(Ipv4Addr::new(10, 42, 1, 7));

        assert_eq!((unicast.len(), announcement.len()), (60, 60));
        assert_eq!(Tag::of(&unicast), Some(tag));
        assert_eq!(Tag::of(&announcement), Some(tag));
        assert_eq!(unicast[..6], mac(300));
        assert_eq!(Tag::of(&packet::marked(BROADCAST, mac(1), "no tag")), None);
        assert_eq!(station(mac(300)), Some(300));
        assert_eq!(station([2; 6]), None);
    }
}
