//! What is true: where each station is, what each node has heard of that, and which data planes live.
//!
//! The owner of an address is the node where its station was last started and has sent a first frame.
//! Until that frame has reached a node, that node may send to an earlier home. A data plane that is
//! gone may be sent to until the bound on its removal has passed, but never for a station that a
//! living one has taken over and been heard from.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use super::tag::StationNumber;

/// Number of a host, from zero.
pub(crate) type HostNumber = usize;

/// For so long a station that left a node is not taken back there by its frames, and some more.
pub(crate) const MOVE_HOLD: Duration = Duration::from_millis(280);

/// A router keeps a frame for so long while it looks for the next hop: three questions, a second each;
/// and some more.
const UNDERLAY_KEEPS: Duration = Duration::from_secs(4);

/// So soon after a station has left a node, a frame from there is refused in any case.
const REFUSED: Duration = Duration::from_millis(200);

/// How long after a start that adopts, slots that nobody has claimed are kept.
const ADOPTED_KEEP: Duration = Duration::from_secs(15);

/// Maps and programs of one life: from their making until they are removed, or the power fails.
#[derive(Clone, Debug)]
pub(crate) struct DataPlane {
    pub(crate) host: HostNumber,
    /// Which life of the host: stations end with it.
    pub(crate) boot: u32,
    /// Its name in the maps, as soon as they were read.
    pub(crate) id: Option<u64>,
    pub(crate) address: Ipv4Addr,
    /// Since when it has it.
    pub(crate) took: Instant,
    /// Where it was before, and until when.
    pub(crate) former: Vec<(Ipv4Addr, Instant)>,
    pub(crate) died: Option<Instant>,
}

/// Where a station has sent from: one element of its history, an epoch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Home {
    pub(crate) host: HostNumber,
    pub(crate) boot: u32,
}

/// What a node has heard of a station.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    /// The latest epoch of which a frame has arrived.
    epoch: u32,
    /// When the station was last heard from another host than before, and from which before.
    moved: Option<(Instant, HostNumber)>,
    /// Since when a router let a frame go that it had kept, this epoch was heard last: where the station
    /// is believed to be since.
    kept: Option<(u32, IpAddr)>,
}

/// A container, as far as the network can tell.
#[derive(Debug)]
pub(crate) struct Station {
    pub(crate) number: StationNumber,
    /// Where it has sent from, in order; epoch 1 is the first. Never removed.
    homes: Vec<Home>,
    /// Where it was started, before it has sent anything.
    pub(crate) silent_at: Option<Home>,
    /// Whether it runs at its home: it was not removed, and the host has not lost its power.
    pub(crate) runs: bool,
    pub(crate) moved_at: Option<Instant>,
    /// When it last sent something, in each epoch.
    sent: Vec<Instant>,
    heard: Vec<Heard>,
}

/// A node, as a judge of its maps must know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observer {
    pub(crate) host: HostNumber,
    /// Since when its daemon runs without a break; `None` if it does not: nobody tends its maps.
    pub(crate) tended_since: Option<Instant>,
    /// Whether that start took over an earlier run's slots.
    pub(crate) adopted: bool,
}

/// What an entry points to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) address: IpAddr,
    /// The slot's; `None` where frames are judged, which name none.
    pub(crate) id: Option<u64>,
}

/// What the model says of an entry or a frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Judgement {
    Right,
    /// Its target is dead, or has moved to another address, and may still be believed.
    Late,
    Wrong(String),
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) planes: Vec<DataPlane>,
    pub(crate) stations: Vec<Station>,
    hosts: usize,
    /// Daemons that were stopped for a while: from when, and until when.
    sleeps: Vec<(Instant, Instant)>,
    /// When the machine did not even let the checker look for a while, and for how long.
    stalls: Vec<(Instant, Duration)>,
    /// How long a node may send to a data plane that is gone.
    pub(crate) bound: Duration,
}

impl Station {
    /// The latest epoch; zero before the first.
    pub(crate) fn epoch(&self) -> u32 {
        u32::try_from(self.homes.len()).expect("stations move a few thousand times")
    }

    /// The owner of the address; `None` before the first frame.
    pub(crate) fn home(&self) -> Option<Home> {
        self.homes.last().copied()
    }

    /// The home of an epoch.
    pub(crate) fn home_in(&self, epoch: u32) -> Option<Home> {
        self.homes.get((epoch as usize).checked_sub(1)?).copied()
    }
}

impl DataPlane {
    /// Whether it has an address, or had it.
    fn had(&self, address: IpAddr) -> bool {
        address == self.address || self.left(address).is_some()
    }

    /// When it left an address that it had.
    fn left(&self, address: IpAddr) -> Option<Instant> {
        let mut former = self.former.iter().rev().filter(|(former, _)| address == *former);
        former.next().filter(|_| address != self.address).map(|(_, when)| *when)
    }
}

impl Model {
    pub(crate) fn new(hosts: usize, stations: StationNumber, bound: Duration) -> Self {
        let stations = (0..stations).map(|number| Station {
            number,
            homes: Vec::new(),
            silent_at: None,
            runs: false,
            moved_at: None,
            sent: Vec::new(),
            heard: vec![Heard::default(); hosts],
        });
        Self {
            planes: Vec::new(),
            stations: stations.collect(),
            hosts,
            sleeps: Vec::new(),
            stalls: Vec::new(),
            bound,
        }
    }

    pub(crate) fn station(&self, number: StationNumber) -> &Station {
        &self.stations[usize::from(number)]
    }

    pub(crate) fn station_mut(&mut self, number: StationNumber) -> &mut Station {
        &mut self.stations[usize::from(number)]
    }

    /// The station sends its first frame from a new home. Returns the epoch.
    pub(crate) fn settle(&mut self, number: StationNumber, home: Home, now: Instant) -> u32 {
        let station = self.station_mut(number);
        station.homes.push(home);
        station.sent.push(now);
        station.silent_at = None;
        station.runs = true;
        station.moved_at = Some(now);
        let epoch = station.epoch();
        // Whatever its own node knew of others, the frame has passed there.
        self.hear(home.host, number, epoch, now);
        epoch
    }

    /// A station has sent something, from its home of an epoch.
    pub(crate) fn sent(&mut self, number: StationNumber, epoch: u32, now: Instant) {
        let sent = &mut self.station_mut(number).sent;
        if let Some(sent) = (epoch as usize).checked_sub(1).and_then(|epoch| sent.get_mut(epoch)) {
            *sent = now;
        }
    }

    /// Whether a node may believe a station to be behind an address because of a frame that it got at
    /// `arrived`: one that was sent from there to an address which this node has taken since. A router
    /// keeps such frames while it looks for whoever has the address. They tell neither when they were
    /// sent nor by whom, and the node believes them until it hears of a later epoch; unless it had heard
    /// of the station's next home so lately that the programs refuse them.
    pub(crate) fn was_kept(
        &mut self,
        at: HostNumber,
        number: StationNumber,
        address: IpAddr,
        arrived: Instant,
    ) -> bool {
        let Some(took) = self.plane_of(at).map(|plane| self.planes[plane].took) else {
            return false;
        };
        let station = self.station(number);
        let Heard { epoch, moved, .. } = station.heard[at];
        let is_from = |home: &Home| {
            let mut planes = self.planes.iter();
            planes.any(|p| p.host == home.host && p.boot == home.boot && p.had(address))
        };
        let is_refused = |home: &Home| {
            moved.is_some_and(|(when, left)| {
                left == home.host && arrived.saturating_duration_since(when) < REFUSED
            })
        };
        let is_so = station.homes.iter().zip(&station.sent).any(|(home, sent)| {
            let was_under_way = *sent < took
                && took <= arrived
                && arrived.saturating_duration_since(*sent) < UNDERLAY_KEEPS;
            was_under_way && is_from(home) && !is_refused(home)
        });
        if is_so {
            self.station_mut(number).heard[at].kept = Some((epoch, address));
        }
        is_so
    }

    /// A frame of a station has passed a node's programs.
    pub(crate) fn hear(&mut self, at: HostNumber, number: StationNumber, epoch: u32, now: Instant) {
        let station = &mut self.stations[usize::from(number)];
        let before = station.heard[at];
        if epoch <= before.epoch {
            return;
        }
        let (from, to) = (station.home_in(before.epoch), station.home_in(epoch));
        let (Some(to), heard) = (to, &mut station.heard[at]) else { return };
        let Some(from) = from else {
            heard.epoch = epoch;
            return;
        };
        // The programs take a quick return for a frame that was late: it counts when it is repeated.
        let returns = before.moved.is_some_and(|(when, left)| {
            left == to.host && now.saturating_duration_since(when) < MOVE_HOLD
        });
        if returns && to.host != at {
            return;
        }
        heard.epoch = epoch;
        if from.host != to.host {
            heard.moved = Some((now, from.host));
        }
    }

    /// A frame of an earlier epoch came late to a node that did not know the station's former home: nothing
    /// there could tell that it is late. The station's next frames then look like a quick return.
    pub(crate) fn mislead(
        &mut self,
        at: HostNumber,
        number: StationNumber,
        epoch: u32,
        now: Instant,
    ) {
        let station = self.station_mut(number);
        let home = station.home_in(station.heard[at].epoch);
        let heard = &mut station.heard[at];
        if heard.epoch > epoch {
            heard.epoch = epoch;
            heard.moved = home.map(|home| (now, home.host));
        }
    }

    /// The latest epoch that a node has heard of.
    pub(crate) fn heard(&self, at: HostNumber, number: StationNumber) -> u32 {
        self.station(number).heard[at].epoch
    }

    /// The living data plane of a host.
    pub(crate) fn plane_of(&self, host: HostNumber) -> Option<usize> {
        self.planes.iter().rposition(|plane| plane.host == host && plane.died.is_none())
    }

    /// The power of a host fails: its data plane and its stations end.
    pub(crate) fn power_off(&mut self, host: HostNumber, now: Instant) {
        self.end_plane(host, now);
        for station in &mut self.stations {
            if station.home().is_some_and(|home| home.host == host) {
                station.runs = false;
            }
            if station.silent_at.is_some_and(|home| home.host == host) {
                station.silent_at = None;
            }
        }
    }

    pub(crate) fn end_plane(&mut self, host: HostNumber, now: Instant) {
        if let Some(plane) = self.plane_of(host) {
            self.planes[plane].died = Some(now);
        }
    }

    /// A host has another address, which it began to take at `began`, and its data plane follows.
    pub(crate) fn renumber(
        &mut self,
        host: HostNumber,
        address: Ipv4Addr,
        began: Instant,
        now: Instant,
    ) {
        if let Some(plane) = self.plane_of(host) {
            let plane = &mut self.planes[plane];
            plane.former.push((plane.address, now));
            plane.address = address;
            plane.took = began;
        }
    }

    /// A host's daemon runs again that has rested: if it had not followed the host to another address,
    /// it can now.
    pub(crate) fn tended_again(&mut self, host: HostNumber, rested: Instant, now: Instant) {
        let bound = self.bound;
        let Some(plane) = self.plane_of(host) else { return };
        if let Some((_, when)) = self.planes[plane].former.last_mut()
            && rested < *when + bound
        {
            *when = now;
        }
    }

    /// Nobody could look for so long: no daemon could work either.
    pub(crate) fn stalled(&mut self, stall: Duration, now: Instant) {
        self.stalls.push((now, stall));
    }

    /// How long the machine has stalled in all.
    pub(crate) fn stalled_for(&self) -> Duration {
        self.stalls.iter().map(|(_, stall)| *stall).sum()
    }

    /// A daemon wakes up that has been stopped since.
    pub(crate) fn woke(&mut self, since: Instant, now: Instant) {
        self.sleeps.push((since, now));
    }

    /// Who slept while something happened tells of what was before, and nodes that came meanwhile must
    /// believe it until they have found out.
    fn last_told(&self, event: Instant) -> Instant {
        let through = self.sleeps.iter().filter(|(since, until)| *since <= event && event < *until);
        through.map(|(_, until)| *until).max().unwrap_or(event)
    }

    /// Until when an observer may believe in what was gone or changed at `event`; `None`: for as long as
    /// nobody tends its maps.
    pub(crate) fn deadline(&self, observer: Observer, event: Instant) -> Option<Instant> {
        let since = observer.tended_since?;
        let adopted = if observer.adopted { ADOPTED_KEEP } else { Duration::ZERO };
        let start = event.max(since + adopted);
        let stalls = self.stalls.iter().filter(|(until, _)| *until > start);
        Some(start + self.bound + stalls.map(|(_, stall)| *stall).sum::<Duration>())
    }

    /// The data planes that a target may be: the one that it names, else all that ever had its address.
    fn targets(&self, target: Target) -> impl Iterator<Item = &DataPlane> {
        self.planes.iter().rev().filter(move |plane| match target.id {
            Some(id) => plane.id == Some(id),
            None => plane.had(target.address),
        })
    }

    /// Judges where a node sends a station's frames to. `heard` is the epoch that it must know of.
    pub(crate) fn judge(
        &self,
        observer: Observer,
        number: StationNumber,
        heard: u32,
        target: Target,
        now: Instant,
    ) -> Judgement {
        let station = self.station(number);
        if station.heard[observer.host].kept == Some((heard, target.address)) {
            return Judgement::Late;
        }
        let from = (heard as usize).saturating_sub(1);
        let owns = |plane: &DataPlane| -> bool {
            let homes = station.homes.get(from..).unwrap_or_default();
            homes.iter().any(|home| home.host == plane.host && home.boot == plane.boot)
        };
        let late = |event| match self.deadline(observer, event) {
            Some(deadline) => now <= deadline,
            None => true,
        };
        let mut worst = None;
        // A frame names its sender by nothing but an address: until a node has heard of a new data
        // plane at the address of a dead one, it takes the one for the other.
        let heirs = |plane: &DataPlane| {
            let died = plane.died.is_some();
            self.planes.iter().filter(move |other| died && other.had(target.address) && owns(other))
        };
        for plane in self.targets(target) {
            let judgement = if !owns(plane) && heirs(plane).next().is_none() {
                Judgement::Wrong(format!(
                    "it points to {plane}, where the station is not (epoch {heard} was heard)"
                ))
            } else if let Some(died) = plane.died {
                if late(died) || heirs(plane).filter_map(|heir| heir.left(target.address)).any(late)
                {
                    Judgement::Late
                } else {
                    Judgement::Wrong(format!(
                        "it points to {plane}, which is gone since {:?}",
                        now.saturating_duration_since(died)
                    ))
                }
            } else if target.address == plane.address {
                Judgement::Right
            } else {
                match plane.left(target.address) {
                    Some(when) if late(when) => Judgement::Late,
                    _ => Judgement::Wrong(format!("it points to {plane}, at another address")),
                }
            };
            match judgement {
                Judgement::Wrong(_) => worst = worst.or(Some(judgement)),
                _ => return judgement,
            }
        }
        worst.unwrap_or_else(|| Judgement::Wrong("it points to nobody's address".to_owned()))
    }

    /// Judges a slot: none is kept for a data plane that is gone.
    pub(crate) fn judge_slot(&self, observer: Observer, target: Target, now: Instant) -> Judgement {
        let mut worst = None;
        for plane in self.targets(target) {
            let (event, what) = match (plane.died, plane.left(target.address)) {
                (Some(died), _) => (died, "gone"),
                (None, Some(when)) => (when, "elsewhere"),
                (None, None) => return Judgement::Right,
            };
            match self.deadline(observer, self.last_told(event)) {
                Some(deadline) if now > deadline => {
                    let ago = now.saturating_duration_since(event);
                    let text = format!("it is kept for {plane}, which is {what} since {ago:?}");
                    worst = worst.or(Some(Judgement::Wrong(text)));
                }
                _ => return Judgement::Late,
            }
        }
        worst.unwrap_or_else(|| Judgement::Wrong("it is kept for nobody's data plane".to_owned()))
    }

    /// For how long an observer has kept a slot of what was gone.
    pub(crate) fn kept_for(
        &self,
        observer: Observer,
        target: Target,
        now: Instant,
    ) -> Option<Duration> {
        let since = observer.tended_since?;
        let died = self
            .targets(target)
            .find_map(|plane| plane.died.or_else(|| plane.left(target.address)))?;
        let adopted = if observer.adopted { ADOPTED_KEEP } else { Duration::ZERO };
        Some(now.saturating_duration_since(died.max(since + adopted)))
    }

    /// Everybody's knowledge of a station, for people.
    pub(crate) fn describe(&self, number: StationNumber) -> String {
        let station = self.station(number);
        let homes: Vec<String> = (1_u32..)
            .zip(&station.homes)
            .skip(station.homes.len().saturating_sub(6))
            .map(|(epoch, home)| format!("{epoch}: node-{} boot {}", home.host + 1, home.boot))
            .collect();
        let heard: Vec<u32> = (0..self.hosts).map(|host| self.heard(host, number)).collect();
        format!(
            "station {number}: runs {}, homes by epoch [{}], silent at {:?}, epochs heard by the \
             nodes {heard:?}",
            station.runs,
            homes.join(", "),
            station.silent_at.map(|home| home.host + 1),
        )
    }
}

impl fmt::Display for DataPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, boot, address, .. } = self;
        write!(f, "the data plane of node-{}, boot {boot}, at {address}", host + 1)?;
        if let Some(id) = self.id { write!(f, ", id {id:016x}") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
