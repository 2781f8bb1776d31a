//! Each write to the kernel fails with each plausible error, for as long as a second. A start gets over
//! it or refuses with a sentence and leaves nothing; a running daemon goes on with what it can, does
//! not get busy, and is right again when the fault is over.
//!
//! A sample, chosen by a seed that is printed; with `MARENGO_RUNS` above 1 the whole matrix. What went
//! wrong is told by the round and the saboteur's order; `MARENGO_ONLY` chooses those that contain it.
#![expect(clippy::print_stderr, reason = "how many of how many is what one wants to read")]

use std::{
    fmt, thread,
    time::{Duration, Instant},
};

use marengo_tests::{
    HostState, Node, Probe, Saboteur,
    node::{BRIDGE, DEVICE},
    require_root, requirements,
    rounds::{Round, Stage},
    tell,
};
use nix::errno::Errno;
use rand::{SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

const SABOTEUR: &str = env!("CARGO_BIN_EXE_saboteur");

/// How long a fault lasts.
const LASTS: Duration = Duration::from_millis(1500);
/// From its end until all is right: the back-off is at 4 s by then.
const WITHIN: Duration = Duration::from_secs(6);

/// The errors with which a write may fail, by its description.
fn plausible(write: &str) -> Vec<Errno> {
    use Errno::{
        E2BIG, EAGAIN, EBUSY, EEXIST, EINTR, EINVAL, ENOBUFS, ENODEV, ENOENT, ENOMEM, ENOSPC,
        EPERM, EROFS,
    };
    let words: Vec<&str> = write.split(' ').collect();
    match words[..] {
        ["update", ..] => vec![EPERM, ENOMEM, E2BIG, EBUSY, EINTR],
        _ if is_netlink(write) => vec![ENOBUFS, ENOMEM, EPERM, EINTR],
        ["delete", ..] => vec![EPERM, ENOENT, EBUSY, EINTR],
        ["load", "program", ..] => vec![EPERM, ENOMEM, E2BIG, EINVAL, EAGAIN],
        ["load" | "create" | "freeze", ..] if words != ["create", "link"] => {
            vec![EPERM, ENOMEM, E2BIG, EINVAL]
        }
        // EINVAL says that the kernel has no TCX.
        ["create", "link"] => vec![EPERM, ENOMEM, EBUSY, EEXIST, ENODEV],
        ["pin" | "mkdir", ..] => vec![EPERM, EEXIST, ENOMEM, ENOSPC, ENOENT],
        ["unlink" | "rmdir", ..] => vec![EPERM, EBUSY, ENOENT, EROFS],
        _ => vec![EPERM, ENOMEM, EINVAL],
    }
}

/// What the kernel may answer to a change of a link.
const ANSWERS: [Errno; 6] =
    [Errno::EPERM, Errno::ENOMEM, Errno::EBUSY, Errno::EEXIST, Errno::EINVAL, Errno::ENODEV];

/// Whether a description is of a netlink message about a link.
fn is_netlink(write: &str) -> bool {
    write.starts_with("set ")
        || ["create device", "create bridge", "change link", "delete link"].contains(&write)
}

#[test]
fn every_write_of_a_start_may_fail() {
    require_root!();
    let stage = Stage::set(SABOTEUR, limit());
    let rounds = [Round::Start, Round::StartWithAdoption];
    run(&stage, matrix(&stage, &rounds), 6, a_start);
}

/// A fault that is over before the next write, at any of them.
#[test]
fn every_write_of_a_start_may_fail_once() {
    require_root!();
    let stage = Stage::set(SABOTEUR, limit());
    let writes = writes_of(&stage, Round::Start);
    let matrix = (1..).zip(writes).map(|(nth, write)| {
        let errno = plausible(&write)[nth % 2];
        Fault { round: Round::Start, write, errno, nth: Some(nth), answered: false }
    });
    run(&stage, matrix.collect(), 4, a_start);
}

#[test]
fn every_write_of_a_round_may_fail() {
    require_root!();
    let stage = Stage::set(SABOTEUR, limit());
    let rounds = [
        Round::PeerJoins,
        Round::PeerGoes,
        Round::DeviceDeleted,
        Round::MtuChange,
        Round::BridgeDeleted,
    ];
    run(&stage, matrix(&stage, &rounds), 3, a_round);
}

/// Whatever a start cannot do that takes over a data plane: what forwards goes on forwarding, and the
/// next start takes it over.
#[test]
fn start_that_cannot_take_over_costs_no_packet() {
    require_root!();
    let stage = Stage::set(SABOTEUR, limit());
    let (node, peer) = (stage.node(), stage.mesh.node(2));
    let orders = [
        "refuse-look 2".to_owned(),
        format!("fail-all {} update link", Errno::EPERM as i32),
        format!("fail-all {} load program marengo_ingress", Errno::ENOMEM as i32),
    ];
    for order in orders {
        stage.start();
        stage.settle(&["node-2"]);
        assert!(node.namespace.pings(&peer.overlay().to_string(), 1));
        let device = node.namespace.ifindex(DEVICE);
        let probe = Probe::start(&node.namespace, &peer.namespace, peer.overlay());
        thread::sleep(Duration::from_millis(100));
        node.kill();

        let mut saboteur = stage.launch(Some(&order));
        thread::sleep(LASTS);
        let (felt, ended) = (saboteur.failures(), !node.is_running());
        saboteur.order("clear");
        drop(saboteur);
        if ended {
            let code = node.wait_ended(Duration::from_secs(1)).code();
            assert!(code.is_some_and(|code| ![0, 101].contains(&code)), "{order}: {code:?}");
            stage.start();
        }
        right_again(&stage, Round::StartWithAdoption)
            .unwrap_or_else(|why| panic!("{order}: {why}"));

        let outcome = probe.finish();
        tell(format_args!("{order}: {felt} failed, refused to start: {ended}; {outcome:?}"));
        assert!(felt > 0, "{order}: nothing failed");
        assert_eq!(outcome.lost, 0, "{order}: {outcome:?}");
        assert_eq!(node.namespace.ifindex(DEVICE), device, "{order}: another device");
        assert!(node.stop().success(), "{order}");
    }
}

#[test]
fn without_pauses_a_fault_keeps_the_daemon_busy() {
    require_root!();
    let mut stage = Stage::set(SABOTEUR, limit());
    stage.more = vec!["--without", "pauses"];
    let (round, write) = (Round::PeerJoins, "update marengo_vteps".to_owned());
    let fault = Fault { round, write, errno: Errno::ENOMEM, nth: None, answered: false };

    let outcome = a_round(&stage, &fault);

    let why = outcome.expect_err("the mechanism is off, and yet it did not get busy");
    assert!(why.contains(" rounds in ") || why.contains(" of processor in "), "{why}");
    clean(&stage, round);
}

#[test]
fn every_write_of_a_stop_may_fail() {
    require_root!();
    let stage = Stage::set(SABOTEUR, limit());
    run(&stage, matrix(&stage, &[Round::Stop]), 2, a_stop);
}

fn limit() -> Duration {
    if requirements::runs(1) > 1 { Duration::from_mins(40) } else { Duration::from_mins(5) }
}

/// What became of one case.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    /// Writes that failed.
    felt: usize,
    /// The daemon refused to start.
    refused: bool,
}

/// What goes wrong.
#[derive(Clone, Debug)]
struct Fault {
    round: Round,
    /// The description of the write.
    write: String,
    errno: Errno,
    /// Which write fails, once; `None`: all of the description fail.
    nth: Option<usize>,
    /// The kernel takes the netlink message, and answers with the error.
    answered: bool,
}

impl Fault {
    fn order(&self) -> String {
        let errno = self.errno as i32;
        match self.nth {
            Some(nth) => format!("fail {errno} {nth}"),
            None if self.answered => format!("refuse-all {errno} {}", self.write),
            None => format!("fail-all {errno} {}", self.write),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.round, self.order())
    }
}

type Case = fn(&Stage, &Fault) -> Result<Outcome, String>;

/// Every kind of write of these rounds with each of its errors.
fn matrix(stage: &Stage, rounds: &[Round]) -> Vec<Fault> {
    let mut matrix = Vec::new();
    for round in rounds {
        let mut writes = writes_of(stage, *round);
        writes.sort();
        writes.dedup();
        for write in writes {
            let fault = |errno, answered| Fault {
                round: *round,
                write: write.clone(),
                errno,
                nth: None,
                answered,
            };
            matrix.extend(plausible(&write).into_iter().map(|errno| fault(errno, false)));
            if is_netlink(&write) {
                matrix.extend(ANSWERS.into_iter().map(|errno| fault(errno, true)));
            }
        }
    }
    matrix
}

/// Runs `sample` of the cases, or all.
fn run(stage: &Stage, mut matrix: Vec<Fault>, sample: usize, case: Case) {
    let all = requirements::runs(1) > 1;
    let mut random = StdRng::seed_from_u64(requirements::seed());
    if let Ok(only) = std::env::var("MARENGO_ONLY") {
        matrix.retain(|fault| fault.to_string().contains(&only));
    }
    let total = matrix.len();
    if !all {
        let chosen: Vec<_> = matrix.sample(&mut random, sample).cloned().collect();
        matrix = chosen;
    }
    let (mut felt, mut refused, mut wrong) = (0, 0, Vec::new());
    for (done, fault) in matrix.iter().enumerate() {
        if all && done % 20 == 0 {
            eprintln!("{done} of {total} cases");
        }
        match case(stage, fault) {
            Ok(outcome) => {
                if outcome.felt == 0 {
                    eprintln!("not felt: {fault}");
                }
                felt += usize::from(outcome.felt > 0);
                refused += usize::from(outcome.refused);
            }
            Err(why) => {
                let why = format!("{fault}: {why}");
                eprintln!("WRONG {why}");
                wrong.push(why);
            }
        }
        clean(stage, fault.round);
    }
    tell(format_args!(
        "{} of {total} cases, {felt} felt, {refused} refused to start, {} wrong",
        matrix.len(),
        wrong.len()
    ));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(felt * 10 >= matrix.len() * 8, "only {felt} of {} were felt", matrix.len());
}

/// What a round writes when nothing fails.
fn writes_of(stage: &Stage, round: Round) -> Vec<String> {
    let saboteur = stage.bring_about(round, None);
    if round == Round::Stop {
        stage.node().wait_ended(Duration::from_secs(10));
    } else {
        stage.node().wait_answers();
        thread::sleep(Duration::from_millis(1500));
    }
    let writes = saboteur.writes();
    drop(saboteur);
    clean(stage, round);
    writes
}

/// Brings the host back to where it was, by force if need be.
fn clean(stage: &Stage, round: Round) {
    let (node, third) = (stage.node(), stage.mesh.node(3));
    for node in [node, third] {
        node.end();
    }
    stage.restore(round);
    if node.namespace.link(DEVICE).is_some() {
        node.namespace.ip(&format!("link del {DEVICE}"));
    }
    if node.namespace.link(BRIDGE).is_none() {
        node.namespace.ip(&format!("link add {BRIDGE} type bridge\nlink set {BRIDGE} mtu 1450"));
        node.address_bridge();
    }
    std::fs::remove_dir_all(node.pins()).ok();
    std::fs::remove_file(node.socket()).ok();
}

fn a_start(stage: &Stage, fault: &Fault) -> Result<Outcome, String> {
    let round = fault.round;
    let node = stage.node();
    let told = node.log().len();
    let mut saboteur = stage.bring_about(round, Some(&fault.order()));
    let start = Instant::now();
    while node.is_running() && node.view().get("/v1/status").is_none() {
        check(start.elapsed() < Duration::from_secs(15), "it neither answers nor ends")?;
        thread::sleep(Duration::from_millis(5));
    }
    if node.is_running() {
        let felt = lives_with_it(stage, &mut saboteur, round)?;
        return Ok(Outcome { felt, refused: false });
    }
    let felt = saboteur.failures();
    drop(saboteur);
    let status = node.wait_ended(Duration::from_secs(1));
    let log = node.log()[told..].to_owned();
    let code = status.code().unwrap_or(-1);
    check(![-1, 0, 101].contains(&code), &format!("exit code {code}: {log}"))?;
    let sentences = log.lines().filter(|line| line.starts_with("marengo: ")).count();
    check(sentences == 1 && !log.contains("panicked"), &format!("it says: {log}"))?;
    if round == Round::Start {
        // What cannot be removed stays, and the sentence before says so.
        let stuck = fault.write.starts_with("unlink") || fault.write.starts_with("rmdir");
        let left = left_behind(stage);
        check(stuck || left.is_none(), &format!("left behind: {left:?}\n{log}"))?;
    }
    // Nothing stands in the way of the next start.
    stage.start();
    right_again(stage, round)?;
    Ok(Outcome { felt, refused: true })
}

fn a_round(stage: &Stage, fault: &Fault) -> Result<Outcome, String> {
    let round = fault.round;
    let mut saboteur = stage.bring_about(round, Some(&fault.order()));
    let felt = lives_with_it(stage, &mut saboteur, round)?;
    Ok(Outcome { felt, refused: false })
}

fn a_stop(stage: &Stage, fault: &Fault) -> Result<Outcome, String> {
    let round = fault.round;
    let node = stage.node();
    let saboteur = stage.bring_about(round, Some(&fault.order()));
    let Some(status) = node.try_wait_ended(Duration::from_secs(12)) else {
        node.kill();
        return Err("SIGTERM does not end it".to_owned());
    };
    let felt = saboteur.failures();
    drop(saboteur);
    check(status.code().is_some_and(|code| code != 101), &format!("{status}"))?;
    // The device is never left without its lock.
    if let Some(device) = node.namespace.link(DEVICE) {
        let up = device["flags"].as_array().is_some_and(|flags| flags.contains(&"UP".into()));
        let locked =
            !marengo_tests::bpf::attached_at(&node.namespace, DEVICE, "ingress").is_empty();
        check(!up || locked, "the device is up without its program")?;
    }
    stage.start();
    right_again(stage, round)?;
    check(node.stop().success(), "the next stop fails")?;
    let left = left_behind(stage);
    check(left.is_none(), &format!("left behind: {left:?}"))?;
    Ok(Outcome { felt, refused: false })
}

/// What there is that was not there before. A link whose last pin went is detached a moment later.
fn left_behind(stage: &Stage) -> Option<HostState> {
    let start = Instant::now();
    loop {
        let state = HostState::of(stage.node());
        if state == stage.empty {
            return None;
        }
        if start.elapsed() > Duration::from_secs(2) {
            return Some(state);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A daemon that runs while writes fail: it is not busy, and what worked works; and when they fail no
/// more, all is right.
fn lives_with_it(stage: &Stage, saboteur: &mut Saboteur, round: Round) -> Result<usize, String> {
    let node = stage.node();
    let rounds = |node: &Node| node.view().status()["rounds"].as_u64().unwrap_or_default();
    // A change of members alone touches nobody who was there.
    let untouched = matches!(round, Round::PeerJoins | Round::PeerGoes | Round::MtuChange);
    let peer = stage.mesh.node(2);
    let probe = untouched.then(|| Probe::start(&node.namespace, &peer.namespace, peer.overlay()));
    let (before, cpu) = (rounds(node), node.cpu_time());
    thread::sleep(LASTS);
    check(node.is_running(), "it died")?;
    let (made, cpu) = (rounds(node).saturating_sub(before), node.cpu_time().saturating_sub(cpu));
    check(made <= 20, &format!("{made} rounds in {LASTS:?}"))?;
    check(cpu < LASTS / 3, &format!("{cpu:?} of processor in {LASTS:?}"))?;
    let felt = saboteur.failures();
    saboteur.order("clear");
    right_again(stage, round)?;
    if let Some(probe) = probe {
        let outcome = probe.finish();
        check(outcome.lost == 0, &format!("lost packets: {outcome:?}"))?;
    }
    Ok(felt)
}

/// Everything is as it should be, soon, and traffic passes.
fn right_again(stage: &Stage, round: Round) -> Result<(), String> {
    let node = stage.node();
    let mtu = if round == Round::MtuChange { 1350 } else { 1450 };
    let start = Instant::now();
    while let Err(wrong) = stage.is_right(round == Round::PeerJoins, mtu) {
        check(node.is_running(), &format!("it died\n{}", node.log()))?;
        check(start.elapsed() < WITHIN, &format!("not right {WITHIN:?} later: {wrong}"))?;
        thread::sleep(Duration::from_millis(20));
    }
    if round == Round::BridgeDeleted {
        node.address_bridge();
    }
    let peer = stage.mesh.node(2).overlay().to_string();
    let start = Instant::now();
    while !node.namespace.pings(&peer, 1) {
        check(start.elapsed() < Duration::from_secs(5), "no traffic passes")?;
    }
    Ok(())
}

fn check(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}
