//! A probe of 1,000 packets per second, or fewer, in one direction, each numbered: what is missing
//! was lost.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};

use crate::netns::Namespace;

const INTERVAL: Duration = Duration::from_millis(1);
/// The limit of a test.
const LASTING: Duration = Duration::from_mins(2);
/// How long the last packets get at the end.
const GRACE: Duration = Duration::from_millis(700);
/// The scheduler may leave the receiver aside for a moment: that is no loss of the network's.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A running probe; dropping it stops it.
#[derive(Debug)]
pub struct Probe {
    shared: Arc<Shared>,
    sender: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    interval: Duration,
    sent: AtomicUsize,
    seen: Vec<AtomicBool>,
    duplicates: AtomicUsize,
    stop_sending: AtomicBool,
    stop_receiving: AtomicBool,
}

/// What became of all packets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    pub sent: usize,
    pub lost: usize,
    /// Packets that arrived more than once.
    pub duplicates: usize,
    /// When the first and the last lost packet were sent, counted from the start.
    pub lost_between: Option<(Duration, Duration)>,
}

impl Probe {
    /// Starts to send from one namespace to an address in another.
    pub fn start(from: &Namespace, to: &Namespace, address: Ipv4Addr) -> Self {
        Self::paced(from, to, address, INTERVAL, LASTING)
    }

    /// As [`Probe::start`], with a packet every `interval`, for `lasting` at most.
    pub fn paced(
        from: &Namespace,
        to: &Namespace,
        address: Ipv4Addr,
        interval: Duration,
        lasting: Duration,
    ) -> Self {
        let capacity = usize::try_from(lasting.as_micros() / interval.as_micros().max(1));
        let capacity = capacity.expect("a test does not last that long");
        let incoming = to.inside(|| {
            let socket = UdpSocket::bind((address, 0)).expect("the address is the namespace's");
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
                .expect("root may enlarge a buffer");
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("it is not zero");
            socket
        });
        let port = incoming.local_addr().expect("it is bound").port();
        let outgoing = from.inside(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("any port will do");
            socket.connect(SocketAddrV4::new(address, port)).expect("there is a route");
            socket
        });
        let shared = Arc::new(Shared {
            interval,
            sent: AtomicUsize::new(0),
            seen: std::iter::repeat_with(AtomicBool::default).take(capacity).collect(),
            duplicates: AtomicUsize::new(0),
            stop_sending: AtomicBool::new(false),
            stop_receiving: AtomicBool::new(false),
        });
        let (sending, receiving) = (Arc::clone(&shared), Arc::clone(&shared));
        Self {
            shared,
            sender: Some(thread::spawn(move || sending.send(&outgoing))),
            receiver: Some(thread::spawn(move || receiving.receive(&incoming))),
        }
    }

    /// Packets sent so far.
    pub fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::Acquire)
    }

    /// Stops sending, waits for the last packets, and counts.
    pub fn finish(mut self) -> Outcome {
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
        let mut due = Instant::now();
        for number in 0..self.seen.len() {
            if self.stop_sending.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // A packet that cannot be sent is lost as well: it stays unseen.
            socket.send(&(number as u64).to_be_bytes()).ok();
            self.sent.store(number + 1, Ordering::Release);
            due += self.interval;
        }
    }

    fn receive(&self, socket: &UdpSocket) {
        let mut packet = [0; 8];
        while !self.stop_receiving.load(Ordering::Relaxed) {
            // The timeout of the socket is what lets the flag be seen.
            if let Ok(8) = socket.recv(&mut packet) {
                let number = usize::try_from(u64::from_be_bytes(packet)).unwrap_or(usize::MAX);
                if let Some(seen) = self.seen.get(number)
                    && seen.swap(true, Ordering::AcqRel)
                {
                    self.duplicates.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn outcome(&self) -> Outcome {
        let sent = self.sent.load(Ordering::Acquire);
        let lost: Vec<u32> = (0_u32..)
            .zip(&self.seen[..sent])
            .filter(|(_, seen)| !seen.load(Ordering::Acquire))
            .map(|(number, _)| number)
            .collect();
        let at = |number: &u32| self.interval * *number;
        Outcome {
            sent,
            lost: lost.len(),
            duplicates: self.duplicates.load(Ordering::Relaxed),
            lost_between: lost.first().map(at).zip(lost.last().map(at)),
        }
    }
}
