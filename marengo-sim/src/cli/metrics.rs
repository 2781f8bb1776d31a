//! `metrics`: figures of the membership, beside those of foca alone.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    process::ExitCode,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use clap::value_parser;
use marengo_sim::{
    measure::{self, Defaults, Figures, PlainWorld, Scale},
    secs,
};

use super::machines;

/// Print how soon a crash is known, false downs, how soon a split heals and bytes per second, for
/// Marengo's membership and for foca with its own defaults. Fails if Marengo misses a goal.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Numbers of nodes.
    #[arg(long, value_delimiter = ',', default_value = "5,50,200,1000", value_parser = machines())]
    nodes: Vec<u16>,
    /// Shares of datagrams that are lost, in per cent.
    #[arg(long, value_delimiter = ',', default_value = "0,5,20", value_parser = value_parser!(u32).range(..=100))]
    loss: Vec<u32>,
    /// Marengo alone.
    #[arg(long)]
    only_marengo: bool,
    /// Hours of the long run: 5 nodes, 5 % loss, one of them with 5 % of a processor.
    #[arg(long, default_value_t = 24)]
    hours: u64,
    /// The seed of all runs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads; by default one for each processor.
    #[arg(long)]
    jobs: Option<NonZeroUsize>,
}

/// Who is measured.
#[derive(Clone, Copy, Debug)]
enum Who {
    Marengo,
    Plain(Defaults),
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
struct Row {
    nodes: usize,
    /// Of datagrams, in per cent.
    loss: u32,
    who: Who,
}

impl Args {
    pub(crate) fn run(self) -> ExitCode {
        println!(
            "| nodes | loss | membership | join | crash known p50 | p99 | false downs | split \
             heals | bytes |"
        );
        println!("| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |");
        let mut missed = self.print_rows(&self.rows());
        println!();
        println!(
            "Known: time from a crash until another node knew it, over all of them. False downs: \
             nodes taken for failed that were not, per node and hour. Bytes: sent by each node in \
             a second while nothing happens, the exchanges over HTTP included, headers of UDP and \
             IP not. A dash: not within {} s, or of more than {LARGE} nodes: a crash within {} s, \
             the others within {} s.",
            PATIENCE.as_secs(),
            LARGE_PATIENCE.0.as_secs(),
            LARGE_PATIENCE.1.as_secs()
        );
        if self.hours > 0 {
            let time = Duration::from_hours(self.hours);
            let figures = measure::long_run(self.seed, time, 0.05);
            println!();
            println!(
                "{} hours of 5 nodes at 5 % loss, one of them with 5 % of a processor: {} false \
                 downs.",
                self.hours, figures.false_downs
            );
            let of = |goal| format!("{} hours of 5 nodes: {goal}", self.hours);
            missed.extend(missed_false_downs(&figures).map(of));
        }
        for goal in &missed {
            eprintln!("missed: {goal}");
        }
        if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn rows(&self) -> Vec<Row> {
        let all = [Who::Marengo, Who::Plain(Defaults::Lan), Who::Plain(Defaults::Wan)];
        let who = if self.only_marengo { &all[..1] } else { &all[..] };
        let row = |nodes, loss| who.iter().map(move |&who| Row { nodes, loss, who });
        let of_nodes =
            |&nodes| self.loss.iter().flat_map(move |&loss| row(usize::from(nodes), loss));
        self.nodes.iter().flat_map(of_nodes).collect()
    }

    /// Measures several at once, and prints them in their order, each as soon as it can be. Returns
    /// the goals that were missed.
    fn print_rows(&self, rows: &[Row]) -> Vec<String> {
        let next = AtomicUsize::new(0);
        let (done, finished) = mpsc::channel();
        let available = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        thread::scope(|scope| {
            for _ in 0..self.jobs.unwrap_or(available).get() {
                let (done, next) = (done.clone(), &next);
                scope.spawn(move || {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some(row) = rows.get(number) else { return };
                        done.send((number, row.measure(self.seed))).expect("it is waited for");
                    }
                });
            }
            drop(done);
            let mut waiting = BTreeMap::new();
            let (mut printed, mut missed) = (0, Vec::new());
            for (number, measured) in finished {
                waiting.insert(number, measured);
                while let Some((line, goals)) = waiting.remove(&printed) {
                    println!("{line}");
                    missed.extend(goals);
                    printed += 1;
                }
            }
            missed
        })
    }
}

impl Row {
    /// Measures this, as a line of the table and the goals that it misses.
    fn measure(self, seed: u64) -> (String, Vec<String>) {
        let Self { nodes, loss: percent, who } = self;
        let loss = f64::from(percent) / 100.0;
        let scale = scale(nodes, loss);
        let (name, figures) = match who {
            Who::Marengo => {
                ("Marengo", measure::measure(&mut measure::marengo(seed, nodes, loss), &scale))
            }
            Who::Plain(defaults) => {
                let mut world = PlainWorld::new(seed, nodes, loss, defaults);
                let name = match defaults {
                    Defaults::Lan => "foca lan",
                    Defaults::Wan => "foca wan",
                };
                (name, measure::measure(&mut world, &scale))
            }
        };
        let goals = match who {
            Who::Marengo => missed(&figures),
            Who::Plain(_) => Vec::new(),
        };
        let goals = goals.iter().map(|goal| format!("{nodes} nodes, {percent} % loss: {goal}"));
        let Figures { join, heal, bytes, .. } = figures;
        let line = format!(
            "| {nodes} | {percent} % | {name} | {} | {} | {} | {:.2} | {} | {bytes:.0} |",
            shown(join),
            shown(figures.detected_within(0.5)),
            shown(figures.detected_within(0.99)),
            figures.false_downs_per_node_hour(),
            shown(heal),
        );
        (line, goals.collect())
    }
}

/// Until all but one in a hundred know of a crash.
const GOAL_KNOWN: Duration = secs(6);
/// From the end of a split until all know all.
const GOAL_HEAL: Duration = secs(15);

/// The goals that Marengo's membership misses by these figures.
fn missed(figures: &Figures) -> Vec<String> {
    let late = |what: &str, time: Option<Duration>, goal: Duration| {
        let missed = time.is_none_or(|time| time >= goal);
        missed.then(|| format!("{what} {}, not under {} s", shown(time), goal.as_secs()))
    };
    let known = late("crash known p99", figures.detected_within(0.99), GOAL_KNOWN);
    let heal = late("split heals", figures.heal, GOAL_HEAL);
    [known, heal, missed_false_downs(figures)].into_iter().flatten().collect()
}

/// The goal of a quiet time, if it is missed.
fn missed_false_downs(figures: &Figures) -> Option<String> {
    let count = figures.false_downs;
    (count > 0).then(|| format!("false downs {count}, not 0"))
}

/// The longest that anything is waited for.
const PATIENCE: Duration = Duration::from_mins(4);

/// With more nodes than that, each second takes seconds to compute.
const LARGE: usize = 400;

/// The longest that is waited then: for a crash to be known, and until all know all.
const LARGE_PATIENCE: (Duration, Duration) = (secs(120), secs(60));

/// Fewer events in larger clusters: there each of them is seen by more nodes.
fn scale(nodes: usize, loss: f64) -> Scale {
    let (quiet, crashes) = match nodes {
        0..=20 => (Duration::from_hours(2), 4 * (nodes - 1)),
        21..=100 => (Duration::from_mins(20), 15),
        101..=LARGE => (Duration::from_mins(5), 8),
        _ => (secs(60), 1),
    };
    let (known_within, whole_within) =
        if nodes > LARGE { LARGE_PATIENCE } else { (PATIENCE, PATIENCE) };
    Scale { nodes, loss, quiet, crashes, known_within, whole_within }
}

fn shown(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_judged() {
        let good = Figures {
            detection: [vec![secs(3); 99], vec![secs(9)]].concat(),
            heal: Some(secs(14)),
            ..Figures::default()
        };
        assert_eq!(missed(&good), [""; 0]);

        let late = Figures {
            detection: vec![secs(6); 100],
            heal: Some(secs(15)),
            false_downs: 2,
            ..Figures::default()
        };
        let goals = [
            "crash known p99 6.0 s, not under 6 s",
            "split heals 15.0 s, not under 15 s",
            "false downs 2, not 0",
        ];
        assert_eq!(missed(&late), goals);

        let never = Figures { undetected: 2, heal: None, ..good };
        let goals = ["crash known p99 -, not under 6 s", "split heals -, not under 15 s"];
        assert_eq!(missed(&never), goals);
    }
}
