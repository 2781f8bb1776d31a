//! Trouble of the network and of the kernels, and its end. What watches the paths is told.

use marengo_core::op::Hook;

use super::World;
use crate::host_kernel::Mood;

impl World {
    /// Nothing passes between the two groups.
    pub fn cut(&mut self, left: &[usize], right: &[usize]) {
        self.trace(|| format!("cut between {left:?} and {right:?}"));
        self.network.cut(left, right);
    }

    /// What the first group sends does not reach the second.
    pub fn cut_one_way(&mut self, from: &[usize], to: &[usize]) {
        self.trace(|| format!("cut from {from:?} to {to:?}"));
        self.network.cut_one_way(from, to);
    }

    /// Gossip does not pass between the two groups; frames do.
    pub fn cut_gossip(&mut self, left: &[usize], right: &[usize]) {
        self.trace(|| format!("gossip is cut between {left:?} and {right:?}"));
        self.network.cut_gossip(left, right);
    }

    /// Ends all cuts.
    pub fn heal_cuts(&mut self) {
        self.trace(|| "the cuts end".to_owned());
        let count = self.nodes.len();
        for from in 0..count {
            for to in 0..count {
                if !self.network.reaches(from, to) {
                    self.disturbed.insert((from, to), self.now);
                }
            }
        }
        self.network.heal();
    }

    /// The network loses, doubles and holds back these shares of what is sent.
    pub fn weather(&mut self, loss: f64, duplication: f64, reordering: f64) {
        self.trace(|| format!("loss {loss}, duplication {duplication}, reordering {reordering}"));
        if self.network.loss > 0.1 {
            self.network_changed = Some(self.now);
        }
        self.network.loss = loss;
        self.network.duplication = duplication;
        self.network.reordering = reordering;
    }

    /// Changes how a machine's kernel treats its daemon.
    pub fn set_mood(&mut self, index: usize, mood: Mood) {
        if let Some(kernel) = &mut self.nodes[index].kernel {
            kernel.mood = mood;
        }
        self.trace(|| format!("the kernel of node{index}: {mood:?}"));
    }

    /// Another hand takes something away on a machine. The kernel reports what it reports.
    pub fn meddle(&mut self, index: usize, what: Meddling) {
        self.trace(|| format!("another hand on node{index}: {what:?}"));
        let now = self.now;
        let node = &mut self.nodes[index];
        let Some(kernel) = &mut node.kernel else { return };
        let state = kernel.meddle(now);
        match what {
            Meddling::Device => {
                state.device = None;
                state.hooks.remove(&Hook::DeviceIngress);
                state.hooks.remove(&Hook::DeviceEgress);
            }
            Meddling::DeviceDown => {
                if let Some(device) = &mut state.device {
                    device.up = false;
                }
            }
            Meddling::Port => {
                if let Some(device) = &mut state.device {
                    device.master = None;
                }
            }
            Meddling::Hook(hook) => {
                state.hooks.remove(&hook);
            }
            Meddling::Slot => {
                state.peers.pop_first();
            }
            Meddling::Address => {
                state.vteps.pop_first();
            }
            Meddling::Flood => {
                state.flood.pop_last();
            }
        }
        if matches!(what, Meddling::Device | Meddling::DeviceDown | Meddling::Port)
            && let Some(shell) = &mut node.shell
        {
            shell.handle_report(now);
        }
        self.schedule_round(index);
    }
}

/// What another hand takes away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Meddling {
    /// The device.
    Device,
    /// That it is up.
    DeviceDown,
    /// That it is a port of the bridge.
    Port,
    /// A program.
    Hook(Hook),
    /// A slot.
    Slot,
    /// A tunnel address.
    Address,
    /// The end of the flood list.
    Flood,
}
