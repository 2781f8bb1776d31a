//! The network between the machines: what it delays, loses, doubles, swaps and cuts.

use std::time::Duration;

use rand::{RngExt as _, rngs::StdRng};

use crate::ms;

/// How the network treats datagrams.
#[derive(Clone, Debug)]
pub struct Network {
    /// Least and most time a datagram takes.
    pub latency: (Duration, Duration),
    /// Share of datagrams that are lost.
    pub loss: f64,
    /// Share of datagrams that arrive twice.
    pub duplication: f64,
    /// Share of datagrams that are held back long enough to be overtaken.
    pub reordering: f64,
    /// Share of gossip's datagrams that are lost beside those.
    pub gossip_loss: f64,
    /// For each machine those that it does not reach; empty while nothing is cut.
    cut: Vec<Vec<bool>>,
    /// The same for gossip alone, as a firewall cuts it.
    gossip_cut: Vec<Vec<bool>>,
}

impl Default for Network {
    fn default() -> Self {
        let latency = (Duration::from_micros(100), ms(2));
        Self {
            latency,
            loss: 0.0,
            duplication: 0.0,
            reordering: 0.0,
            gossip_loss: 0.0,
            cut: Vec::new(),
            gossip_cut: Vec::new(),
        }
    }
}

impl Network {
    /// A network that loses this share of the datagrams.
    pub fn lossy(loss: f64) -> Self {
        Self { loss, ..Self::default() }
    }

    /// Cuts every connection between the two groups, in both directions.
    pub fn cut(&mut self, left: &[usize], right: &[usize]) {
        self.cut_one_way(left, right);
        self.cut_one_way(right, left);
    }

    /// What the first group sends does not reach the second.
    pub fn cut_one_way(&mut self, from: &[usize], to: &[usize]) {
        mark(&mut self.cut, from, to);
    }

    /// Cuts gossip between the two groups, and nothing else.
    pub fn cut_gossip(&mut self, left: &[usize], right: &[usize]) {
        mark(&mut self.gossip_cut, left, right);
        mark(&mut self.gossip_cut, right, left);
    }

    /// Ends all cuts.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.gossip_cut.clear();
    }

    /// Whether what one machine sends may reach another.
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        !is_marked(&self.cut, from, to)
    }

    /// Whether one machine's gossip may reach another.
    pub fn gossip_reaches(&self, from: usize, to: usize) -> bool {
        self.reaches(from, to) && !is_marked(&self.gossip_cut, from, to)
    }

    /// After which times a datagram of gossip arrives: never, once or twice.
    pub(crate) fn gossip_arrivals(
        &self,
        from: usize,
        to: usize,
        rng: &mut StdRng,
    ) -> [Option<Duration>; 2] {
        if is_marked(&self.gossip_cut, from, to) || happens(self.gossip_loss, rng) {
            return [None, None];
        }
        self.arrivals(from, to, rng)
    }

    /// After which times a datagram arrives: never, once or twice.
    pub(crate) fn arrivals(
        &self,
        from: usize,
        to: usize,
        rng: &mut StdRng,
    ) -> [Option<Duration>; 2] {
        if !self.reaches(from, to) || happens(self.loss, rng) {
            return [None, None];
        }
        let first = Some(self.delay(rng));
        let second = happens(self.duplication, rng).then(|| self.delay(rng));
        [first, second]
    }

    /// As [`Network::arrivals`], for frames of the overlay: some are held back for long, but less
    /// than the programs promise to see through.
    pub(crate) fn frame_arrivals(
        &self,
        from: usize,
        to: usize,
        rng: &mut StdRng,
    ) -> [Option<Duration>; 2] {
        let long = happens(self.reordering, rng).then(|| ms(rng.random_range(0..150)));
        self.arrivals(from, to, rng).map(|arrival| Some(arrival? + long.unwrap_or_default()))
    }

    /// How long one datagram takes.
    pub(crate) fn delay(&self, rng: &mut StdRng) -> Duration {
        let (least, most) = self.latency;
        let delay = least + most.saturating_sub(least).mul_f64(rng.random());
        if happens(self.reordering, rng) { delay + ms(rng.random_range(5..50)) } else { delay }
    }
}

/// No number is drawn for what never happens.
fn happens(share: f64, rng: &mut StdRng) -> bool {
    share > 0.0 && rng.random_bool(share)
}

fn mark(cut: &mut Vec<Vec<bool>>, from: &[usize], to: &[usize]) {
    let most = from.iter().chain(to).max().map_or(0, |most| most + 1);
    let size = most.max(cut.len());
    cut.resize_with(size, Vec::new);
    for row in cut.iter_mut() {
        row.resize(size, false);
    }
    for &a in from {
        for &b in to {
            cut[a][b] = true;
        }
    }
}

fn is_marked(cut: &[Vec<bool>], from: usize, to: usize) -> bool {
    cut.get(from).and_then(|row| row.get(to)).copied().unwrap_or(false)
}
