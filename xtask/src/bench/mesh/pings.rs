//! Every bridge asks every other: echo requests from raw sockets, one in each namespace, at a
//! bounded rate. Neighbours are found as ever, by ARP that is flooded to all.

use std::{
    collections::BTreeSet,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recvfrom, sendto,
        setsockopt, socket, sockopt,
    },
};

use super::net::Node;
use crate::{netns, stop};

/// Between two requests. A first request floods a question for the neighbour: with 100 nodes that
/// is 99 copies, so this bounds them to about 15,000 packets a second.
const PACE: Duration = Duration::from_millis(6);
/// How long answers get, the last time.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often what was not answered is asked again.
const ROUNDS: usize = 4;

/// What became of the pairs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Outcome {
    pub(super) pairs: usize,
    pub(super) answered: usize,
    /// Of those, at the first request.
    pub(super) at_once: usize,
    pub(super) took: Duration,
}

/// From whom, to whom: positions in the list of nodes.
type Pair = (usize, usize);

/// Lets every bridge ping every other.
pub(super) fn all_pairs(nodes: &[Node]) -> Result<Outcome> {
    let sockets = nodes.iter().map(open).collect::<Result<Vec<OwnedFd>>>()?;
    let addresses: Vec<Ipv4Addr> = nodes.iter().map(Node::overlay).collect();
    let start = Instant::now();
    // Neighbouring requests have different senders: no cable carries all floods of a moment.
    let pairs: Vec<Pair> = (1..nodes.len())
        .flat_map(|step| (0..nodes.len()).map(move |from| (from, (from + step) % nodes.len())))
        .collect();
    let mut missing: BTreeSet<Pair> = pairs.iter().copied().collect();
    let mut at_once = 0;
    for round in 0..ROUNDS {
        let asked: Vec<Pair> =
            pairs.iter().copied().filter(|pair| missing.contains(pair)).collect();
        if asked.is_empty() {
            break;
        }
        for (number, (from, to)) in asked.into_iter().enumerate() {
            stop::check()?;
            send(&sockets[from], addresses[to])?;
            std::thread::sleep(PACE);
            if number % 16 == 0 {
                take_answers(&sockets, &addresses, &mut missing)?;
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && !missing.is_empty() {
            stop::check()?;
            std::thread::sleep(Duration::from_millis(20));
            take_answers(&sockets, &addresses, &mut missing)?;
        }
        if round == 0 {
            at_once = pairs.len() - missing.len();
        }
    }
    let answered = pairs.len() - missing.len();
    Ok(Outcome { pairs: pairs.len(), answered, at_once, took: start.elapsed() })
}

fn open(node: &Node) -> Result<OwnedFd> {
    netns::inside(&node.namespace, || {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp)
            .context("failed to open a raw socket")?;
        setsockopt(&socket, sockopt::RcvBufForce, &(1 << 20))
            .context("failed to enlarge a socket's buffer")?;
        Ok(socket)
    })
}

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const MARK: [u8; 8] = *b"marengo!";

fn send(from: &OwnedFd, to: Ipv4Addr) -> Result<()> {
    let sent = sendto(
        from.as_raw_fd(),
        &echo_request(),
        &SockaddrIn::from(std::net::SocketAddrV4::new(to, 0)),
        MsgFlags::empty(),
    );
    match sent {
        // Not sent, not answered: it is asked again.
        Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EHOSTUNREACH) => Ok(()),
        Err(error) => Err(io::Error::from(error)).with_context(|| format!("failed to ping {to}")),
    }
}

fn echo_request() -> [u8; 16] {
    let mut packet = [0; 16];
    packet[0] = ECHO_REQUEST;
    packet[8..].copy_from_slice(&MARK);
    let checksum = checksum(&packet);
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// The checksum of RFC 1071.
fn checksum(packet: &[u8]) -> u16 {
    let words = packet.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        rest => rest.iter().map(|high| u32::from(*high) << 8).sum(),
    });
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let [.., high, low] = (!(folded + (folded >> 16))).to_be_bytes();
    u16::from_be_bytes([high, low])
}

fn take_answers(
    sockets: &[OwnedFd],
    addresses: &[Ipv4Addr],
    missing: &mut BTreeSet<Pair>,
) -> Result<()> {
    let mut packet = [0; 128];
    for (asker, socket) in sockets.iter().enumerate() {
        loop {
            match recvfrom::<SockaddrIn>(socket.as_raw_fd(), &mut packet) {
                Ok((length, Some(from))) if is_reply(&packet[..length]) => {
                    let answerer = addresses.iter().position(|address| *address == from.ip());
                    answerer.map(|answerer| missing.remove(&(asker, answerer)));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => {
                    return Err(io::Error::from(error)).context("failed to receive an answer");
                }
            }
        }
    }
    Ok(())
}

/// Whether an IP packet answers a request of ours; a raw socket hears of others too.
fn is_reply(packet: &[u8]) -> bool {
    let header = usize::from(packet.first().copied().unwrap_or_default() & 0xf) * 4;
    packet.get(header) == Some(&ECHO_REPLY) && packet.get(header + 8..header + 16) == Some(&MARK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_a_checksum_that_sums_to_nothing() {
        assert_eq!(checksum(&echo_request()), 0);
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn a_reply_is_known_by_its_mark() {
        let mut packet = vec![0x45; 20];
        packet.extend(echo_request());
        assert!(!is_reply(&packet));

        packet[20] = ECHO_REPLY;
        assert!(is_reply(&packet));
        assert!(!is_reply(&packet[..30]));
    }
}
