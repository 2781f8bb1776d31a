//! One event after the other, and what the daemons want done after each.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use marengo_core::membership::{Membership, MembershipEvent, SyncMessage};

use super::{Down, Logged, World, overlay::Tunnelled, show::describe};
use crate::{
    cpu::{BATCH, Cpu},
    host_kernel::Station,
};

/// An exchange that takes longer has failed, as in the daemon.
const EXCHANGE_WITHIN: Duration = Duration::from_secs(5);
/// How often a stream tries again what does not arrive.
const RETRANSMIT: Duration = Duration::from_millis(200);

/// What can happen next.
#[derive(Debug)]
pub(super) enum Event {
    /// A datagram arrives at a machine, if it still has the address.
    Datagram { to: usize, at: SocketAddr, from: SocketAddr, data: Bytes },
    /// A daemon's deadline.
    Deadline { node: usize },
    /// A starved process gets the processor.
    Wake { node: usize },
    /// Half an exchange of the membership.
    Exchange(Box<Exchange>),
    /// The converge task of a daemon has something to do.
    Round { node: usize, life: u32 },
    /// A daemon that has said its goodbyes cleans up.
    TearDown { node: usize, life: u32, keep: bool },
    /// A frame arrives through the tunnel.
    Frame(Box<Tunnelled>),
    /// A station has something to send.
    Talk { station: Station },
    /// A station that has just moved tells all.
    Announce { station: Station },
}

/// One half of an exchange: a message on a stream.
#[derive(Debug)]
pub(super) struct Exchange {
    from: usize,
    to: usize,
    /// The start of the asking daemon.
    life: u32,
    until: Instant,
    kind: ExchangeKind,
    message: SyncMessage,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ExchangeKind {
    Request,
    Reply,
}

impl World {
    pub(super) fn step(&mut self, event: Event) {
        match event {
            Event::Datagram { to, at, from, data } => self.datagram(to, at, from, data),
            Event::Deadline { node: index } => {
                let node = &mut self.nodes[index];
                if node.scheduled != Some(self.now) {
                    return;
                }
                node.scheduled = None;
                if node.cpu == Cpu::Full {
                    self.handle_what_is_due(index);
                    self.pump(index);
                } else {
                    self.wake(index);
                }
            }
            Event::Wake { node } => self.run_slice(node),
            Event::Exchange(exchange) => self.exchange(exchange),
            Event::Round { node, life } => self.round(node, life),
            Event::TearDown { node, life, keep } => self.tear_down(node, life, keep),
            Event::Frame(frame) => self.frame(&frame),
            Event::Talk { station } => self.talk(station),
            Event::Announce { station } => self.send_frame(station, None),
        }
    }

    fn datagram(&mut self, to: usize, at: SocketAddr, from: SocketAddr, data: Bytes) {
        let now = self.now;
        if self.node_at(at) != Some(to) {
            return;
        }
        let node = &mut self.nodes[to];
        let Some(membership) = &mut node.membership else { return };
        if node.cpu == Cpu::Full {
            let _refused = membership.handle_datagram(now, from, &data);
            self.pump(to);
        } else {
            node.waiting.keep(from, data);
            self.wake(to);
        }
    }

    /// Arranges for a starved process with work to do to get the processor.
    pub(super) fn wake(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some(membership) = &node.membership else { return };
        let deadline = membership.poll_timeout();
        let wanted = if node.waiting.inbox.is_empty() { deadline } else { Some(self.now) };
        let Some(wanted) = wanted.map(|wanted| wanted.max(self.now)) else { return };
        let Some(at) = node.waiting.next_run(node.cpu, self.start, wanted) else { return };
        if node.waiting.wake_at.is_none_or(|other| at < other) {
            node.waiting.wake_at = Some(at);
            self.queue.push(at, Event::Wake { node: index });
        }
    }

    /// A starved process does one thing.
    fn run_slice(&mut self, index: usize) {
        let now = self.now;
        let node = &mut self.nodes[index];
        if node.waiting.wake_at != Some(now) {
            return;
        }
        node.waiting.wake_at = None;
        if node.cpu == Cpu::Full {
            return;
        }
        let Some(membership) = &mut node.membership else { return };
        let due = membership.poll_timeout().is_some_and(|deadline| deadline <= now);
        let waited = node.waiting.since_deadlines >= BATCH;
        match node.waiting.inbox.pop_front() {
            Some((from, data)) if !(due && waited) => {
                node.waiting.since_deadlines += 1;
                let _refused = membership.handle_datagram(now, from, &data);
            }
            other => {
                if let Some(datagram) = other {
                    node.waiting.inbox.push_front(datagram);
                }
                node.waiting.since_deadlines = 0;
                if due {
                    membership.handle_timeout(now);
                }
            }
        }
        node.waiting.spend(now);
        self.pump(index);
        self.wake(index);
    }

    /// Carries out what a node wants done.
    pub(super) fn pump(&mut self, index: usize) {
        let now = self.now;
        let from = self.addr(index);
        let mut told_members = false;
        while let Some(transmit) = self.membership_mut(index).poll_transmit() {
            let len = transmit.data.len();
            assert!(len <= 1260, "a datagram of {len} bytes");
            self.traffic.datagrams += 1;
            self.traffic.bytes += len as u64;
            let Some(to) = self.node_at(transmit.to) else { continue };
            self.nodes[to].sent_to += 1;
            for delay in
                self.network.gossip_arrivals(index, to, &mut self.rng).into_iter().flatten()
            {
                let data = transmit.data.clone();
                self.queue.push(now + delay, Event::Datagram { to, at: transmit.to, from, data });
            }
        }
        while let Some(event) = self.membership_mut(index).poll_event() {
            if let MembershipEvent::SyncWanted { with } = event {
                self.request_exchange(index, with);
            } else if self.options.strict {
                told_members |= self.nodes[index].hear(&event);
            }
            if let MembershipEvent::MemberDown(down) = &event {
                self.downs.push(Down { at: now, observer: index, addr: down.addr });
            }
            self.trace(|| format!("node{index}: {}", describe(&event)));
            if self.options.log {
                self.log.push(Logged { at: now, node: index, event });
            }
        }
        if told_members {
            self.check(index);
        }
        let node = &mut self.nodes[index];
        let deadline = node.membership.as_ref().and_then(Membership::poll_timeout);
        if let Some(deadline) = deadline
            && node.scheduled.is_none_or(|scheduled| deadline < scheduled)
        {
            let deadline = deadline.max(now);
            node.scheduled = Some(deadline);
            self.queue.push(deadline, Event::Deadline { node: index });
        }
        self.tell_shell(index);
    }

    fn request_exchange(&mut self, from: usize, with: SocketAddr) {
        let to = self.at_ip.get(&with.ip()).copied();
        let Some(to) = to.filter(|&to| self.nodes[to].listen == with) else { return };
        let message = self.membership(from).sync_request();
        let life = self.nodes[from].life;
        // A stream takes a round trip to open.
        let at = self.now + 2 * self.network.delay(&mut self.rng);
        let (until, kind) = (self.now + EXCHANGE_WITHIN, ExchangeKind::Request);
        let exchange = Exchange { from, to, life, until, kind, message };
        self.queue.push(at, Event::Exchange(Box::new(exchange)));
    }

    /// A message of a stream arrives, or is sent again later.
    fn exchange(&mut self, exchange: Box<Exchange>) {
        let now = self.now;
        let Exchange { from, to, until, .. } = *exchange;
        let node = &self.nodes[to];
        let Some(runs_at) = node.waiting.next_run(node.cpu, self.start, now) else {
            return self.retry(exchange);
        };
        let loss = self.network.loss;
        let lost = loss > 0.0 && rand::RngExt::random_bool(&mut self.rng, loss);
        // A stream needs both ways.
        let open = |a, b| self.network.gossip_reaches(a, b);
        if lost || !open(from, to) || !open(to, from) {
            return self.retry(exchange);
        }
        if runs_at > now {
            if runs_at < until {
                self.queue.push(runs_at, Event::Exchange(exchange));
            }
            return;
        }
        if self.options.weigh_exchanges {
            let json = serde_json::to_vec(&exchange.message).expect("JSON");
            self.traffic.exchanged += json.len() as u64;
        }
        let Some(membership) = &mut self.nodes[to].membership else { return };
        match exchange.kind {
            ExchangeKind::Request => {
                if let Ok(message) = membership.handle_sync(now, &exchange.message) {
                    let at = now + self.network.delay(&mut self.rng);
                    let kind = ExchangeKind::Reply;
                    let reply = Exchange { from: to, to: from, kind, message, ..*exchange };
                    self.queue.push(at, Event::Exchange(Box::new(reply)));
                }
            }
            ExchangeKind::Reply => {
                if self.nodes[to].life != exchange.life {
                    return;
                }
                self.membership_mut(to)
                    .handle_sync_reply(now, &exchange.message)
                    .expect("a good reply");
            }
        }
        self.pump(to);
        self.wake_if_starved(to);
    }

    fn retry(&mut self, exchange: Box<Exchange>) {
        let at = self.now + RETRANSMIT;
        if at < exchange.until {
            self.queue.push(at, Event::Exchange(exchange));
        }
    }

    fn wake_if_starved(&mut self, index: usize) {
        if self.nodes[index].cpu != Cpu::Full {
            self.wake(index);
        }
    }
}
