//! Frames, made and read by hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The port of VXLAN.
pub const VXLAN_PORT: u16 = 4789;
/// An EtherType for experiments (IEEE 802, local experimental 2): no stack answers it.
pub const MARKED: u16 = 0x88b6;
/// Everybody.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// A unicast address that no device has.
pub const fn station(number: u8) -> [u8; 6] {
    [0x02, 0x4d, 0x54, 0, 0, number]
}

/// An Ethernet frame, padded to the least length.
pub fn ethernet(destination: [u8; 6], source: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(60);
    frame.extend_from_slice(&destination);
    frame.extend_from_slice(&source);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// A frame that tests recognize by its text.
pub fn marked(destination: [u8; 6], source: [u8; 6], text: &str) -> Vec<u8> {
    ethernet(destination, source, MARKED, text.as_bytes())
}

/// Whether this is a frame made by [`marked`] with that text.
pub fn is_marked(frame: &[u8], text: &str) -> bool {
    frame.get(12..14) == Some(&MARKED.to_be_bytes())
        && frame.get(14..14 + text.len()) == Some(text.as_bytes())
        // The padding behind it, so that "a1" is not "a10".
        && frame.get(14 + text.len()).is_none_or(|next| *next == 0)
}

/// A VXLAN header (RFC 7348, section 5) and the frame behind it.
pub fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x08, 0, 0, 0];
    packet.extend_from_slice(&(vni << 8).to_be_bytes());
    packet.extend_from_slice(frame);
    packet
}

/// What is around a frame in the underlay.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Encapsulated<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub vni: u32,
    pub inner: &'a [u8],
}

impl<'a> Encapsulated<'a> {
    /// Reads a frame of the underlay. `None` if it carries no VXLAN.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let ip = frame.get(14..)?;
        let (source, destination, udp) = match frame.get(12..14)? {
            [0x08, 0x00] => {
                let header = usize::from(ip.first()? & 0xf) * 4;
                (*ip.get(9)? == 17).then_some(())?;
                (ipv4(ip, 12)?, ipv4(ip, 16)?, ip.get(header..)?)
            }
            [0x86, 0xdd] => {
                (*ip.get(6)? == 17).then_some(())?;
                (ipv6(ip, 8)?, ipv6(ip, 24)?, ip.get(40..)?)
            }
            _ => return None,
        };
        (udp.get(2..4)? == VXLAN_PORT.to_be_bytes()).then_some(())?;
        let vni = u32::from_be_bytes(udp.get(12..16)?.try_into().ok()?) >> 8;
        Some(Self { source, destination, vni, inner: udp.get(16..)? })
    }
}

/// The payload of a UDP packet to a port; `None` for anything else.
pub fn udp_payload(frame: &[u8], port: u16) -> Option<&[u8]> {
    let ip = frame.get(14..)?;
    let udp = match frame.get(12..14)? {
        [0x08, 0x00] if *ip.get(9)? == 17 => ip.get(usize::from(ip.first()? & 0xf) * 4..)?,
        [0x86, 0xdd] if *ip.get(6)? == 17 => ip.get(40..)?,
        _ => return None,
    };
    (udp.get(2..4)? == port.to_be_bytes()).then_some(())?;
    let length = usize::from(u16::from_be_bytes(udp.get(4..6)?.try_into().ok()?));
    udp.get(8..length)
}

fn ipv4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(IpAddr::V4(Ipv4Addr::from(octets)))
}

fn ipv6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(octets)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_around_a_frame_is_read_back() {
        let inner = marked(BROADCAST, station(1), "hello");
        let udp: Vec<u8> =
            [0xc0, 0, 0x12, 0xb5, 0, 0, 0, 0].into_iter().chain(vxlan(77, &inner)).collect();
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
        ip.extend([192, 0, 2, 1, 192, 0, 2, 3]);
        ip.extend(udp);
        let frame = ethernet(station(2), station(3), 0x0800, &ip);

        let outer = Encapsulated::parse(&frame).unwrap();

        assert_eq!(outer.source, IpAddr::from([192, 0, 2, 1]));
        assert_eq!(outer.destination, IpAddr::from([192, 0, 2, 3]));
        assert_eq!(outer.vni, 77);
        assert!(is_marked(outer.inner, "hello") && !is_marked(outer.inner, "hell"));
    }
}
