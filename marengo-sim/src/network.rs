//! The network between the nodes: what it delays, loses, doubles, swaps and cuts.

use std::{collections::BTreeSet, time::Duration};

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
    /// Pairs of nodes, by index, of which the first does not reach the second.
    cut: BTreeSet<(usize, usize)>,
}

impl Default for Network {
    fn default() -> Self {
        let latency = (Duration::from_micros(100), ms(2));
        Self { latency, loss: 0.0, duplication: 0.0, reordering: 0.0, cut: BTreeSet::new() }
    }
}

impl Network {
    /// Cuts every connection between the two groups, in both directions.
    pub fn cut(&mut self, left: &[usize], right: &[usize]) {
        for &a in left {
            for &b in right {
                self.cut.insert((a, b));
                self.cut.insert((b, a));
            }
        }
    }

    /// Ends all cuts.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    pub fn reaches(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// After which times a datagram arrives: never, once or twice.
    pub fn arrivals(&self, from: usize, to: usize, rng: &mut StdRng) -> Vec<Duration> {
        if !self.reaches(from, to) || rng.random_bool(self.loss) {
            return Vec::new();
        }
        let copies = if rng.random_bool(self.duplication) { 2 } else { 1 };
        (0..copies).map(|_| self.delay(rng)).collect()
    }

    pub fn delay(&self, rng: &mut StdRng) -> Duration {
        let delay = rng.random_range(self.latency.0..=self.latency.1);
        if rng.random_bool(self.reordering) { delay + ms(rng.random_range(5..50)) } else { delay }
    }
}
