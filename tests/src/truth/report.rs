//! What a run tells: its figures, and what it found.

use std::{collections::BTreeMap, fmt, fmt::Write as _, time::Duration, time::Instant};

use super::{
    check::{Checks, Finding},
    event::Event,
    host::Host,
    model::Model,
    run::Plan,
    tag,
    traffic::Frames,
};

/// Events that are told of a station and of the hosts that it was on.
const HISTORY: usize = 30;

/// Something that must not be.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The number of the event.
    pub event: usize,
    host: usize,
    station: Option<u16>,
    /// In one line.
    pub summary: String,
    details: String,
}

/// The figures of a run.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    pub events: usize,
    pub took: Duration,
    /// How often each kind of event happened, and how long they took together.
    pub kinds: BTreeMap<&'static str, (usize, Duration)>,
    pub frames: Frames,
    pub checks: Checks,
    /// For so long the machine was too busy to look at all.
    pub stalled: Duration,
    pub violations: Vec<Violation>,
}

impl Violation {
    pub(crate) fn new(
        plan: &Plan,
        event: usize,
        finding: &Finding,
        history: &[(Instant, Event)],
        model: &Model,
        hosts: &[Host<'_>],
    ) -> Self {
        let about = finding.station.map_or_else(String::new, |s| format!(", station {s}"));
        let summary =
            format!("event {event}, maps of node-{}{about}: {}", finding.host + 1, finding.text);
        let mut details = String::new();
        tell(&mut details, finding, history, model, hosts)
            .expect("text can be written to a string");
        let Plan { seed, events, .. } = plan;
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        write!(
            details,
            "  again: MARENGO_SEED={seed} MARENGO_EVENTS={events} cargo test -p marengo-tests \
             --test truth -- {test} --nocapture"
        )
        .expect("text can be written to a string");
        Self { event, host: finding.host, station: finding.station, summary, details }
    }

    /// Whether it is the same thing, found again.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.host == other.host && self.station == other.station && self.event + 20 > other.event
    }
}

/// The events, the truth, and what each node has.
fn tell(
    out: &mut String,
    finding: &Finding,
    history: &[(Instant, Event)],
    model: &Model,
    hosts: &[Host<'_>],
) -> fmt::Result {
    let is_about = |event: Event| {
        event.station().is_some_and(|station| finding.station == Some(station))
            || event.host().is_some()
    };
    let events: Vec<_> =
        (1_usize..).zip(history).filter(|(_, (_, event))| is_about(*event)).collect();
    for (number, (at, event)) in &events[events.len().saturating_sub(HISTORY)..] {
        writeln!(out, "  {:8.3} s ago, event {number}: {event}", at.elapsed().as_secs_f64())?;
    }
    for host in hosts {
        let since = host.observer().tended_since.map(|since| since.elapsed());
        writeln!(
            out,
            "  {}: {:?}, boot {}, at {}, tended for {since:?}",
            host.name(),
            host.state,
            host.boot,
            host.address()
        )?;
    }
    if let Some(station) = finding.station {
        writeln!(out, "  {}", model.describe(station))?;
        for host in hosts {
            let Some(tables) = &host.tables else { continue };
            let dump = tables.dump();
            for (mac, entry) in dump.macs.iter().filter(|(mac, _)| mac.0 == tag::mac(station)) {
                let slot = dump.peers.get(&entry.peer);
                writeln!(out, "  {}: {mac} {entry:?} by {slot:?}", host.name())?;
            }
        }
    }
    if let Some(tables) = &hosts[finding.host].tables {
        let dump = tables.dump();
        for (index, slot) in &dump.peers {
            writeln!(out, "  {}: slot {index} {slot:?}", hosts[finding.host].name())?;
        }
    }
    Ok(())
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VIOLATION {}\n{}", self.summary, self.details)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, events, took, kinds, frames, checks, stalled, violations } = self;
        let seconds = took.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = *events as f64 / seconds;
        writeln!(f, "seed {seed}: {events} events in {seconds:.0} s, {rate:.1} a second")?;
        let kinds: Vec<String> = kinds
            .iter()
            .map(|(kind, (n, spent))| format!("{n} {kind} ({:.1} s)", spent.as_secs_f64()))
            .collect();
        writeln!(f, "  {}", kinds.join(", "))?;
        writeln!(
            f,
            "  {} rounds of checks, {:.1} s: {} live entries judged, {} of them late within the \
             bound, {} from a frame that a router had kept, {} of no station; a dead peer's slot was kept for {:.1} s at most; the machine stalled for {:.1} s",
            checks.rounds,
            checks.took.as_secs_f64(),
            checks.entries,
            checks.late,
            checks.kept,
            checks.unknown,
            checks.longest_kept.as_secs_f64(),
            stalled.as_secs_f64()
        )?;
        writeln!(
            f,
            "  {} unicast frames: {} by an entry ({} of them to a dead peer within the bound, {} \
             did not arrive), {} flooded ({} though the sender had heard the station), {} inside a \
             host",
            frames.sent,
            frames.directed,
            frames.to_the_dead,
            frames.lost,
            frames.flooded,
            frames.flooded_though_heard,
            frames.local
        )?;
        writeln!(
            f,
            "  {} announcements, heard by {} of {} nodes; {} late frames, {} of them where the \
             former home was not known",
            frames.announced, frames.heard, frames.could_hear, frames.late, frames.misled
        )?;
        write!(f, "  {} violations", violations.len())
    }
}
