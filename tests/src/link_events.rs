//! What the kernel reports over rtnetlink: links, filters, addresses, routes.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
            setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

use crate::netns::Namespace;

const GROUPS: i32 = libc::RTMGRP_LINK
    | libc::RTMGRP_TC
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE;

/// A listener. What the kernel reports waits in the socket until it is read.
#[derive(Debug)]
pub struct LinkEvents {
    socket: OwnedFd,
}

/// One message of the kernel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LinkEvent {
    /// `RTM_NEWLINK` and so on.
    pub kind: u16,
    /// The name of the link, in a message about a link.
    pub link: Option<String>,
    /// Its flags, in a message about a link.
    pub flags: u32,
}

impl LinkEvent {
    /// Whether it says that a link of this name is there and up.
    pub fn is_up(&self, name: &str) -> bool {
        self.kind == libc::RTM_NEWLINK
            && self.link.as_deref() == Some(name)
            && self.flags & libc::IFF_UP as u32 != 0
    }

    /// Whether it says that a link of this name is gone.
    pub fn is_gone(&self, name: &str) -> bool {
        self.kind == libc::RTM_DELLINK && self.link.as_deref() == Some(name)
    }
}

impl LinkEvents {
    /// Starts to listen in a namespace.
    pub fn listen(namespace: &Namespace) -> Self {
        let socket = namespace.inside(|| {
            let socket = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkRoute,
            )
            .expect("a netlink socket");
            setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).expect("root may enlarge it");
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 20_000))
                .expect("a socket has a timeout");
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS.cast_unsigned()))
                .expect("the groups exist");
            socket
        });
        Self { socket }
    }

    /// The events of one datagram; none if nothing came for a moment.
    pub fn next(&self) -> Vec<LinkEvent> {
        let mut buffer = vec![0; 64 * 1024];
        match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => parse(&buffer[..length]),
            Err(Errno::EAGAIN | Errno::EINTR) => Vec::new(),
            Err(error) => panic!("a netlink socket: {error}"),
        }
    }

    /// Everything that was reported, and what is in the next `time`.
    pub fn during(&self, time: Duration) -> Vec<LinkEvent> {
        let deadline = std::time::Instant::now() + time;
        let mut events = Vec::new();
        loop {
            let more = self.next();
            if more.is_empty() && std::time::Instant::now() >= deadline {
                return events;
            }
            events.extend(more);
        }
    }
}

const HEADER: usize = 16;
const LINK_HEADER: usize = 16;

fn parse(mut bytes: &[u8]) -> Vec<LinkEvent> {
    let mut events = Vec::new();
    while let Some(length) = word(bytes, 0).map(|length| length as usize)
        && length >= HEADER
        && let Some(message) = bytes.get(..length)
    {
        events.push(parse_message(message));
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
    }
    events
}

fn parse_message(message: &[u8]) -> LinkEvent {
    let kind = half(message, 4).unwrap_or_default();
    let is_link = kind == libc::RTM_NEWLINK || kind == libc::RTM_DELLINK;
    // Bridge ports are reported once more, in their bridge's own family.
    let is_plain = message.get(HEADER).copied().map(i32::from) == Some(libc::AF_UNSPEC);
    if !is_link || !is_plain {
        return LinkEvent { kind, link: None, flags: 0 };
    }
    let flags = word(message, HEADER + 8).unwrap_or_default();
    let mut link = None;
    let mut attributes = message.get(HEADER + LINK_HEADER..).unwrap_or_default();
    while let (Some(length), Some(attribute)) = (half(attributes, 0), half(attributes, 2))
        && length >= 4
    {
        let value = attributes.get(4..usize::from(length)).unwrap_or_default();
        if attribute == libc::IFLA_IFNAME {
            link = Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        attributes = attributes.get(aligned(usize::from(length))..).unwrap_or_default();
    }
    LinkEvent { kind, link, flags }
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
