//! `metrics`: figures of the membership, beside those of foca alone.

use std::{process::ExitCode, time::Duration};

use marengo_sim::{
    measure::{self, Cluster, Defaults, Figures, PlainWorld, Scale},
    secs,
};

/// Print how soon a crash is known, false downs, how soon a split heals and bytes per second, for
/// Marengo's membership and for foca with its own defaults.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Numbers of nodes.
    #[arg(long, value_delimiter = ',', default_value = "5,50,200,1000")]
    nodes: Vec<usize>,
    /// Shares of datagrams that are lost, in per cent.
    #[arg(long, value_delimiter = ',', default_value = "0,5,20")]
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
}

impl Args {
    pub(crate) fn run(self) -> ExitCode {
        println!(
            "| nodes | loss | membership | join | crash known p50 | p99 | false downs | split \
             heals | bytes |"
        );
        println!("| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |");
        for &nodes in &self.nodes {
            for &loss in &self.loss {
                self.row("Marengo", nodes, loss, |seed, loss| measure::marengo(seed, nodes, loss));
                if self.only_marengo {
                    continue;
                }
                for (name, defaults) in [("foca lan", Defaults::Lan), ("foca wan", Defaults::Wan)] {
                    self.row(name, nodes, loss, |seed, loss| {
                        PlainWorld::new(seed, nodes, loss, defaults)
                    });
                }
            }
        }
        println!();
        println!(
            "Known: time from a crash until another node knew it, over all of them. False downs: \
             nodes taken for failed that were not, per node and hour. Bytes: sent by each node in \
             a second while nothing happens, the exchanges over HTTP included, headers of UDP and \
             IP not. A dash: not within {} s.",
            PATIENCE.as_secs()
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
        }
        ExitCode::SUCCESS
    }

    fn row<C: Cluster>(
        &self,
        name: &str,
        nodes: usize,
        percent: u32,
        make: impl FnOnce(u64, f64) -> C,
    ) {
        let loss = f64::from(percent) / 100.0;
        let figures = measure::measure(&mut make(self.seed, loss), &scale(nodes, loss));
        let Figures { join, heal, bytes, .. } = figures;
        println!(
            "| {nodes} | {percent} % | {name} | {} | {} | {} | {:.2} | {} | {bytes:.0} |",
            shown(join),
            shown(figures.detected_within(0.5)),
            shown(figures.detected_within(0.99)),
            figures.false_downs_per_node_hour(),
            shown(heal),
        );
    }
}

/// The longest that anything is waited for.
const PATIENCE: Duration = Duration::from_mins(4);

/// Fewer events in larger clusters: there each of them is seen by more nodes.
fn scale(nodes: usize, loss: f64) -> Scale {
    let (quiet, crashes) = match nodes {
        0..=20 => (Duration::from_hours(2), 4 * (nodes - 1)),
        21..=100 => (Duration::from_mins(20), 15),
        101..=400 => (Duration::from_mins(5), 8),
        _ => (secs(60), 3),
    };
    Scale { nodes, loss, quiet, crashes, patience: PATIENCE }
}

fn shown(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()))
}
