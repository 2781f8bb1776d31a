//! A probe of 1,000 packets per second in one direction, each numbered: what is missing was lost.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt};

use crate::netns;

const PER_SECOND: u32 = 1000;
const INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / PER_SECOND as u64);
/// Two minutes: far more than any use of it.
const CAPACITY: usize = 120 * PER_SECOND as usize;
const PORT: u16 = 7777;
/// How long a packet may take before the running count calls it lost.
const IN_FLIGHT: usize = PER_SECOND as usize / 5;
/// How long the last packets get at the end.
const GRACE: Duration = Duration::from_secs(1);
/// The scheduler may leave the receiver aside for a moment: that is no loss of the network's.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A running probe; dropping it stops it.
#[derive(Debug)]
pub(crate) struct Probe {
    shared: Arc<Shared>,
    sender: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    sent: AtomicUsize,
    seen: Vec<AtomicBool>,
    stop_sending: AtomicBool,
    stop_receiving: AtomicBool,
}

/// What became of all packets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) sent: usize,
    pub(crate) lost: usize,
    /// When the first lost packet was sent, counted from the start.
    pub(crate) first_lost: Option<Duration>,
}

/// An end of the probe: an address inside a namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) address: Ipv4Addr,
}

impl Probe {
    pub(crate) fn start(from: End<'_>, to: End<'_>) -> Result<Self> {
        let target = SocketAddrV4::new(to.address, PORT);
        let incoming = netns::inside(to.namespace, || {
            let socket = UdpSocket::bind(target)
                .with_context(|| format!("failed to bind the probe's receiver to {target}"))?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
                .context("failed to enlarge the probe's receive buffer")?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(socket)
        })?;
        let outgoing = netns::inside(from.namespace, || {
            let socket = UdpSocket::bind((from.address, 0)).with_context(|| {
                format!("failed to bind the probe's sender to {}", from.address)
            })?;
            socket.connect(target).with_context(|| format!("failed to connect to {target}"))?;
            Ok(socket)
        })?;

        let shared = Arc::new(Shared {
            sent: AtomicUsize::new(0),
            seen: std::iter::repeat_with(AtomicBool::default).take(CAPACITY).collect(),
            stop_sending: AtomicBool::new(false),
            stop_receiving: AtomicBool::new(false),
        });
        let (sending, receiving) = (Arc::clone(&shared), Arc::clone(&shared));
        Ok(Self {
            shared,
            sender: Some(thread::spawn(move || sending.send(&outgoing))),
            receiver: Some(thread::spawn(move || receiving.receive(&incoming))),
        })
    }

    /// Packets that should have arrived and have not.
    pub(crate) fn lost_so_far(&self) -> usize {
        let due = self.shared.sent.load(Ordering::Acquire).saturating_sub(IN_FLIGHT);
        self.shared.lost_of(due)
    }

    /// Stops sending, waits for the last packets, and counts.
    pub(crate) fn finish(mut self) -> Outcome {
        self.stop_sender();
        thread::sleep(GRACE);
        self.stop_receiver();
        self.shared.outcome()
    }

    fn stop_sender(&mut self) {
        self.shared.stop_sending.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed, and shows as packets that are missing.
        self.sender.take().and_then(|thread| thread.join().ok());
    }

    fn stop_receiver(&mut self) {
        self.shared.stop_receiving.store(true, Ordering::Relaxed);
        self.receiver.take().and_then(|thread| thread.join().ok());
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop_sender();
        self.stop_receiver();
    }
}

impl Shared {
    fn send(&self, socket: &UdpSocket) {
        let start = Instant::now();
        let mut due = start;
        for number in 0..CAPACITY {
            if self.stop_sending.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // A packet that cannot be sent is lost as well: it stays unseen.
            socket.send(&(number as u64).to_be_bytes()).ok();
            self.sent.store(number + 1, Ordering::Release);
            due += INTERVAL;
        }
    }

    fn receive(&self, socket: &UdpSocket) {
        let mut packet = [0; 8];
        while !self.stop_receiving.load(Ordering::Relaxed) {
            // The timeout of the socket is what lets the flag be seen.
            if let Ok(8) = socket.recv(&mut packet) {
                let number = usize::try_from(u64::from_be_bytes(packet)).unwrap_or(usize::MAX);
                if let Some(seen) = self.seen.get(number) {
                    seen.store(true, Ordering::Release);
                }
            }
        }
    }

    fn lost_of(&self, due: usize) -> usize {
        self.seen.iter().take(due).filter(|seen| !seen.load(Ordering::Acquire)).count()
    }

    fn outcome(&self) -> Outcome {
        let sent = self.sent.load(Ordering::Acquire);
        let first = self.seen.iter().take(sent).position(|seen| !seen.load(Ordering::Acquire));
        Outcome {
            sent,
            lost: self.lost_of(sent),
            first_lost: first
                .and_then(|number| Some(INTERVAL.saturating_mul(u32::try_from(number).ok()?))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_numbers_are_lost() {
        let shared = Shared {
            sent: AtomicUsize::new(6),
            seen: std::iter::repeat_with(AtomicBool::default).take(10).collect(),
            stop_sending: AtomicBool::new(false),
            stop_receiving: AtomicBool::new(false),
        };
        for number in [0, 1, 4, 5] {
            shared.seen[number].store(true, Ordering::Release);
        }

        let outcome = shared.outcome();

        let expected = Outcome { sent: 6, lost: 2, first_lost: Some(Duration::from_millis(2)) };
        assert_eq!(outcome, expected);
    }
}
