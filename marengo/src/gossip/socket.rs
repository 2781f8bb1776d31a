//! The gossip socket: receives on every address it is bound to, sends from the advertised one.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
};

use marengo_core::membership::Transmit;
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use tokio::{io::Interest, net::UdpSocket};

/// Datagrams taken from the socket before anything else is looked at.
const BATCH: usize = 64;
/// The kernel may join several datagrams of one sender (UDP GRO) into one buffer.
const BUFFER: usize = 65_536;

/// A UDP socket that chooses the source of what it sends: with several addresses the kernel's choice
/// may be one by which the others do not know us.
#[derive(Debug)]
pub(crate) struct GossipSocket {
    socket: UdpSocket,
    state: UdpSocketState,
    source: IpAddr,
    buffer: Box<[u8]>,
    failing: bool,
}

impl GossipSocket {
    /// Takes over a bound socket. `source` is the advertised address.
    pub(crate) fn new(socket: std::net::UdpSocket, source: IpAddr) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let socket = UdpSocket::from_std(socket)?;
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Ok(Self { socket, state, source, buffer, failing: false })
    }

    /// Sends from another address from now on.
    pub(super) fn set_source(&mut self, source: IpAddr) {
        self.source = source;
    }

    /// Waits for datagrams and takes all that are there, up to a bound. May be cancelled.
    pub(super) async fn receive(&mut self) -> io::Result<Vec<(SocketAddr, Vec<u8>)>> {
        self.socket.readable().await?;
        let mut datagrams = Vec::new();
        while datagrams.len() < BATCH {
            let mut meta = [RecvMeta::default()];
            let (state, socket, buffer) = (&self.state, &self.socket, &mut self.buffer);
            let received = socket.try_io(Interest::READABLE, || {
                state.recv(UdpSockRef::from(socket), &mut [IoSliceMut::new(buffer)], &mut meta)
            });
            match received {
                Ok(_) => {
                    let [meta] = meta;
                    let from = unmapped(meta.addr);
                    let whole = self.buffer.get(..meta.len).unwrap_or_default();
                    let datagram = |data: &[u8]| (from, data.to_vec());
                    datagrams.extend(whole.chunks(meta.stride.max(1)).map(datagram));
                    if whole.is_empty() {
                        datagrams.push((from, Vec::new()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if datagrams.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(datagrams)
    }

    /// Sends a datagram. One that cannot be sent at once is lost, as on the wire: those that wait for
    /// a dead neighbour's hardware address must not hold up those for the living. A lasting failure
    /// is told once.
    pub(super) fn send(&mut self, transmit: &Transmit) {
        let message = quinn_udp::Transmit {
            destination: transmit.to,
            ecn: None,
            contents: &transmit.data,
            segment_size: None,
            src_ip: Some(self.source),
        };
        let (state, socket) = (&self.state, &self.socket);
        let sent = socket
            .try_io(Interest::WRITABLE, || state.try_send(UdpSockRef::from(socket), &message));
        match sent {
            Ok(()) => self.failing = false,
            Err(error) if self.failing || error.kind() == io::ErrorKind::WouldBlock => {
                tracing::trace!(%error, to = %transmit.to, "not sent");
            }
            Err(error) => {
                self.failing = true;
                tracing::debug!(%error, to = %transmit.to, "failed to send gossip");
            }
        }
    }
}

/// An IPv4 sender as a dual-stack socket shows it, as it is.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
