//! The underlay falls apart, in every shape, and is mended: the mesh heals by itself.
//!
//! All shapes are tried at the same time, each on a mesh of its own: `MARENGO_RUNS` times while a
//! daemon is restarted and a machine replaced, and once with nothing but the split. `MARENGO_LONG=1`
//! adds splits of a minute.

use std::{
    thread,
    time::{Duration, Instant},
};

use marengo_tests::{
    Mesh, Node, Probe, require_root, requirements,
    split::{Deaf, What, between},
    tell,
    view::View,
};

/// From the repair until everybody knows everybody.
const HEAL_LIMIT: Duration = Duration::from_secs(15);
/// Between two packets of a probe: there are two dozen of them on one machine.
const PACE: Duration = Duration::from_millis(5);
/// How long everything around a split may take: restarts, healing, pings.
const AROUND: Duration = Duration::from_secs(50);
/// After this, whoever is cut off was declared down.
const NOTICED: Duration = Duration::from_secs(8);
/// A split in which nothing else happens lasts so long at least: the far side is down for a while.
const QUIET: Duration = Duration::from_secs(15);

/// A way to fall apart.
#[derive(Clone, Copy, Debug)]
struct Shape {
    name: &'static str,
    nodes: u8,
    deaf: fn() -> Vec<Deaf>,
    /// The nodes that reach each other throughout, each the next one, and the last the first.
    inside: &'static [&'static [u8]],
    /// Whether each group of `inside` has nobody but itself after a while.
    apart: bool,
    /// The daemon that is killed and started again during a split, if there is one.
    restarted: u8,
    /// The node that is a new machine at the end of a split.
    replaced: Option<u8>,
}

const SHAPES: [Shape; 6] = [
    Shape {
        name: "3|2",
        nodes: 5,
        deaf: || between(&[&[1, 2, 3], &[4, 5]]),
        inside: &[&[1, 2, 3], &[4, 5]],
        apart: true,
        restarted: 2,
        replaced: Some(3),
    },
    Shape {
        name: "4|1",
        nodes: 5,
        deaf: || between(&[&[1, 2, 3, 4], &[5]]),
        inside: &[&[1, 2, 3, 4], &[5]],
        apart: true,
        restarted: 5,
        replaced: Some(4),
    },
    Shape {
        name: "2|2|1",
        nodes: 5,
        deaf: || between(&[&[1, 2], &[3, 4], &[5]]),
        inside: &[&[1, 2], &[3, 4], &[5]],
        apart: true,
        restarted: 4,
        replaced: Some(5),
    },
    Shape {
        name: "ring",
        nodes: 5,
        deaf: || {
            let all = (1..=5).flat_map(|from| (1..=5).map(move |to| (from, to)));
            all.filter(|(from, to)| matches!((5 + to - from) % 5, 2 | 3)).collect()
        },
        inside: &[&[1, 2, 3, 4, 5]],
        apart: false,
        restarted: 3,
        replaced: Some(5),
    },
    Shape {
        // 4 and 5 are heard, and hear nobody but each other.
        name: "one-way",
        nodes: 5,
        deaf: || [1, 2, 3].into_iter().flat_map(|from| [(from, 4), (from, 5)]).collect(),
        inside: &[&[1, 2, 3], &[4, 5]],
        apart: false,
        restarted: 2,
        replaced: Some(3),
    },
    Shape {
        name: "1|1",
        nodes: 2,
        deaf: || between(&[&[1], &[2]]),
        inside: &[&[1], &[2]],
        apart: true,
        restarted: 2,
        replaced: None,
    },
];

#[test]
fn splits_of_every_shape_heal_in_15_s_and_each_part_forwards_throughout() {
    require_root!();
    fall_apart(&SHAPES, Duration::from_secs(5), requirements::runs(1), &[]);
}

#[test]
#[ignore = "takes minutes: MARENGO_LONG=1 cargo xtask test netns splits"]
fn splits_of_a_minute_heal_in_15_s() {
    require_root!();
    fall_apart(&SHAPES, Duration::from_mins(1), requirements::runs(2), &[]);
}

/// Real daemons forget after a day; these do after some seconds. `cargo xtask test unit` splits a
/// simulated cluster for as long.
#[test]
#[ignore = "takes minutes: MARENGO_LONG=1 cargo xtask test netns splits"]
fn splits_that_outlast_the_memory_of_the_dead_heal_in_15_s() {
    require_root!();
    let args = ["--forget-after", "8s"];
    fall_apart(&SHAPES, Duration::from_secs(40), requirements::runs(2), &args);
}

#[test]
fn without_rejoin_a_split_does_not_heal() {
    require_root!();
    let args = ["--without", "rejoin,remember"];
    let shapes = SHAPES.iter().filter(|shape| ["3|2", "1|1"].contains(&shape.name));
    let meshes: Vec<(Shape, Mesh)> = shapes.map(|shape| (*shape, Mesh::new(shape.nodes))).collect();
    start(&meshes, &args);
    for (shape, mesh) in &meshes {
        mesh.split(What::All, &(shape.deaf)());
    }
    for (shape, mesh) in &meshes {
        for (number, node) in (1..).zip(mesh.nodes()) {
            let own = shape.inside.iter().find(|group| group.contains(&number));
            let far = (1..=shape.nodes).filter(|other| !own.is_some_and(|own| own.contains(other)));
            let far: Vec<String> = far.map(|other| name(mesh, other)).collect();
            node.wait_until("the far side is down", NOTICED + NOTICED, |view| {
                far.iter().all(|other| view.state_of(other).as_deref() == Some("down"))
            });
        }
    }
    // Fresh news of it would cross over, and be refuted.
    thread::sleep(Duration::from_secs(5));

    for (_, mesh) in &meshes {
        mesh.mend();
    }

    thread::sleep(HEAL_LIMIT);
    for (shape, mesh) in &meshes {
        let healed = heal(mesh, Duration::ZERO);
        assert_eq!(healed, None, "the mechanism is off, and yet {} heals", shape.name);
    }
}

#[test]
fn split_of_gossip_alone_costs_no_packet_and_the_far_side_is_held() {
    require_root!();
    let lasting = if requirements::long() { Duration::from_mins(5) } else { NOTICED * 2 };
    let mesh = Mesh::within(5, lasting + AROUND);
    mesh.start_all(&[]);
    let probes = across(&mesh, lasting + AROUND);
    thread::sleep(Duration::from_millis(500));

    mesh.split(What::Gossip, &between(&[NEAR, FAR]));

    let start = Instant::now();
    for (number, node) in (1..).zip(mesh.nodes()) {
        let far = if NEAR.contains(&number) { FAR } else { NEAR };
        node.wait_until("the far side is held", NOTICED + NOTICED, |view| {
            far.iter().all(|other| state(view, &name(&mesh, *other)) == "held")
        });
    }
    tell(format_args!("the far side is held after {:?}", start.elapsed()));
    while start.elapsed() < lasting {
        thread::sleep(Duration::from_millis(500));
        for (number, node) in (1..).zip(mesh.nodes()) {
            let peers = node.view().peers();
            assert_eq!(peers.len(), 4, "{} has lost a peer: {peers:?}", node.name());
            let far = if NEAR.contains(&number) { FAR } else { NEAR };
            for other in far {
                assert_eq!(state(node.view(), &name(&mesh, *other)), "held", "{}", node.name());
            }
        }
    }
    mesh.mend();
    let healed = heal(&mesh, HEAL_LIMIT);
    tell(format_args!("held for {lasting:?}, healed {healed:?}"));
    assert!(healed.is_some(), "not healed in {HEAL_LIMIT:?}");
    for node in mesh.nodes() {
        node.wait_until("nobody is held", Duration::from_secs(3), |view| {
            view.peers().iter().all(|peer| peer["state"] == "forwarding")
        });
    }
    for (between, probe) in probes {
        let outcome = probe.finish();
        assert_eq!((outcome.lost, outcome.duplicates), (0, 0), "{between}: {outcome:?}");
    }
}

#[test]
fn without_the_witness_a_split_of_gossip_costs_packets() {
    require_root!();
    let mesh = Mesh::new(5);
    mesh.start_all(&["--without", "witness"]);
    let probes = across(&mesh, Duration::from_mins(1));
    mesh.split(What::Gossip, &between(&[NEAR, FAR]));
    for (number, node) in (1..).zip(mesh.nodes()) {
        let near = if NEAR.contains(&number) { NEAR } else { FAR };
        node.wait_until("the far side is gone", NOTICED + NOTICED, |view| {
            view.peers().len() == near.len() - 1
        });
    }
    thread::sleep(Duration::from_secs(1));

    for (between, probe) in probes {
        let outcome = probe.finish();
        assert!(outcome.lost > 500, "the mechanism is off, and yet: {between}: {outcome:?}");
    }
}

const NEAR: &[u8] = &[1, 2, 3];
const FAR: &[u8] = &[4, 5];

/// Probes of 1,000 packets a second from one side to the other, each way.
fn across(mesh: &Mesh, lasting: Duration) -> Vec<(&'static str, Probe)> {
    let pairs = [("node 1 to 4", 1, 4), ("node 5 to 2", 5, 2)];
    let probe = |from: usize, to: usize| {
        let (from, to) = (mesh.node(from), mesh.node(to));
        assert!(from.namespace.pings(&to.overlay().to_string(), 1));
        let pace = Duration::from_millis(1);
        Probe::paced(&from.namespace, &to.namespace, to.overlay(), pace, lasting)
    };
    pairs.into_iter().map(|(between, from, to)| (between, probe(from, to))).collect()
}

/// What a daemon says of one of its peers.
fn state(view: View<'_>, peer: &str) -> String {
    let state = view.peer(peer).and_then(|peer| peer["state"].as_str().map(str::to_owned));
    state.unwrap_or_else(|| "gone".to_owned())
}

/// Splits meshes of all these shapes at the same time, and mends them: `runs` times while more
/// happens, and once while nothing does.
fn fall_apart(shapes: &[Shape], lasting: Duration, runs: usize, args: &[&str]) {
    let quiet = lasting.max(QUIET);
    let limit = Duration::from_mins(1)
        + (lasting + AROUND) * u32::try_from(runs).expect("each run takes time")
        + (quiet + AROUND);
    let meshes: Vec<(Shape, Mesh)> =
        shapes.iter().map(|shape| (*shape, Mesh::within(shape.nodes, limit))).collect();
    start(&meshes, args);
    thread::scope(|scope| {
        for (shape, mesh) in &meshes {
            let run_all = move || {
                for run in 1..=runs {
                    fall_apart_once(*shape, mesh, lasting, Some(run), args);
                }
                fall_apart_once(*shape, mesh, quiet, None, args);
            };
            thread::Builder::new()
                .name(shape.name.to_owned())
                .spawn_scoped(scope, run_all)
                .expect("there is room for a thread");
        }
    });
}

/// Starts all daemons at once, and waits until those of each mesh know each other.
fn start(meshes: &[(Shape, Mesh)], args: &[&str]) {
    for (_, mesh) in meshes {
        for node in mesh.nodes() {
            launch(mesh, node, args);
        }
    }
    for (_, mesh) in meshes {
        // Two dozen programs are verified at the same time, on a machine that may have other work.
        assert!(heal(mesh, Duration::from_mins(1)).is_some(), "the daemons did not find together");
        mesh.nodes().for_each(Node::address_bridge);
    }
}

fn launch(mesh: &Mesh, node: &Node, args: &[&str]) {
    let seed = mesh.node(1).seed();
    let join = if node.name() == "node-1" { vec![] } else { vec!["-j", seed.as_str()] };
    node.launch(&[], &[args, &join].concat());
}

/// A split, and all around it. `run` is its number, if more happens than the split itself.
fn fall_apart_once(
    shape: Shape,
    mesh: &Mesh,
    lasting: Duration,
    run: Option<usize>,
    args: &[&str],
) {
    let what = run.map_or_else(|| "quiet".to_owned(), |run| format!("run {run}"));
    let what = format!("{} for {lasting:?}, {what}", shape.name);
    let replaced = shape.replaced.filter(|_| run.is_some());
    let probed = probes(shape, mesh, replaced, lasting + AROUND);
    thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    mesh.split(What::All, &(shape.deaf)());
    if run.is_some() {
        thread::sleep(lasting / 8);
        restart(mesh, mesh.node(shape.restarted.into()), args);
    }
    if let Some(replaced) = replaced {
        thread::sleep(lasting / 8);
        replace(mesh, mesh.node(replaced.into()), args);
    }
    thread::sleep(lasting.saturating_sub(start.elapsed()));
    if shape.apart && lasting > NOTICED {
        for group in shape.inside {
            let names: Vec<String> = group.iter().map(|number| name(mesh, *number)).collect();
            for number in *group {
                assert_eq!(mesh.node((*number).into()).view().alive(), names, "{what}");
            }
        }
    }

    mesh.mend();

    let healed = heal(mesh, HEAL_LIMIT);
    tell(format_args!("{what}: healed {healed:?}"));
    assert!(healed.is_some(), "{what}: not healed in {HEAL_LIMIT:?}");
    for (between, probe) in probed {
        let outcome = probe.finish();
        let lost = (outcome.lost, outcome.duplicates);
        assert_eq!(lost, (0, 0), "{what}: {between}: {outcome:?}");
    }
    // The new machine first: its questions tell the others its new hardware address.
    let first = replaced.map(|number| mesh.node(number.into()));
    for from in first.into_iter().chain(mesh.nodes()) {
        for to in mesh.nodes().filter(|to| to.name() != from.name()) {
            let reached = from.namespace.pings(&to.overlay().to_string(), 1);
            assert!(reached, "{what}: {} to {}", from.name(), to.name());
        }
    }
}

/// A probe from each node of each part to the next one, but for a node that will not be the same.
fn probes(
    shape: Shape,
    mesh: &Mesh,
    without: Option<u8>,
    lasting: Duration,
) -> Vec<(String, Probe)> {
    let mut probes = Vec::new();
    for group in shape.inside.iter().filter(|group| group.len() > 1) {
        for (from, to) in group.iter().zip(group.iter().cycle().skip(1)) {
            if without.is_some_and(|without| *from == without || *to == without) {
                continue;
            }
            let (from, to) = (mesh.node((*from).into()), mesh.node((*to).into()));
            assert!(from.namespace.pings(&to.overlay().to_string(), 1));
            let probe = Probe::paced(&from.namespace, &to.namespace, to.overlay(), PACE, lasting);
            probes.push((format!("{} to {}", from.name(), to.name()), probe));
        }
    }
    probes
}

/// The daemon alone dies; what it has made goes on, and the next start takes it over.
fn restart(mesh: &Mesh, node: &Node, args: &[&str]) {
    node.kill();
    launch(mesh, node, args);
}

/// Another machine under the same name and address: it has nothing of what its predecessor had.
fn replace(mesh: &Mesh, node: &Node, args: &[&str]) {
    node.kill();
    node.wipe();
    launch(mesh, node, args);
    node.wait_answers();
    node.address_bridge();
}

/// Waits until all know all, alive and in their maps. Nothing if they do not within `limit`.
#[expect(clippy::print_stderr, reason = "what a failed test prints is all that one has of it")]
fn heal(mesh: &Mesh, limit: Duration) -> Option<Duration> {
    let start = Instant::now();
    let names: Vec<String> = mesh.nodes().map(Node::name).collect();
    while !mesh.nodes().all(|node| knows(node, &names)) {
        if start.elapsed() > limit {
            for node in mesh.nodes().filter(|node| !knows(node, &names)) {
                let view = node.view();
                let (name, status) = (node.name(), view.status());
                eprintln!("{name}: {:?}\n{:?}\n{status}", view.members(), view.peers());
            }
            return None;
        }
        // Seldom: the answers of two dozen daemons are work.
        thread::sleep(Duration::from_millis(50));
    }
    Some(start.elapsed())
}

fn knows(node: &Node, names: &[String]) -> bool {
    let others: Vec<&String> = names.iter().filter(|name| **name != node.name()).collect();
    let view = node.view();
    view.alive() == names && view.peer_names().iter().eq(others) && view.is_converged()
}

fn name(mesh: &Mesh, number: u8) -> String {
    mesh.node(number.into()).name()
}
