//! Without a subcommand: accidents at random, one cluster a seed.

use std::{
    num::NonZeroUsize,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::value_parser;
use marengo_core::control::Control;
use marengo_sim::chaos::{Report, Settings};

use super::{
    attempt::{attempt, keep_what_panics_say},
    machines,
};

/// Clusters in trouble, each decided by its seed, until one breaks a promise.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Runs this seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds.
    #[arg(long, default_value_t = 300, value_parser = value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first of them; by default another one each time.
    #[arg(long)]
    from: Option<u64>,
    /// Machines; by default the seed decides.
    #[arg(long, value_parser = machines())]
    nodes: Option<u16>,
    /// A mechanism that all nodes do without, to see what breaks.
    #[arg(long, value_delimiter = ',')]
    without: Vec<Control>,
    /// Print all that happens.
    #[arg(short, long)]
    verbose: bool,
    /// Goes on after a seed that failed.
    #[arg(long)]
    keep_going: bool,
    /// Threads; by default one for each processor.
    #[arg(long)]
    jobs: Option<NonZeroUsize>,
}

#[derive(Debug, Default)]
struct Sum {
    runs: u64,
    nodes: u64,
    accidents: u64,
    virtual_time: Duration,
    healed: Vec<Duration>,
    datagrams: u64,
    frames: u64,
    strayed: u64,
    failed: Vec<u64>,
}

impl Args {
    pub(crate) fn run(self) -> ExitCode {
        keep_what_panics_say();
        let settings = Settings {
            nodes: self.nodes.map(usize::from),
            trace: self.verbose,
            without: self.without.iter().copied().collect(),
        };
        let (from, count) = match self.seed {
            Some(seed) => (seed, 1),
            None => (self.from.unwrap_or_else(random_seed), self.seeds),
        };
        println!("{count} seeds from {from}");
        let began = now();
        let sum = self.run_all(from, count, &settings);
        self.print(&sum, began);
        if sum.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn run_all(&self, from: u64, count: u64, settings: &Settings) -> Sum {
        let (next, sum) = (AtomicU64::new(0), Mutex::new(Sum::default()));
        let available = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        thread::scope(|scope| {
            for _ in 0..self.jobs.unwrap_or(available).get() {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            return;
                        }
                        let seed = from.wrapping_add(number);
                        let result = attempt(seed, settings);
                        let mut sum = sum.lock().expect("no panic holds this");
                        match result {
                            Ok(report) => sum.add(&report),
                            Err(said) => {
                                sum.failed.push(seed);
                                self.tell(seed, &said);
                                if !self.keep_going {
                                    next.store(count, Ordering::Relaxed);
                                }
                            }
                        }
                    }
                });
            }
        });
        sum.into_inner().expect("no panic holds this")
    }

    /// Says what failed and how to see it again.
    fn tell(&self, seed: u64, said: &str) {
        println!("\nseed {seed} failed: {said}\nto replay: {}", self.replay(seed));
    }

    fn replay(&self, seed: u64) -> String {
        let nodes = self.nodes.map_or_else(String::new, |nodes| format!(" --nodes {nodes}"));
        let names: Vec<&str> = self.without.iter().map(|control| control.name()).collect();
        let without = if names.is_empty() {
            String::new()
        } else {
            format!(" --without {}", names.join(","))
        };
        format!("cargo xtask sim --seed {seed}{nodes}{without} -v")
    }

    fn print(&self, sum: &Sum, began: Instant) {
        let mut healed = sum.healed.clone();
        healed.sort_unstable();
        let at = |share: usize| healed.get((healed.len() * share).div_ceil(100).saturating_sub(1));
        let shown = |time: Option<&Duration>| time.map_or(0.0, Duration::as_secs_f64);
        println!(
            "{} runs kept all promises: {} machines, {} accidents, {:.1} virtual hours, {} \
             datagrams, {} frames ({} strayed) in {:.1} s",
            sum.runs,
            sum.nodes,
            sum.accidents,
            sum.virtual_time.as_secs_f64() / 3600.0,
            sum.datagrams,
            sum.frames,
            sum.strayed,
            began.elapsed().as_secs_f64()
        );
        println!(
            "full mesh after the last trouble: {:.1} s in the middle, 99 of 100 within {:.1} s, \
             at most {:.1} s",
            shown(at(50)),
            shown(at(99)),
            shown(healed.last())
        );
        if !sum.failed.is_empty() {
            println!("{} seeds failed:", sum.failed.len());
            for seed in sum.failed.iter().take(20) {
                println!("  {}", self.replay(*seed));
            }
        }
    }
}

impl Sum {
    fn add(&mut self, report: &Report) {
        self.runs += 1;
        self.nodes += report.nodes as u64;
        self.accidents += report.accidents as u64;
        self.virtual_time += report.lasted;
        self.healed.push(report.healed);
        self.datagrams += report.datagrams;
        self.frames += report.frames;
        self.strayed += report.strayed;
    }
}

#[expect(clippy::disallowed_methods, reason = "for people: how long the runs took")]
fn now() -> Instant {
    Instant::now()
}

/// Another one each time, short enough to be typed.
#[expect(clippy::disallowed_methods, reason = "the one thing here that no seed decides")]
fn random_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(since.subsec_nanos()) % 10_000 * 100_000 + since.as_secs() % 100_000
}
