//! What was measured, as a section of docs/benchmarks.md.

use std::{fmt::Write as _, time::Duration};

use super::{pings, usage::Usage};

const GOAL_JOIN: Duration = Duration::from_secs(30);
const GOAL_GONE: Duration = Duration::from_secs(6);
/// Percent of a core.
const GOAL_PROCESSOR: f64 = 0.2;
/// KiB.
const GOAL_RESIDENT: u64 = 16 * 1024;

/// All that the benchmark measures.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    pub(super) nodes: u16,
    /// /proc/loadavg before the start.
    pub(super) load: String,
    pub(super) started: Duration,
    pub(super) first_full: Duration,
    pub(super) joined: Duration,
    pub(super) pings: pings::Outcome,
    pub(super) watched: Duration,
    /// Of each daemon, before and after it was watched.
    pub(super) usages: Vec<(Usage, Usage)>,
    /// Members declared down while nothing was wrong.
    pub(super) false_downs: usize,
    pub(super) gone: Duration,
    /// Members declared down by the side of the one that was.
    pub(super) other_downs: usize,
}

/// The section, and how many of its goals are missed.
#[derive(Clone, Debug)]
pub(super) struct Section {
    pub(super) text: String,
    pub(super) missed: usize,
}

impl Figures {
    pub(super) fn section(&self, circumstances: &str) -> Section {
        let mut text = String::from("## Many nodes: `cargo xtask bench mesh --write`\n\n");
        let missed = self.write(&mut text, circumstances).expect("writing to a string cannot fail");
        Section { text, missed }
    }

    /// Returns how many goals are missed.
    fn write(&self, text: &mut String, circumstances: &str) -> Result<usize, std::fmt::Error> {
        let Self { nodes, pings, .. } = self;
        writeln!(text, "{circumstances} One run; load before it: {}.\n", short(&self.load))?;
        writeln!(
            text,
            "{nodes} real daemons, each in a network namespace, behind one router: a routed \
             underlay of /31s, every cable capped at 50 Mbit/s. All are started at once, and know \
             the first one's address. The machine's limit of neighbours \
             (`net.ipv4.neigh.default.gc_thresh3`, which all namespaces share) is raised for the \
             time of the run.\n"
        )?;
        let processor: Vec<f64> = self.usages.iter().map(|usage| self.percent(usage)).collect();
        let resident: Vec<f64> = self.usages.iter().map(|usage| mebi(usage.1.resident)).collect();
        let wakes: Vec<f64> = self.usages.iter().map(|usage| self.wakes(usage)).collect();
        let (processor, resident, wakes) = (spread(processor), spread(resident), spread(wakes));
        let mut missed = 0;
        let mut met = |met: bool| {
            missed += usize::from(!met);
            if met { "met" } else { "missed" }
        };
        writeln!(text, "| what | measured | goal |")?;
        writeln!(text, "| --- | --- | --- |")?;
        writeln!(
            text,
            "| from the first start until every daemon lists all {nodes} and all maps hold all {} \
             peers | {} (the last daemon ran after {}, the first map was full after {}) | 30 s: {} |",
            nodes - 1,
            seconds(self.joined),
            seconds(self.started),
            seconds(self.first_full),
            met(self.joined <= GOAL_JOIN)
        )?;
        writeln!(
            text,
            "| pairs of bridges that answer ping | {} of {} ({} at the first request) in {} | all: \
             {} |",
            pings.answered,
            pings.pairs,
            pings.at_once,
            seconds(pings.took),
            met(pings.answered == pings.pairs)
        )?;
        writeln!(
            text,
            "| one loses its power and its link: gone from the maps of the other {} | {} | 6 s: {} |",
            nodes - 1,
            seconds(self.gone),
            met(self.gone <= GOAL_GONE)
        )?;
        writeln!(
            text,
            "| members declared down without a reason, before and after that | {} and {} | 0: {} |",
            self.false_downs,
            self.other_downs,
            met(self.false_downs + self.other_downs == 0)
        )?;
        writeln!(
            text,
            "| an idle daemon's share of a core, over {} | median {:.3} %, most {:.3} % | 0.2 %: {} |",
            seconds(self.watched),
            processor.0,
            processor.1,
            met(processor.1 < GOAL_PROCESSOR)
        )?;
        writeln!(
            text,
            "| an idle daemon wakes | median {:.1}, most {:.1} times a second | |",
            wakes.0, wakes.1
        )?;
        writeln!(
            text,
            "| an idle daemon's resident memory | median {:.1}, most {:.1} MiB | 16 MiB: {} |",
            resident.0,
            resident.1,
            met(self.usages.iter().all(|usage| usage.1.resident < GOAL_RESIDENT))
        )?;
        writeln!(
            text,
            "\nA daemon's share counts the time in which the kernel carries its datagrams through \
             both cables and the router, because that happens inside its calls. The pings find \
             their neighbours by ARP, flooded to all, at a bounded pace."
        )?;
        Ok(missed)
    }

    fn percent(&self, (before, after): &(Usage, Usage)) -> f64 {
        let used = after.processor.saturating_sub(before.processor);
        100.0 * used.as_secs_f64() / self.watched.as_secs_f64()
    }

    fn wakes(&self, (before, after): &(Usage, Usage)) -> f64 {
        float(after.wakes.saturating_sub(before.wakes)) / self.watched.as_secs_f64()
    }
}

/// The median and the most.
fn spread(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let median = values.get(values.len() / 2).copied().unwrap_or_default();
    (median, values.last().copied().unwrap_or_default())
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn mebi(kibi: u64) -> f64 {
    float(kibi) / 1024.0
}

#[expect(clippy::cast_precision_loss, reason = "counts are far under 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

/// The averages over one, five and fifteen minutes.
fn short(load: &str) -> String {
    load.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_judged() {
        let idle = |processor, resident| Usage { processor, wakes: 0, resident };
        let (nothing, much) = (Duration::ZERO, Duration::from_millis(150));
        let figures = Figures {
            nodes: 3,
            load: "0.10 0.20 0.30 1/100 7\n".to_owned(),
            started: Duration::from_secs(1),
            first_full: Duration::from_secs(2),
            joined: Duration::from_secs(3),
            pings: pings::Outcome { pairs: 6, answered: 6, at_once: 5, took: nothing },
            watched: Duration::from_mins(1),
            usages: vec![(idle(nothing, 9000), idle(much, 9000)); 3],
            false_downs: 0,
            gone: Duration::from_secs(7),
            other_downs: 0,
        };

        let Section { text, missed } = figures.section("Here.");

        assert!(text.contains("load before it: 0.10 0.20 0.30."), "{text}");
        assert!(text.contains("| 3.0 s (the last daemon"), "{text}");
        assert!(text.contains("30 s: met") && text.contains("all: met"), "{text}");
        assert!(text.contains("| 7.0 s | 6 s: missed |"), "{text}");
        assert!(text.contains("most 0.250 % | 0.2 %: missed"), "{text}");
        assert!(text.contains("most 8.8 MiB | 16 MiB: met"), "{text}");
        assert_eq!(missed, 2, "{text}");
    }
}
