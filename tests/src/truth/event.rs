//! What happens, chosen by the seed.
//!
//! A choice depends on earlier choices alone, never on time or on what the daemons did: one seed is
//! one sequence of events.

use std::fmt;

use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    host::{Host, State},
    model::{HostNumber, Model},
    tag::StationNumber,
};

/// So many hosts at least have a daemon that runs undisturbed.
const UNDISTURBED: usize = 4;

/// For so many events nothing happens to a daemon that was started.
const SETTLE: usize = 16;

/// One thing that happens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    /// A container is started that has the address of one elsewhere: it moved, or it is another one.
    /// If it is not silent, it sends a first frame. With `late`, frames of the former home come after
    /// that one.
    Start { station: StationNumber, host: HostNumber, silent: bool, late: bool },
    /// A silent container sends its first frame.
    Speak { station: StationNumber },
    /// A container is removed; nobody has its address then.
    Remove { station: StationNumber },
    /// The stations talk.
    Talk,
    /// SIGKILL for a daemon.
    Kill(HostNumber),
    /// The daemon of a host that has lost it is started; it adopts.
    Adopt(HostNumber),
    /// Both at once.
    Crash(HostNumber),
    /// A daemon says goodbye.
    Leave(HostNumber),
    /// The daemon of a host that has left is started.
    Join(HostNumber),
    /// Both at once.
    Restart(HostNumber),
    /// A host loses its power.
    PowerOff(HostNumber),
    /// A host has power again.
    PowerOn(HostNumber),
    /// A new machine takes a host's place and address without a pause.
    Replace(HostNumber),
    /// SIGSTOP.
    Stop(HostNumber),
    /// SIGCONT.
    Resume(HostNumber),
    /// A host gets another address in the underlay, and its daemon follows.
    Renumber(HostNumber),
    /// A daemon leaves, its host gets another address, and the daemon is started again.
    Readdress(HostNumber),
}

impl Event {
    /// The host whose daemon or power this is about.
    pub(crate) fn host(self) -> Option<HostNumber> {
        match self {
            Self::Start { .. } | Self::Speak { .. } | Self::Remove { .. } | Self::Talk => None,
            Self::Kill(host)
            | Self::Adopt(host)
            | Self::Crash(host)
            | Self::Leave(host)
            | Self::Join(host)
            | Self::Restart(host)
            | Self::PowerOff(host)
            | Self::PowerOn(host)
            | Self::Replace(host)
            | Self::Stop(host)
            | Self::Resume(host)
            | Self::Renumber(host)
            | Self::Readdress(host) => Some(host),
        }
    }

    /// The station that this is about.
    pub(crate) fn station(self) -> Option<StationNumber> {
        match self {
            Self::Start { station, .. } | Self::Speak { station } | Self::Remove { station } => {
                Some(station)
            }
            _ => None,
        }
    }

    /// A word for the statistics.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Start { silent: true, .. } => "start silently",
            Self::Start { late: true, .. } => "start, late frames",
            Self::Start { .. } => "start",
            Self::Speak { .. } => "speak",
            Self::Remove { .. } => "remove",
            Self::Talk => "talk",
            Self::Kill(_) => "kill",
            Self::Adopt(_) => "adopt",
            Self::Crash(_) => "crash",
            Self::Leave(_) => "leave",
            Self::Join(_) => "join",
            Self::Restart(_) => "restart",
            Self::PowerOff(_) => "power off",
            Self::PowerOn(_) => "power on",
            Self::Replace(_) => "replace",
            Self::Stop(_) => "SIGSTOP",
            Self::Resume(_) => "SIGCONT",
            Self::Renumber(_) => "renumber",
            Self::Readdress(_) => "restart with another address",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        if let Some(station) = self.station() {
            write!(f, " of station {station}")?;
        }
        if let Self::Start { host, .. } = self {
            write!(f, " on node-{}", host + 1)?;
        }
        if let Some(host) = self.host() {
            write!(f, " of node-{}", host + 1)?;
        }
        Ok(())
    }
}

/// Chooses the event of that number. Stations from `movable` on stay where they are.
pub(crate) fn choose(
    rng: &mut StdRng,
    number: usize,
    hosts: &[Host<'_>],
    model: &Model,
    movable: StationNumber,
) -> Event {
    let settled = |host: &&Host<'_>| host.launched_at + SETTLE <= number;
    let in_state = |state| hosts.iter().filter(settled).filter(move |host| host.state == state);
    let undisturbed = hosts.iter().filter(|host| host.state == State::Up).count();

    let mut choices: Vec<(u32, Event)> = vec![(10, Event::Talk)];
    // Some move more often than others.
    let among = if rng.random_ratio(1, 3) { movable / 4 } else { movable };
    let station = rng.random_range(0..among);
    let home = model.station(station).home();
    let homes: Vec<HostNumber> = hosts
        .iter()
        .filter(settled)
        .filter(|host| host.forwards())
        .filter(|host| home.is_none_or(|home| (home.host, home.boot) != (host.number, host.boot)))
        .map(|host| host.number)
        .collect();
    if let Some(&host) = homes.choose(rng) {
        let late = home.is_some() && rng.random_ratio(1, 4);
        choices.push((30, Event::Start { station, host, silent: false, late }));
        choices.push((10, Event::Start { station, host, silent: true, late: false }));
    }
    if model.station(station).runs {
        choices.push((5, Event::Remove { station }));
    }
    for station in &model.stations[..usize::from(movable)] {
        if station.silent_at.is_some_and(|home| settled(&&hosts[home.host])) {
            choices.push((5, Event::Speak { station: station.number }));
        }
    }
    if undisturbed > UNDISTURBED
        && let Some(host) = in_state(State::Up).collect::<Vec<_>>().choose(rng)
    {
        let host = host.number;
        choices.extend([
            (4, Event::Kill(host)),
            (3, Event::Crash(host)),
            (4, Event::Leave(host)),
            (2, Event::Restart(host)),
            (4, Event::PowerOff(host)),
            (2, Event::Replace(host)),
            (7, Event::Stop(host)),
            (3, Event::Renumber(host)),
            (1, Event::Readdress(host)),
        ]);
    }
    choices.extend(in_state(State::Orphaned).map(|host| (3, Event::Adopt(host.number))));
    choices.extend(in_state(State::Orphaned).map(|host| (1, Event::PowerOff(host.number))));
    choices.extend(in_state(State::Left).map(|host| (3, Event::Join(host.number))));
    choices.extend(in_state(State::Off).map(|host| (2, Event::PowerOn(host.number))));
    choices.extend(in_state(State::Stopped).map(|host| (3, Event::Resume(host.number))));
    choices.extend(in_state(State::Stopped).map(|host| (1, Event::PowerOff(host.number))));

    let weighted = choices.choose_weighted(rng, |(weight, _)| *weight);
    weighted.expect("talking is always possible").1
}
