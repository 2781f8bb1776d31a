//! What befalls machines and daemons, and what people do with them.

use std::net::{IpAddr, SocketAddr};

use marengo_core::{identity::DataPlaneId, membership::Membership};
use rand::{SeedableRng as _, rngs::StdRng};

use super::World;
use crate::cpu::{BATCH, Cpu};

impl World {
    /// Starts the daemon of a node, with the nodes that it is told to join.
    pub fn start(&mut self, node: usize, seeds: &[usize]) {
        let seeds = seeds.iter().map(|&seed| self.addr(seed)).collect();
        self.start_with(node, seeds);
    }

    /// Starts the daemon of a node, with the addresses that it is told to join.
    pub fn start_with(&mut self, index: usize, seeds: Vec<SocketAddr>) {
        let elapsed = u64::try_from(self.elapsed().as_millis()).expect("small");
        let mut rng = StdRng::from_rng(&mut self.rng);
        let new = DataPlaneId::random(&mut rng);
        let node = &mut self.nodes[index];
        let data_plane = node.data_plane.take().unwrap_or(new);
        assert!(node.membership.is_none(), "node {index} runs already");
        let identity = node.identity(elapsed, data_plane);
        let mut membership = Membership::new(self.now, node.config.clone(), identity, rng);
        membership.set_seeds(self.now, seeds);
        node.membership = Some(membership);
        node.life += 1;
        self.at_ip.insert(node.addr.ip(), index);
        self.pump(index);
    }

    /// SIGKILL, or the end of the machine: no goodbye.
    pub fn crash(&mut self, index: usize) {
        self.nodes[index].clear();
    }

    /// SIGKILL of the daemon alone: its next start takes the data plane over.
    pub fn kill(&mut self, index: usize) {
        let data_plane = self.membership(index).identity().data_plane;
        self.crash(index);
        self.nodes[index].data_plane = Some(data_plane);
    }

    /// Gives a machine another address in place of the one it has. A daemon that runs follows.
    pub fn renumber(&mut self, index: usize, ip: IpAddr) {
        let now = self.now;
        let node = &mut self.nodes[index];
        self.at_ip.remove(&node.addr.ip());
        self.at_ip.insert(ip, index);
        node.addr.set_ip(ip);
        node.listen.set_ip(ip);
        node.vtep = ip;
        if let Some(membership) = &mut node.membership {
            membership.change_address(now, node.addr, ip, node.listen).expect("a good address");
            self.pump(index);
        }
    }

    /// Tells a node to leave. Its machine stays, so that it says its second goodbye.
    pub fn leave(&mut self, index: usize) {
        let now = self.now;
        self.membership_mut(index).leave(now);
        self.pump(index);
    }

    /// Tells a daemon to go and leave its data plane for its next start.
    pub fn leave_for_restart(&mut self, index: usize) {
        let now = self.now;
        let data_plane = self.membership(index).identity().data_plane;
        self.nodes[index].data_plane = Some(data_plane);
        self.membership_mut(index).leave_for_restart(now);
        self.pump(index);
    }

    /// Gives a daemon less of a processor.
    pub fn starve(&mut self, index: usize, cpu: Cpu) {
        self.nodes[index].cpu = cpu;
        self.wake(index);
    }

    /// SIGSTOP.
    pub fn stop(&mut self, index: usize) {
        self.nodes[index].cpu = Cpu::Stopped;
    }

    /// What came for a stopped process is lost, as on a suspended machine.
    pub fn lose_inbox(&mut self, index: usize) {
        self.nodes[index].waiting.inbox.clear();
    }

    /// SIGCONT, or a whole processor again: what the socket kept is read first, then what is due is
    /// done.
    pub fn resume(&mut self, index: usize) {
        let now = self.now;
        self.nodes[index].cpu = Cpu::Full;
        loop {
            let inbox = &mut self.nodes[index].waiting.inbox;
            let batch: Vec<_> = inbox.drain(..BATCH.min(inbox.len())).collect();
            if batch.is_empty() {
                break;
            }
            for (from, data) in batch {
                let _refused = self.membership_mut(index).handle_datagram(now, from, &data);
            }
            self.handle_what_is_due(index);
        }
        self.handle_what_is_due(index);
        self.nodes[index].scheduled = None;
        self.pump(index);
    }

    pub(super) fn handle_what_is_due(&mut self, index: usize) {
        let now = self.now;
        if let Some(membership) = &mut self.nodes[index].membership
            && membership.poll_timeout().is_some_and(|deadline| deadline <= now)
        {
            membership.handle_timeout(now);
        }
    }
}
