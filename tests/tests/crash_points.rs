//! The daemon is killed at each system call with which it writes to the kernel, in every kind of round.
//! Whatever was half done, the next start finishes it, and a clean stop leaves nothing.
//!
//! Some points, chosen by a seed that is printed; with `MARENGO_RUNS` above 1 all of them.
#![expect(clippy::print_stderr, reason = "K of K is what one wants to read")]

use std::{
    thread,
    time::{Duration, Instant},
};

use marengo_tests::{
    HostState,
    node::DEVICE,
    require_root, requirements,
    rounds::{Round, Stage},
    wait,
};
use rand::{SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

const SABOTEUR: &str = env!("CARGO_BIN_EXE_saboteur");

/// From the moment at which the next daemon answers until all is as it should be.
const WITHIN: Duration = Duration::from_secs(2);

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

#[test]
fn without_finish_a_device_that_was_half_made_stays_so() {
    require_root!();
    let mut stage = Stage::set(SABOTEUR, Duration::from_mins(2));
    let writes = play(&stage, Round::Start, None).writes;
    let point = writes.iter().position(|write| write == "set alias").unwrap() + 1;
    let killed = break_off(&stage, Round::Start, Some(point));
    assert_eq!(killed.killed_at.as_deref(), Some("set alias"));

    stage.more = vec!["--without", "finish"];
    stage.start();

    wait::stays("the mechanism is off", WITHIN, || stage.is_right(false, 1450).is_err());
    stage.node().kill();
    stage.more.clear();
    stage.start();
    wait::until("it is finished", WITHIN, || stage.is_right(false, 1450).is_ok());
}

/// Kills at `sample` points of each round, or at all.
fn sweep(rounds: &[Round], sample: usize) {
    require_root!();
    let all = requirements::runs(1) > 1;
    let mut random = StdRng::seed_from_u64(requirements::seed());
    let stage =
        Stage::set(SABOTEUR, if all { Duration::from_mins(30) } else { Duration::from_mins(4) });
    for round in rounds {
        let writes = play(&stage, *round, None).writes;
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
            let played = play(&stage, *round, Some(*point));
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

/// A round that was broken off.
#[derive(Debug)]
struct BrokenOff {
    writes: Vec<String>,
    killed_at: Option<String>,
}

/// Brings about a round, and kills the daemon at its write number `point`, or when all is written.
fn break_off(stage: &Stage, round: Round, point: Option<usize>) -> BrokenOff {
    let node = stage.node();
    let order = point.map(|point| format!("kill {point}"));
    let saboteur = stage.bring_about(round, order.as_deref());
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
    stage.restore(round);
    BrokenOff { writes, killed_at }
}

#[derive(Debug)]
struct Played {
    writes: Vec<String>,
    killed_at: Option<String>,
    recovery: Duration,
}

/// Breaks off a round, starts the daemon again, and looks at everything.
fn play(stage: &Stage, round: Round, point: Option<usize>) -> Played {
    let node = stage.node();
    let BrokenOff { writes, killed_at } = break_off(stage, round, point);
    let what = format!("{round}, killed at {point:?} ({killed_at:?})");

    stage.start();
    let answered = Instant::now();
    let with_third = round == Round::PeerJoins;
    while let Err(wrong) = stage.is_right(with_third, 1450) {
        let late = answered.elapsed() > WITHIN;
        assert!(!late, "{what}: not right {WITHIN:?} after the next start: {wrong}");
        thread::sleep(Duration::from_millis(10));
    }
    let recovery = answered.elapsed();
    wait::until(&format!("{what}: traffic passes"), Duration::from_secs(3), || {
        node.namespace.pings(&stage.mesh.node(2).overlay().to_string(), 1)
    });

    assert!(node.stop().success(), "{what}: the stop fails\n{}", node.log());
    let mut left = HostState::of(node);
    if round == Round::BridgeDeleted {
        // It is another one.
        left.links.clone_from(&stage.empty.links);
        assert_eq!(node.namespace.link(DEVICE), None, "{what}");
    }
    assert_eq!(left, stage.empty, "{what}: left behind");
    if with_third {
        stage.mesh.node(3).stop();
    }
    Played { writes, killed_at, recovery }
}
