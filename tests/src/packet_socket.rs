//! A socket that sends and receives whole frames on one device.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        socket::{LinkAddr, MsgFlags, recvfrom, send, setsockopt, sockopt},
        time::TimeVal,
    },
};

use crate::netns::Namespace;

/// The largest frame there is: a whole TCP segment of a sender that leaves the cutting to others.
const MAX_FRAME: usize = 65_600;

/// An AF_PACKET socket bound to a device.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

/// A frame as a packet socket sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// Whether the device sends it, rather than receives it.
    pub outgoing: bool,
    pub bytes: Vec<u8>,
}

impl PacketSocket {
    /// Opens a socket on a device of a namespace. Panics if there is no such device.
    pub fn open(namespace: &Namespace, device: &str) -> Self {
        let ifindex = namespace.ifindex(device);
        let ifindex =
            ifindex.unwrap_or_else(|| panic!("{} has no device {device}", namespace.name()));
        let fd = namespace
            .inside(|| bind(ifindex))
            .unwrap_or_else(|error| panic!("a packet socket on {device}: {error}"));
        // A burst must not be lost here: that would look like a loss in the network.
        setsockopt(&fd, sockopt::RcvBufForce, &(8 << 20)).expect("root may enlarge a buffer");
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000))
            .expect("a socket has a timeout");
        Self { fd }
    }

    /// The socket itself.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Sends a frame as it is.
    pub fn send(&self, frame: &[u8]) {
        let sent = send(self.fd.as_raw_fd(), frame, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()), "a frame of {} bytes", frame.len());
    }

    /// The next frame; `None` if none came for a moment.
    pub fn receive(&self) -> Option<Frame> {
        let mut buffer = vec![0; MAX_FRAME];
        match recvfrom::<LinkAddr>(self.fd.as_raw_fd(), &mut buffer) {
            Ok((length, from)) => Some(Frame {
                outgoing: from.is_some_and(|from| from.pkttype() == libc::PACKET_OUTGOING),
                bytes: buffer[..length].to_vec(),
            }),
            // The device may be down, or go.
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN | Errno::ENXIO) => None,
            Err(error) => panic!("a packet socket: {error}"),
        }
    }

    /// Reads frames until one satisfies `wanted`, for at most `limit`.
    pub fn receive_until(&self, limit: Duration, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        let deadline = std::time::Instant::now() + limit;
        while std::time::Instant::now() < deadline {
            if let Some(frame) = self.receive().filter(&wanted) {
                return Some(frame);
            }
        }
        None
    }
}

#[expect(clippy::cast_possible_truncation, reason = "constants that fit")]
fn bind(ifindex: u32) -> io::Result<OwnedFd> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no pointers are passed; the result is checked.
    let fd = unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all))
    };
    let fd = Errno::result(fd)?;
    // SAFETY: the descriptor was opened above, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: zero is a value of every field.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = ifindex.cast_signed();
    // SAFETY: the address is initialized and as long as the size says.
    let bound = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    Errno::result(bound)?;
    Ok(fd)
}
