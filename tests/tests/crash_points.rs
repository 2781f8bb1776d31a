//! The daemon is killed at each system call with which it writes to the kernel, in every kind of round.
//! Whatever was half done, the next start finishes it, and a clean stop leaves nothing.
//!
//! Some points, chosen by a seed that is printed; with `MARENGO_RUNS` above 1 all of them.
#![expect(clippy::print_stderr, reason = "K of K is what one wants to read")]

use std::{
    fmt, thread,
    time::{Duration, Instant},
};

use marengo_common::VtepKey;
use marengo_tests::{
    HostState, Mesh, Node, Saboteur,
    bpf::{self, Maps},
    node::{BRIDGE, DEVICE},
    require_root, requirements, wait,
};
use nix::sys::signal::Signal;
use rand::{SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

const SABOTEUR: &str = env!("CARGO_BIN_EXE_saboteur");

/// From the moment at which the next daemon answers until all is as it should be.
const WITHIN: Duration = Duration::from_secs(2);

/// What makes the daemon write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Round {
    Start,
    StartWithAdoption,
    PeerJoins,
    PeerGoes,
    DeviceDeleted,
    BridgeDeleted,
    MtuChange,
    Stop,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Start => "a start from nothing",
            Self::StartWithAdoption => "a start that takes over",
            Self::PeerJoins => "a peer joins",
            Self::PeerGoes => "a peer goes",
            Self::DeviceDeleted => "the device was deleted",
            Self::BridgeDeleted => "the bridge was deleted",
            Self::MtuChange => "the underlay's MTU changed",
            Self::Stop => "a clean stop",
        })
    }
}

#[test]
fn killed_at_a_write_of_a_start() {
    sweep(&[Round::Start, Round::StartWithAdoption], 4);
}

#[test]
fn killed_at_a_write_of_a_change_of_members() {
    sweep(&[Round::PeerJoins, Round::PeerGoes], 2);
}

#[test]
fn killed_at_a_write_of_a_repair() {
    sweep(&[Round::DeviceDeleted, Round::MtuChange, Round::BridgeDeleted], 2);
}

#[test]
fn killed_at_a_write_of_a_stop() {
    sweep(&[Round::Stop], 3);
}

/// Kills at `sample` points of each round, or at all.
fn sweep(rounds: &[Round], sample: usize) {
    require_root!();
    let all = requirements::runs(1) > 1;
    let mut random = StdRng::seed_from_u64(requirements::seed());
    let stage = Stage::set(if all { Duration::from_mins(30) } else { Duration::from_mins(4) });
    for round in rounds {
        let writes = stage.play(*round, None).writes;
        assert!(!writes.is_empty(), "{round}: nothing is written");
        let mut points: Vec<usize> = (1..=writes.len()).collect();
        if !all {
            points = points.sample(&mut random, sample).copied().collect();
            points.sort_unstable();
        }
        let (mut killed, mut slowest) = (0, Duration::ZERO);
        for point in &points {
            // What was written differs a little from time to time: a point behind the end is one at
            // which nothing was left to write.
            let played = stage.play(*round, Some(*point));
            killed += usize::from(played.killed_at.is_some());
            slowest = slowest.max(played.recovery);
        }
        eprintln!(
            "{round}: {} of {} points, killed at {killed} ({} writes), right again {slowest:?} after the \
             next start",
            points.len(),
            points.len(),
            writes.len(),
        );
        if all {
            eprintln!("  {}", writes.join(", "));
        }
        assert!(killed * 10 >= points.len() * 9, "{round}: killed at {killed} points alone");
    }
}

/// Three nodes; the first is the one that is killed.
struct Stage {
    mesh: Mesh,
    /// What there is without a daemon: the users' bridge.
    empty: HostState,
}

#[derive(Debug)]
struct Played {
    writes: Vec<String>,
    killed_at: Option<String>,
    recovery: Duration,
}

impl Stage {
    fn set(limit: Duration) -> Self {
        let mesh = Mesh::within(3, limit);
        let node = mesh.node(1);
        node.namespace.ip(&format!("link add {BRIDGE} type bridge\nlink set {BRIDGE} mtu 1450"));
        node.address_bridge();
        let empty = HostState::of(node);
        mesh.node(2).start(&[]);
        mesh.node(2).address_bridge();
        Self { mesh, empty }
    }

    fn node(&self) -> &Node {
        self.mesh.node(1)
    }

    fn args(&self) -> [String; 2] {
        ["-j".to_owned(), self.mesh.node(2).seed()]
    }

    fn start(&self) {
        let args = self.args();
        self.node().start(&[&args[0], &args[1]]);
    }

    /// Brings about a round, kills the daemon at its write number `point`, starts it again, and looks
    /// at everything.
    fn play(&self, round: Round, point: Option<usize>) -> Played {
        let node = self.node();
        let order = point.map(|point| format!("kill {point}"));
        let saboteur = self.bring_about(round, order.as_deref());
        let wants_end = round == Round::Stop;
        // A round is over when nothing has been written for a while.
        let (mut seen, mut since) = (0, Instant::now());
        let start = Instant::now();
        while node.is_running() && (since.elapsed() < Duration::from_millis(700) || wants_end) {
            assert!(start.elapsed() < Duration::from_secs(20), "{round} {point:?} does not end");
            if saboteur.writes().len() != seen {
                (seen, since) = (saboteur.writes().len(), Instant::now());
            }
            thread::sleep(Duration::from_millis(5));
        }
        let (writes, killed_at) = (saboteur.writes(), saboteur.killed_at());
        drop(saboteur);
        if node.is_running() {
            node.kill();
        } else {
            node.wait_ended(Duration::from_secs(1));
        }
        let what = format!("{round}, killed at {point:?} ({killed_at:?})");
        self.restore(round);

        self.start();
        let answered = Instant::now();
        let with_third = round == Round::PeerJoins;
        while let Err(wrong) = self.is_right(with_third) {
            let late = answered.elapsed() > WITHIN;
            assert!(!late, "{what}: not right {WITHIN:?} after the next start: {wrong}");
            thread::sleep(Duration::from_millis(10));
        }
        let recovery = answered.elapsed();
        wait::until(&format!("{what}: traffic passes"), Duration::from_secs(3), || {
            node.namespace.pings(&self.mesh.node(2).overlay().to_string(), 1)
        });

        assert!(node.stop().success(), "{what}: the stop fails\n{}", node.log());
        let mut left = HostState::of(node);
        if round == Round::BridgeDeleted {
            // It is another one.
            left.links.clone_from(&self.empty.links);
            assert_eq!(node.namespace.link(DEVICE), None, "{what}");
        }
        assert_eq!(left, self.empty, "{what}: left behind");
        if with_third {
            self.mesh.node(3).stop();
        }
        Played { writes, killed_at, recovery }
    }

    /// Brings the node to where the round begins, sets the saboteur beside it, and begins.
    fn bring_about(&self, round: Round, order: Option<&str>) -> Saboteur {
        let node = self.node();
        let (second, third) = (self.mesh.node(2), self.mesh.node(3));
        let args = self.args();
        if matches!(round, Round::Start | Round::StartWithAdoption) {
            if round == Round::StartWithAdoption {
                self.start();
                self.settle(&["node-2"]);
                node.kill();
            }
            return Saboteur::launch(SABOTEUR, node, &[&args[0], &args[1]], order);
        }
        self.start();
        if round == Round::PeerGoes {
            third.start(&["-j", &second.seed()]);
            self.settle(&["node-2", "node-3"]);
        } else {
            self.settle(&["node-2"]);
        }
        let mut saboteur = Saboteur::attach(SABOTEUR, node.pid());
        if let Some(order) = order {
            saboteur.order(order);
        }
        match round {
            Round::Start | Round::StartWithAdoption => {}
            Round::PeerJoins => third.start(&["-j", &second.seed()]),
            Round::PeerGoes => assert!(third.stop().success()),
            Round::DeviceDeleted => node.namespace.ip(&format!("link del {DEVICE}")),
            Round::BridgeDeleted => node.namespace.ip(&format!("link del {BRIDGE}")),
            Round::MtuChange => node.namespace.ip("link set eth0 mtu 1400"),
            Round::Stop => node.signal(Signal::SIGTERM),
        }
        saboteur
    }

    /// Undoes on the host what is not the daemon's.
    fn restore(&self, round: Round) {
        let node = self.node();
        match round {
            Round::MtuChange => node.namespace.ip("link set eth0 mtu 1500"),
            Round::BridgeDeleted => {
                if node.namespace.link(BRIDGE).is_none() {
                    node.namespace
                        .ip(&format!("link add {BRIDGE} type bridge\nlink set {BRIDGE} mtu 1450"));
                }
                node.address_bridge();
            }
            _ => {}
        }
    }

    /// Waits until exactly these are peers and nothing moves.
    fn settle(&self, peers: &[&str]) {
        self.node().wait_until("it is at rest", Duration::from_secs(20), |view| {
            view.is_converged() && view.peer_names() == peers
        });
        thread::sleep(Duration::from_millis(250));
    }

    /// Compares the kernel with what the daemon says it wants and with what is there.
    fn is_right(&self, with_third: bool) -> Result<(), String> {
        let node = self.node();
        if !node.view().is_converged() {
            return Err(format!("not converged: {}", node.view().status()["error"]));
        }
        let peers = node.view().peers();
        let mut wanted = vec![self.mesh.node(2)];
        wanted.extend(with_third.then(|| self.mesh.node(3)));
        for peer in wanted {
            let forwards =
                |p: &serde_json::Value| p["name"] == peer.name() && p["state"] == "forwarding";
            if !peers.iter().any(forwards) {
                return Err(format!("{} is no peer", peer.name()));
            }
        }
        let content = Maps::open(node).content();
        let slots: Vec<(u64, u64)> = content
            .slots
            .iter()
            .map(|(index, slot)| (u64::from(*index), u64::from(slot.generation)))
            .collect();
        let said: Vec<(u64, u64)> = peers
            .iter()
            .filter_map(|peer| Some((peer["index"].as_u64()?, peer["generation"].as_u64()?)))
            .collect();
        let vteps: Vec<u32> = peers
            .iter()
            .filter_map(|peer| {
                let vtep = peer["vtep"].as_str()?.parse().ok()?;
                content.vteps.get(&VtepKey::new(vtep)).copied()
            })
            .collect();
        let indexes: Vec<u32> = content.slots.keys().copied().collect();
        if slots != said || vteps.len() != content.vteps.len() || content.flood != indexes {
            return Err(format!("the maps hold {content:?}, the daemon says {peers:?}"));
        }
        let own = node.underlay();
        if content.settings.vtep != VtepKey::new(own.into()).vtep || content.settings.vni != 1024 {
            return Err(format!("settings {:?}", content.settings));
        }
        let attached = bpf::attachments(&node.namespace).len();
        if attached != 3 {
            return Err(format!("{attached} programs are attached"));
        }
        let device = node.namespace.link(DEVICE).ok_or("no device")?;
        let up = device["flags"].as_array().is_some_and(|flags| flags.contains(&"UP".into()));
        let alias = device["ifalias"].as_str().unwrap_or_default();
        if device["master"] != BRIDGE || device["mtu"] != 1450 || !up || alias.is_empty() {
            return Err(format!("the device is {device}"));
        }
        Ok(())
    }
}
