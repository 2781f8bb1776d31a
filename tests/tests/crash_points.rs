//! The daemon is killed at each system call with which it writes to the kernel, in every kind of round.
//! Whatever was half done, the next start finishes it, and a clean stop leaves nothing.
//!
//! Some points, chosen by a seed that is printed; with `MARENGO_RUNS` above 1 all of them.

use std::{
    os::unix::process::ExitStatusExt as _,
    thread,
    time::{Duration, Instant},
};

use marengo_tests::{
    HostState,
    node::DEVICE,
    require_root, requirements,
    rounds::{Round, Stage},
    tell, wait,
};
use nix::sys::signal::Signal;
use rand::{SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

const SABOTEUR: &str = env!("CARGO_BIN_EXE_saboteur");

/// From the start of the next daemon's process until all is as it should be.
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
    recover(&stage, "with it", false);
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
            // What is written differs a little from time to time, so that a point may lie behind the
            // end; and a daemon that is traced may be interrupted while it finds out what the kernel
            // can (`EAGAIN`), and refuse to start.
            let mut played = play(&stage, *round, Some(*point));
            for _ in 0..2 {
                if played.killed_at.is_none() {
                    played = play(&stage, *round, Some(*point));
                }
            }
            let (wrote, was_killed) = (played.writes.len(), played.killed_at.is_some());
            assert!(was_killed || wrote < *point, "{round}: {wrote} writes, not killed at {point}");
            killed += usize::from(was_killed);
            slowest = slowest.max(played.recovery);
        }
        tell(format_args!(
            "{round}: {} of {} points, killed at {killed} ({} writes), right again \
             {slowest:?} after the start of the next process",
            points.len(),
            points.len(),
            writes.len(),
        ));
        if all {
            tell(format_args!("  {}", writes.join(", ")));
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
    // Once it is killed, the kernel takes the programs apart before it is gone.
    let ends = saboteur.killed_at().is_some() || !node.is_running();
    let ended = ends.then(|| node.wait_ended(Duration::from_secs(5)));
    let was_killed = ended.is_some_and(|status| status.signal() == Some(Signal::SIGKILL as i32));
    // The saboteur tells so before it kills, but is not heard at once.
    let killed_at = was_killed.then(|| {
        let what = format!("{round} {point:?}: the write at which it was killed");
        wait::until_some(&what, Duration::from_secs(1), || saboteur.killed_at())
    });
    let writes = saboteur.writes();
    drop(saboteur);
    if ended.is_none() {
        node.kill();
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

    let with_third = round == Round::PeerJoins;
    let recovery = recover(stage, &what, with_third);
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

/// Starts the daemon, and returns how long it takes from there until all is as it should be.
fn recover(stage: &Stage, what: &str, with_third: bool) -> Duration {
    let start = Instant::now();
    stage.start();
    loop {
        let right = stage.is_right(with_third, 1450);
        let took = start.elapsed();
        let so_far = right.as_ref().err().map_or("right", String::as_str);
        assert!(took <= WITHIN, "{what}: {took:?} after the next start: {so_far}");
        if right.is_ok() {
            return took;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
