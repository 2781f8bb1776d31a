use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{build, exec, lint, setup, stop, workspace};

/// Run the tests: without a tier all of them, lints first.
///
/// The tiers bpf and netns need root and a kernel with BPF; without root they are skipped, which the
/// summary says, unless --no-skip or MARENGO_REQUIRE_ROOT=1 forbids it.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Which tests: all if not given.
    tier: Option<Tier>,
    /// Only the tests whose name contains this.
    filter: Option<String>,
    /// Fail where a tier cannot run.
    #[arg(long)]
    no_skip: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, Eq, PartialEq)]
enum Tier {
    /// rustfmt and clippy.
    Lint,
    /// Units, properties and simulations: no root, no kernel.
    Unit,
    /// The cluster simulations alone, the long ones too, with optimizations.
    Sim,
    /// The programs under BPF_PROG_TEST_RUN.
    Bpf,
    /// Real daemons in network namespaces.
    Netns,
}

/// The test targets of `marengo-tests` that make the tier bpf; all others are netns.
const BPF_TARGETS: [&str; 2] = ["programs", "verifier"];

/// The targets of the tier netns whose tests wait for most of their time, and whose bounds leave room
/// for another test beside them.
const WAITING_TARGETS: [&str; 8] = [
    "bad_input",
    "life",
    "lifecycle",
    "membership",
    "remember",
    "renamed",
    "renumber",
    "third_party",
];

/// What a run without a tier does, cheapest first.
const ALL: [Tier; 4] = [Tier::Lint, Tier::Unit, Tier::Bpf, Tier::Netns];

/// Random clusters in each run of the unit tier, and how long they may take: those of 200 nodes take
/// a minute, and are rare.
const SEEDS: &str = "300";
const SEEDS_LIMIT: Duration = Duration::from_mins(8);

#[derive(Debug)]
struct Row {
    tier: &'static str,
    took: Duration,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let no_skip =
            self.no_skip || std::env::var_os("MARENGO_REQUIRE_ROOT").is_some_and(|v| v == "1");
        let tiers = self.tier.map_or_else(|| ALL.to_vec(), |tier| vec![tier]);
        let run = Run { filter: self.filter, no_skip };

        let mut rows = Vec::new();
        let mut daemon = None;
        rows.push(timed("build", || {
            // Tests of real daemons run the one that is shipped; the others need its object alone.
            daemon = Some(build::daemon(true)?);
            Ok(None)
        }));
        if daemon.is_some() {
            for tier in tiers {
                rows.push(timed(tier.name(), || run.tier(tier, daemon.as_deref())));
                if stop::requested() {
                    break;
                }
            }
        }
        print_summary(&rows);
        stop::check()?;
        let failed = rows.iter().filter(|row| matches!(row.outcome, Outcome::Failed(_))).count();
        if failed > 0 {
            bail!("{failed} of {} steps failed", rows.len());
        }
        Ok(())
    }
}

/// A tier's work fails, passes, or gives the reason why it was skipped.
type Skipped = Option<String>;

fn timed(tier: &'static str, work: impl FnOnce() -> Result<Skipped>) -> Row {
    println!("\n=== {tier} ===");
    let start = Instant::now();
    let outcome = match work() {
        Ok(None) => Outcome::Passed,
        Ok(Some(reason)) => {
            println!("SKIPPED {tier}: {reason}");
            Outcome::Skipped(reason)
        }
        Err(error) => {
            println!("FAILED {tier}: {error:#}");
            Outcome::Failed(format!("{error:#}"))
        }
    };
    Row { tier, took: start.elapsed(), outcome }
}

struct Run {
    filter: Option<String>,
    no_skip: bool,
}

impl Run {
    fn tier(&self, tier: Tier, daemon: Option<&Path>) -> Result<Skipped> {
        match tier {
            Tier::Lint => match lint::missing() {
                Some(reason) => self.skip(reason),
                None => lint::check().map(|()| None),
            },
            Tier::Unit => self.unit(),
            Tier::Sim => self.sim(),
            Tier::Bpf | Tier::Netns => self.integration(tier, daemon),
        }
    }

    fn skip(&self, reason: String) -> Result<Skipped> {
        if self.no_skip {
            bail!("{reason}, and skipping is forbidden");
        }
        Ok(Some(reason))
    }

    fn unit(&self) -> Result<Skipped> {
        self.cargo_test(workspace::cargo().arg("test"), &[], tier_limit(Tier::Unit))?;
        if self.filter.is_some() {
            return Ok(None);
        }
        let sim = workspace::build_binary("marengo-sim", true)?;
        let sim = |args: &[&str]| {
            let mut command = exec::command(&sim.to_string_lossy());
            exec::run_group(command.current_dir(workspace::root()).args(args), SEEDS_LIMIT)
        };
        sim(&["--seeds", SEEDS])?;
        sim(&["controls"])?;
        Ok(None)
    }

    fn sim(&self) -> Result<Skipped> {
        let mut test = workspace::cargo();
        test.args(["test", "--release", "--package", "marengo-sim", "--test", "scenarios"]);
        self.cargo_test(&mut test, &["--include-ignored", "--nocapture"], tier_limit(Tier::Sim))
    }

    fn integration(&self, tier: Tier, daemon: Option<&Path>) -> Result<Skipped> {
        if !workspace::is_root() {
            return self.skip(format!("the tier {} needs root", tier.name()));
        }
        setup::tools("the test tier", tier.tools())?;
        setup::bpffs()?;
        let daemon = daemon.context("the daemon was not built")?;
        let longer = match tier {
            Tier::Netns => Longer::wanted_by(|name| std::env::var_os(name)),
            Tier::Lint | Tier::Unit | Tier::Sim | Tier::Bpf => Longer::default(),
        };
        let limit = longer.limit().unwrap_or_else(|| tier_limit(tier));
        let targets = tier.targets()?;
        if targets.is_empty() {
            bail!("no test target of the tier {} under tests/tests", tier.name());
        }
        let began = Instant::now();
        let mut failed = Ok(None);
        for (targets, threads) in longer.groups(targets) {
            let mut test = workspace::cargo();
            test.args(["test", "--package", "marengo-tests"]);
            for target in targets {
                test.args(["--test", &target]);
            }
            test.env("MARENGO_BIN", daemon);
            if self.no_skip {
                test.env("MARENGO_REQUIRE_ROOT", "1");
            }
            let mut args = vec![threads];
            args.extend(longer.args());
            let limit = limit.saturating_sub(began.elapsed());
            let result = self.cargo_test(&mut test, &args, limit);
            stop::check()?;
            failed = failed.and(result);
        }
        failed
    }

    /// Compiles first, so that the limit is for the tests alone.
    fn cargo_test(&self, test: &mut Command, args: &[&str], limit: Duration) -> Result<Skipped> {
        // One failed target does not hide the result of the others.
        test.arg("--no-fail-fast");
        let mut compile = clone(test);
        exec::run(compile.arg("--no-run"))?;
        test.args(self.filter.as_deref()).arg("--").args(args);
        exec::run_group(test, limit).map(|()| None)
    }
}

fn clone(command: &Command) -> Command {
    let mut clone = workspace::cargo();
    clone.args(command.get_args());
    clone
}

fn tier_limit(tier: Tier) -> Duration {
    // Against tests that hang: far above what each takes.
    let minutes = match tier {
        Tier::Lint | Tier::Unit | Tier::Bpf => 8,
        Tier::Sim | Tier::Netns => 25,
    };
    Duration::from_secs(minutes * 60)
}

/// Whether the tests of real daemons are asked to do more than they do by themselves, by the
/// variables that tests/README.md tells of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Longer {
    /// Tests that take minutes run, too.
    long: bool,
    /// Others repeat themselves, or go on for longer.
    more: bool,
}

impl Longer {
    fn wanted_by(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        Self {
            long: variable("MARENGO_LONG").is_some_and(|value| value == "1"),
            more: number("MARENGO_RUNS").is_some_and(|runs| runs > 1)
                || variable("MARENGO_EVENTS").is_some(),
        }
    }

    /// Such a run is made for its figures: what tests print is shown if they pass, too.
    fn args(self) -> Vec<&'static str> {
        let mut args = Vec::new();
        args.extend((self.long || self.more).then_some("--nocapture"));
        args.extend(self.long.then_some("--include-ignored"));
        args
    }

    /// Which targets run together, and how many of their tests at once. What is run for its figures
    /// runs alone.
    fn groups(self, targets: Vec<String>) -> Vec<(Vec<String>, &'static str)> {
        let is_waiting = |target: &String| WAITING_TARGETS.contains(&target.as_str());
        let (waiting, alone): (Vec<_>, Vec<_>) = targets.into_iter().partition(is_waiting);
        let threads = if self.long || self.more { "--test-threads=1" } else { "--test-threads=2" };
        let groups = [(waiting, threads), (alone, "--test-threads=1")];
        groups.into_iter().filter(|(targets, _)| !targets.is_empty()).collect()
    }

    /// Those that are documented take up to an hour.
    fn limit(self) -> Option<Duration> {
        (self.long || self.more).then_some(Duration::from_hours(2))
    }
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::Lint => "lint",
            Self::Unit => "unit",
            Self::Sim => "sim",
            Self::Bpf => "bpf",
            Self::Netns => "netns",
        }
    }

    fn tools(self) -> &'static [setup::Tool] {
        use setup::{
            BPFTOOL, IP, IPERF3, NFT, NSENTER, PING, SETPRIV, STRACE, SYSCTL, TC, TCPDUMP,
        };
        match self {
            Self::Lint | Self::Unit | Self::Sim => &[],
            // The harness asks for all of them before any test.
            Self::Bpf | Self::Netns => {
                &[BPFTOOL, IP, IPERF3, NFT, NSENTER, PING, SETPRIV, STRACE, SYSCTL, TC, TCPDUMP]
            }
        }
    }

    /// The test targets of `marengo-tests` that belong to this tier.
    fn targets(self) -> Result<Vec<String>> {
        let folder = workspace::root().join("tests/tests");
        let entries = folder
            .read_dir()
            .with_context(|| format!("failed to read {}", folder.display()))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<PathBuf>>>()?;
        let mut targets: Vec<String> = entries.iter().filter_map(|path| target_of(path)).collect();
        targets.retain(|target| BPF_TARGETS.contains(&target.as_str()) == (self == Self::Bpf));
        targets.sort();
        Ok(targets)
    }
}

/// The name of the test target that cargo makes of an entry of `tests/`.
fn target_of(path: &Path) -> Option<String> {
    let is_target = path.extension().is_some_and(|extension| extension == "rs")
        || path.join("main.rs").is_file();
    if is_target { Some(path.file_stem()?.to_str()?.to_owned()) } else { None }
}

fn print_summary(rows: &[Row]) {
    println!("\ntier   seconds  result");
    for row in rows {
        let result = match &row.outcome {
            Outcome::Passed => "passed".to_owned(),
            // The error's first line; the rest stands where it happened.
            Outcome::Failed(error) => {
                format!("FAILED: {}", error.lines().next().unwrap_or_default())
            }
            Outcome::Skipped(reason) => format!("SKIPPED: {reason}"),
        };
        println!("{:<6} {:>7.1}  {result}", row.tier, row.took.as_secs_f64());
    }
    let total: Duration = rows.iter().map(|row| row.took).sum();
    println!("{:<6} {:>7.1}", "total", total.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_target_are_left_out() {
        assert_eq!(target_of(Path::new("/x/churn.rs")), Some("churn".to_owned()));
        assert_eq!(target_of(Path::new("/x/README.md")), None);
        assert_eq!(target_of(Path::new("/x/fixtures")), None);
    }

    #[test]
    fn what_waits_runs_two_at_a_time_unless_it_is_run_for_its_figures() {
        let targets = || ["drift", "life"].map(str::to_owned).to_vec();
        let drift = || (vec!["drift".to_owned()], "--test-threads=1");

        let groups = Longer::default().groups(targets());
        assert_eq!(groups, [(vec!["life".to_owned()], "--test-threads=2"), drift()]);
        let groups = Longer { long: false, more: true }.groups(targets());
        assert_eq!(groups, [(vec!["life".to_owned()], "--test-threads=1"), drift()]);
        assert_eq!(Longer::default().groups(vec!["drift".to_owned()]), [drift()]);
    }

    #[test]
    fn every_target_that_waits_is_there() {
        let targets = Tier::Netns.targets().unwrap();
        assert!(WAITING_TARGETS.iter().all(|name| targets.iter().any(|target| target == name)));
    }

    #[test]
    fn what_makes_a_run_longer_shows_its_figures_and_has_two_hours() {
        let longer = |name: &'static str, value: &str| {
            let value = OsString::from(value);
            Longer::wanted_by(|asked| (asked == name).then(|| value.clone()))
        };

        for (name, value) in [("MARENGO_RUNS", "2"), ("MARENGO_EVENTS", "10000")] {
            assert_eq!(longer(name, value).args(), ["--nocapture"]);
            assert_eq!(longer(name, value).limit(), Some(Duration::from_hours(2)));
        }
        let long = longer("MARENGO_LONG", "1");
        assert_eq!(long.args(), ["--nocapture", "--include-ignored"]);
        assert_eq!(long.limit(), Some(Duration::from_hours(2)));
        for (name, value) in [("MARENGO_RUNS", "1"), ("MARENGO_LONG", "0"), ("OTHER", "1")] {
            assert_eq!(longer(name, value).args(), [""; 0]);
            assert_eq!(longer(name, value).limit(), None);
        }
    }
}
