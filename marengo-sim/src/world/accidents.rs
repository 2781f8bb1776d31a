//! What befalls machines and daemons, and what people do with them.

use std::net::{IpAddr, SocketAddr};

use marengo_common::Vni;
use marengo_core::{
    control::Without,
    identity::DataPlaneId,
    membership::Membership,
    settings::{DataPlane, IfName},
};
use rand::{SeedableRng as _, rngs::StdRng};

use super::{World, overlay::LEAVE_WITHIN, step::Event};
use crate::{
    cpu::{BATCH, Cpu},
    host_kernel::HostKernel,
    node::{Node, ip_number},
    shell::Shell,
};

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
        self.trace(|| format!("node{index} starts, told to join {seeds:?}"));
        let node = &mut self.nodes[index];
        assert!(node.membership.is_none(), "node {index} runs already");
        let kept = node.data_plane.take();
        let kept = node.kernel.as_ref().map_or(kept, HostKernel::data_plane);
        let id = kept.unwrap_or_else(|| DataPlaneId::random(&mut rng));
        if let Some(kernel) = &node.kernel {
            let data_plane = data_plane(node, id);
            node.shell = Some(Shell::new(self.now, kernel, data_plane, node.config.without));
        }
        let identity = node.identity(elapsed, id);
        let mut membership = Membership::new(self.now, node.config.clone(), identity, rng);
        membership.set_seeds(self.now, seeds);
        node.membership = Some(membership);
        node.life += 1;
        self.at_ip.insert(node.addr.ip(), index);
        self.pump(index);
    }

    /// The names of the seeds were looked up again.
    pub fn resolve(&mut self, index: usize, seeds: Vec<SocketAddr>) {
        let now = self.now;
        if let Some(membership) = &mut self.nodes[index].membership {
            membership.set_seeds(now, seeds);
            self.pump(index);
        }
    }

    /// Adds a machine that has power, and gives its number.
    pub fn add_machine(&mut self, without: Without) -> usize {
        let index = self.nodes.len();
        let mut node = Node::new(index);
        node.config.without = without;
        self.addresses += 1;
        node.set_address(self.addresses);
        self.nodes.push(node);
        self.power_on(index);
        index
    }

    /// A machine that was just added gets the addresses of one that has no power.
    pub fn take_over(&mut self, new: usize, dead: usize) {
        self.trace(|| format!("node{new} has the address of node{dead}"));
        let Node { addr, vtep, listen, .. } = self.nodes[dead];
        let node = &mut self.nodes[new];
        self.at_ip.remove(&node.addr.ip());
        (node.addr, node.vtep, node.listen) = (addr, vtep, listen);
        self.at_ip.insert(addr.ip(), new);
    }

    /// Gives a machine without power another address, if somebody else has its own.
    pub fn make_address_free(&mut self, index: usize) {
        let ip = self.nodes[index].addr.ip();
        let taken =
            (0..self.nodes.len()).any(|other| other != index && self.nodes[other].vtep == ip);
        if taken {
            self.addresses += 1;
            self.nodes[index].set_address(self.addresses);
        }
    }

    /// Switches a machine on. No daemon runs on it yet.
    pub fn power_on(&mut self, index: usize) {
        self.trace(|| format!("node{index} has power"));
        let node = &mut self.nodes[index];
        assert!(node.kernel.is_none(), "node {index} has power already");
        node.kernel = Some(HostKernel::new(self.now, node.config.without));
        self.at_ip.insert(node.addr.ip(), index);
    }

    /// The machine loses its power: daemon, links, maps.
    pub fn power_off(&mut self, index: usize) {
        self.trace(|| format!("node{index} loses its power"));
        let node = &mut self.nodes[index];
        node.clear();
        node.kernel = None;
        let ip = node.addr.ip();
        if self.at_ip.get(&ip) == Some(&index) {
            self.at_ip.remove(&ip);
        }
    }

    /// SIGKILL, or the end of the machine: no goodbye.
    pub fn crash(&mut self, index: usize) {
        self.trace(|| format!("node{index} crashes"));
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
        self.readdress(index, ip);
        self.follow(index);
    }

    /// Gives a machine an address that nobody ever had.
    pub fn readdress_anew(&mut self, index: usize) {
        self.addresses += 1;
        let ip = ip_number(self.addresses);
        self.readdress(index, ip);
    }

    /// Gives a machine another address. Its daemon has not noticed yet.
    fn readdress(&mut self, index: usize, ip: IpAddr) {
        self.trace(|| format!("node{index} gets the address {ip}"));
        let node = &mut self.nodes[index];
        self.at_ip.remove(&node.addr.ip());
        self.at_ip.insert(ip, index);
        node.addr.set_ip(ip);
        node.listen.set_ip(ip);
        node.vtep = ip;
    }

    /// The daemon of a machine notices that it has another address.
    pub fn follow(&mut self, index: usize) {
        let now = self.now;
        let node = &mut self.nodes[index];
        if node.cpu == Cpu::Stopped {
            return;
        }
        let Some(membership) = &mut node.membership else { return };
        let (addr, vtep, listen) = (node.addr, node.vtep, node.listen);
        if membership.identity().addr != addr {
            membership.change_address(now, addr, vtep, listen).expect("a good address");
            if let Some(shell) = &mut node.shell {
                shell.change_vtep(now, vtep);
            }
            self.pump(index);
        }
    }

    /// Tells a node to leave. Its machine stays, so that it says its second goodbye.
    pub fn leave(&mut self, index: usize) {
        let now = self.now;
        self.trace(|| format!("node{index} leaves"));
        self.membership_mut(index).leave(now);
        self.pump(index);
        if self.nodes[index].kernel.is_some() {
            self.go(index, false);
        }
    }

    /// The daemon ends when its goodbyes are said; until then its converge task does no more.
    fn go(&mut self, index: usize, keep: bool) {
        let node = &mut self.nodes[index];
        node.shell = None;
        let event = Event::TearDown { node: index, life: node.life, keep };
        self.queue.push(self.now + LEAVE_WITHIN, event);
    }

    /// Tells a daemon to go and leave its data plane for its next start.
    pub fn leave_for_restart(&mut self, index: usize) {
        let now = self.now;
        let data_plane = self.membership(index).identity().data_plane;
        self.nodes[index].data_plane = Some(data_plane);
        self.trace(|| format!("node{index} goes and will be back"));
        self.membership_mut(index).leave_for_restart(now);
        self.pump(index);
        if self.nodes[index].kernel.is_some() {
            self.go(index, true);
        }
    }

    /// Gives a daemon less of a processor.
    pub fn starve(&mut self, index: usize, cpu: Cpu) {
        self.trace(|| format!("node{index} has {cpu:?}"));
        self.nodes[index].cpu = cpu;
        self.wake(index);
    }

    /// SIGSTOP.
    pub fn stop(&mut self, index: usize) {
        self.trace(|| format!("node{index} is stopped"));
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
        self.trace(|| format!("node{index} goes on"));
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
        self.follow(index);
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

/// What the operator of a machine decided about its data plane.
fn data_plane(node: &Node, id: DataPlaneId) -> DataPlane {
    DataPlane {
        bridge: IfName::new("marengo").expect("a name"),
        device: IfName::new("ol-marengo").expect("a name"),
        vni: Vni::new(1024).expect("a VNI"),
        port: 4789,
        vtep: node.vtep,
        mtu: None,
        max_peers: 1024,
        id,
    }
}
