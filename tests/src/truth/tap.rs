//! Packet sockets that never wait: what has come is there to be read.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc::{self, sock_filter},
    sys::socket::{LinkAddr, MsgFlags, recvfrom, send},
};

use crate::{netns::Namespace, packet_socket::PacketSocket};

/// More than any frame that passes the filters.
const FRAME: usize = 256;

/// A socket on a device that stays for as long as the host has power.
#[derive(Debug)]
pub(crate) struct Tap {
    fd: OwnedFd,
}

/// A frame that a [`Tap`] has seen.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    /// Whether the device sent it.
    pub(crate) outgoing: bool,
    pub(crate) bytes: &'a [u8],
}

impl Tap {
    /// Sees every frame of a device.
    pub(crate) fn open(namespace: &Namespace, device: &str) -> Self {
        let fd = PacketSocket::open(namespace, device).into_fd();
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a socket need not wait");
        Self { fd }
    }

    /// Sees what passes a device of the underlay as VXLAN with a tagged unicast frame inside.
    pub(crate) fn underlay(namespace: &Namespace, device: &str) -> Self {
        let tap = Self::open(namespace, device);
        attach(&tap.fd, &carried_unicast()).expect("the filter is a valid one");
        tap
    }

    /// Sends a frame as it is; tells whether the device took it.
    pub(crate) fn send(&self, frame: &[u8]) -> bool {
        send(self.fd.as_raw_fd(), frame, MsgFlags::empty()) == Ok(frame.len())
    }

    /// Hands over what has come since the last time.
    pub(crate) fn drain(&self, mut each: impl FnMut(Seen<'_>)) {
        let mut buffer = [0; FRAME];
        loop {
            match recvfrom::<LinkAddr>(self.fd.as_raw_fd(), &mut buffer) {
                Ok((length, from)) => each(Seen {
                    outgoing: from.is_some_and(|from| from.pkttype() == libc::PACKET_OUTGOING),
                    bytes: &buffer[..length],
                }),
                Err(Errno::EINTR) => {}
                // The device may be down, or go.
                Err(Errno::EAGAIN | Errno::ENETDOWN | Errno::ENXIO) => return,
                Err(error) => panic!("a packet socket: {error}"),
            }
        }
    }
}

/// IPv4, UDP to the port of VXLAN, and inside it a frame for one station with the tests' EtherType. The
/// outer IP header has no options: the programs' tunnel keys set none.
#[expect(clippy::cast_possible_truncation, reason = "the operation codes of BPF fit")]
fn carried_unicast() -> [sock_filter; 13] {
    const INNER: u32 = 14 + 20 + 8 + 8;
    let load = |size: u32, at: u32| op((libc::BPF_LD | size | libc::BPF_ABS) as u16, at, 0, 0);
    // Goes on if equal, else jumps to the end.
    let is = |value: u32, to_end: u8| {
        op((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, value, 0, to_end)
    };
    let and = op((libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16, 1, 0, 0);
    let give = |length: u32| op((libc::BPF_RET | libc::BPF_K) as u16, length, 0, 0);
    [
        load(libc::BPF_H, 12),
        is(0x0800, 10),
        load(libc::BPF_B, 23),
        is(17, 8),
        load(libc::BPF_H, 36),
        is(u32::from(crate::packet::VXLAN_PORT), 6),
        load(libc::BPF_B, INNER),
        and,
        is(0, 3),
        load(libc::BPF_H, INNER + 12),
        is(u32::from(crate::packet::MARKED), 1),
        give(FRAME as u32),
        give(0),
    ]
}

fn op(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[expect(clippy::cast_possible_truncation, reason = "a size that fits")]
fn attach(fd: &OwnedFd, filter: &[sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).expect("a filter is short"),
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program and its instructions live until the call returns; the kernel only reads
    // them.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop).map_err(io::Error::from)
}
