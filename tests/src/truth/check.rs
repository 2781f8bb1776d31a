//! The checker: reads every node's maps, and compares them with what is true.

use std::time::{Duration, Instant};

use super::{
    host::{Host, State},
    model::{Judgement, Model, Target},
    tables::{Dump, data_plane, own_data_plane},
    tag::{self, StationNumber},
};

/// What the checker has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checks {
    /// Times that it looked at all nodes.
    pub rounds: u64,
    /// Live entries that it judged.
    pub entries: u64,
    /// Of those, to a peer that was gone or had moved, within the bound.
    pub late: u64,
    /// Entries that were learnt from a frame which a router had kept until this node had the address
    /// that it was sent to.
    pub kept: u64,
    /// The longest time for which something was kept that was gone, at nodes that were tended meanwhile.
    pub longest_kept: Duration,
    /// Live entries for addresses that are no station's.
    pub unknown: u64,
    /// The time that looking took.
    pub took: Duration,
}

/// Something that is not as it must be.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) host: usize,
    pub(crate) station: Option<StationNumber>,
    pub(crate) text: String,
}

impl Checks {
    /// Looks at all nodes whose programs forward. With `stamps` false, as programs that ignore them.
    /// What the sockets have seen must be in the model already.
    pub(crate) fn look(
        &mut self,
        hosts: &[Host<'_>],
        model: &mut Model,
        stamps: bool,
    ) -> Vec<Finding> {
        let start = Instant::now();
        let dumps: Vec<(usize, Dump)> = hosts
            .iter()
            .filter_map(|host| Some((host.number, host.tables.as_ref()?.dump())))
            .collect();
        learn_ids(hosts, model);
        let now = Instant::now();
        let now_ns = monotonic_ns();
        let mut findings = Vec::new();
        for (number, dump) in &dumps {
            self.judge(&hosts[*number], model, dump, stamps, (now, now_ns), &mut findings);
        }
        self.rounds += 1;
        self.took += start.elapsed();
        findings
    }

    fn judge(
        &mut self,
        host: &Host<'_>,
        model: &mut Model,
        dump: &Dump,
        stamps: bool,
        (now, now_ns): (Instant, u64),
        findings: &mut Vec<Finding>,
    ) {
        let observer = host.observer();
        let mut found = |station, text| {
            findings.push(Finding { host: host.number, station, text });
        };
        for (mac, entry, peer) in dump.live(stamps) {
            let Some(station) = tag::station(mac.0) else {
                self.unknown += 1;
                continue;
            };
            self.entries += 1;
            let target = Target { address: dump.address(peer), id: data_plane(peer) };
            let heard = model.heard(host.number, station);
            match model.judge(observer, station, heard, target, now) {
                Judgement::Right => {}
                Judgement::Late => self.late += 1,
                Judgement::Wrong(reason) => {
                    let age = Duration::from_nanos(now_ns.saturating_sub(entry.last_seen_ns));
                    let arrived = now.checked_sub(age).unwrap_or(now);
                    if model.was_kept(host.number, station, target.address, arrived) {
                        self.kept += 1;
                    } else {
                        found(Some(station), format!("{entry:?} by {peer:?}: {reason}"));
                    }
                }
            }
        }
        for (index, peer) in dump.slots() {
            let target = Target { address: dump.address(peer), id: data_plane(peer) };
            match model.judge_slot(observer, target, now) {
                Judgement::Right => {}
                Judgement::Late => {
                    if let Some(kept) = model.kept_for(observer, target, now) {
                        self.longest_kept = self.longest_kept.max(kept);
                    }
                }
                Judgement::Wrong(reason) => {
                    found(None, format!("slot {index}: {peer:?}: {reason}"));
                }
            }
        }
        if host.state == State::Up
            && let Some(plane) = model.plane_of(host.number)
            && let Some(expected) = model.planes[plane].id
            && own_data_plane(&dump.settings) != Some(expected)
        {
            found(None, format!("{} has other maps: {:?}", model.planes[plane], dump.settings));
        }
    }
}

/// The clock that the programs stamp entries with.
fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    let now = now.expect("every kernel has this clock");
    u64::try_from(Duration::from(now).as_nanos()).expect("it has not run for 500 years")
}

/// Reads the names of data planes that have come up since.
pub(crate) fn learn_ids(hosts: &[Host<'_>], model: &mut Model) {
    for host in hosts {
        let Some(plane) = model.plane_of(host.number) else { continue };
        if model.planes[plane].id.is_none() {
            model.planes[plane].id = host.data_plane_id();
        }
    }
}
