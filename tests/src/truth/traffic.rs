//! The stations' frames: sent, followed to where they come out, and judged.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use marengo_common::MacAddr;

use super::{
    host::Host,
    model::{HostNumber, Judgement, Model, Observer, Target},
    tag::{self, StationNumber, Tag},
};
use crate::packet::Encapsulated;

/// A frame that has not come out by then is lost.
const FLIGHT: Duration = Duration::from_millis(300);

/// How a frame leaves its host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// By the port that the stations share.
    Port,
    /// By the bridge itself, as from the host's own stack.
    Stack,
}

/// A unicast frame under way.
#[derive(Debug)]
struct Flight {
    tag: Tag,
    event: usize,
    at: Instant,
    from: Observer,
    /// The epoch of the destination that the sender must know of.
    heard: u32,
    /// Where its maps said that the frame goes.
    looked_up: Option<IpAddr>,
    /// To how many peers a flood would have gone.
    peers: usize,
    copies: Vec<IpAddr>,
    delivered: Vec<HostNumber>,
    arrived: Vec<HostNumber>,
}

/// What became of the frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frames {
    pub sent: u64,
    /// Sent to one peer by a MAC entry.
    pub directed: u64,
    /// Of those, to a peer that is gone or renumbered and may still be believed in.
    pub to_the_dead: u64,
    /// Sent to all peers: the address was a miss.
    pub flooded: u64,
    /// Of those, though the sender had heard the station from where it is.
    pub flooded_though_heard: u64,
    /// Did not leave the host.
    pub local: u64,
    /// Directed, and did not reach the stations of a living owner.
    pub lost: u64,
    /// First frames, and repeated ones.
    pub announced: u64,
    /// Nodes, but for the sender's, that heard those; out of so many that forwarded.
    pub heard: u64,
    pub could_hear: u64,
    /// Frames of a former home that came after the first one of the new home.
    pub late: u64,
    /// Of those, at nodes that had not known the former home.
    pub misled: u64,
}

/// A unicast frame that went where its station is not.
#[derive(Clone, Debug)]
pub(crate) struct Misdelivery {
    pub(crate) station: StationNumber,
    pub(crate) host: HostNumber,
    pub(crate) event: usize,
    pub(crate) text: String,
}

/// All frames under way.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    next: u32,
    flights: BTreeMap<u32, Flight>,
    /// For each station: nodes that did not know its last but one home when the last one was announced.
    ignorant: BTreeMap<StationNumber, Vec<HostNumber>>,
    pub(crate) frames: Frames,
    /// Whether the programs look at stamps.
    pub(crate) without_stamps: bool,
}

impl Traffic {
    /// A station tells everybody where it is. Its home must be the one of its latest epoch.
    pub(crate) fn announce(
        &mut self,
        hosts: &[Host<'_>],
        model: &mut Model,
        station: StationNumber,
        way: Way,
    ) {
        let epoch = model.station(station).epoch();
        let Some(home) = model.station(station).home() else { return };
        let sequence = self.number();
        let tag = Tag { source: station, destination: station, epoch, sequence };
        put(&hosts[home.host], way, &tag.announcement(address(station)));
        model.sent(station, epoch, Instant::now());
        model.hear(home.host, station, epoch, Instant::now());
        self.frames.announced += 1;
        self.drain(hosts, model);
        let others = || hosts.iter().filter(|host| host.number != home.host && host.forwards());
        self.frames.could_hear += others().count() as u64;
        self.frames.heard +=
            others().filter(|host| model.heard(host.number, station) == epoch).count() as u64;
    }

    /// Remembers which nodes do not know a station at a home that it is about to leave.
    pub(crate) fn note_ignorant(
        &mut self,
        hosts: &[Host<'_>],
        model: &Model,
        station: StationNumber,
    ) {
        let old = model.station(station).home().map(|home| home.host);
        let is_ignorant = |host: &&Host<'_>| {
            let Some(tables) = &host.tables else { return true };
            let found = tables.look_up(MacAddr(tag::mac(station)), !self.without_stamps);
            let known = found.map(|(_, peer)| peer.address(tables.settings().family));
            known.is_none() || known != old.map(|old| IpAddr::V4(hosts[old].address()))
        };
        let ignorant = hosts.iter().filter(is_ignorant).map(|host| host.number).collect();
        self.ignorant.insert(station, ignorant);
    }

    /// A frame that a station sent from its former home comes late, as if the underlay had kept it:
    /// everybody gets it behind the first one of the new home.
    pub(crate) fn late(&mut self, hosts: &[Host<'_>], model: &mut Model, station: StationNumber) {
        let epoch = model.station(station).epoch() - 1;
        let Some(old) = model.station(station).home_in(epoch) else { return };
        let host = &hosts[old.host];
        if !host.forwards() || host.boot != old.boot {
            return;
        }
        let tag = Tag { source: station, destination: station, epoch, sequence: self.number() };
        let frame = tag.announcement(address(station));
        for other in hosts.iter().filter(|other| other.forwards() && other.number != old.host) {
            host.replay(other.address(), &frame);
            self.frames.late += 1;
        }
        model.sent(station, epoch, Instant::now());
        self.drain(hosts, model);
    }

    /// One station sends a frame to another.
    pub(crate) fn send(
        &mut self,
        event: usize,
        hosts: &[Host<'_>],
        model: &mut Model,
        (from, way, source): (HostNumber, Way, StationNumber),
        destination: StationNumber,
    ) -> u32 {
        self.drain(hosts, model);
        let host = &hosts[from];
        let epoch = model.station(source).epoch();
        let tag = Tag { source, destination, epoch, sequence: self.number() };
        let tables = host.tables.as_ref();
        let looked_up = tables.and_then(|tables| {
            let found = tables.look_up(MacAddr(tag::mac(destination)), !self.without_stamps);
            Some(found?.1.address(tables.settings().family))
        });
        self.flights.insert(
            tag.sequence,
            Flight {
                tag,
                event,
                at: Instant::now(),
                from: host.observer(),
                heard: model.heard(from, destination),
                looked_up,
                peers: tables.map_or(0, super::tables::Tables::forwarding),
                copies: Vec::new(),
                delivered: Vec::new(),
                arrived: Vec::new(),
            },
        );
        put(host, way, &tag.unicast());
        model.sent(source, epoch, Instant::now());
        self.frames.sent += 1;
        self.drain(hosts, model);
        tag.sequence
    }

    /// Reads what the sockets have seen.
    pub(crate) fn drain(&mut self, hosts: &[Host<'_>], model: &mut Model) {
        for host in hosts {
            host.underlay.drain(|seen| {
                let Some(outer) = Encapsulated::parse(seen.bytes) else { return };
                let flight = Tag::of(outer.inner).and_then(|t| self.flights.get_mut(&t.sequence));
                let Some(flight) = flight else { return };
                if !seen.outgoing {
                    flight.delivered.push(host.number);
                } else if flight.from.host == host.number {
                    flight.copies.push(outer.destination);
                    // It has passed the programs on its way out.
                    let Tag { source, epoch, .. } = flight.tag;
                    model.hear(host.number, source, epoch, Instant::now());
                }
            });
            host.drain_port(|bytes| {
                let Some(tag) = Tag::of(bytes) else { return };
                if let Some(flight) = self.flights.get_mut(&tag.sequence) {
                    flight.arrived.push(host.number);
                }
                // A late frame may be the first that a node hears of a station.
                if tag.epoch > model.heard(host.number, tag.source) {
                    model.hear(host.number, tag.source, tag.epoch, Instant::now());
                } else if self.ignorant.get(&tag.source).is_some_and(|i| i.contains(&host.number)) {
                    model.mislead(host.number, tag.source, tag.epoch, Instant::now());
                    self.frames.misled += 1;
                }
            });
        }
    }

    /// Whether a frame has come to the stations of a host.
    pub(crate) fn has_arrived(&self, sequence: u32, at: HostNumber) -> bool {
        self.flights.get(&sequence).is_some_and(|flight| flight.arrived.contains(&at))
    }

    /// Judges the frames that have had their time; all with `all`.
    pub(crate) fn judge(&mut self, model: &Model, all: bool) -> Vec<Misdelivery> {
        let mut wrong = Vec::new();
        while let Some(flight) = self.flights.first_entry() {
            if !all && flight.get().at.elapsed() < FLIGHT {
                break;
            }
            let flight = flight.remove();
            wrong.extend(self.judge_flight(model, &flight));
        }
        wrong
    }

    fn judge_flight(&mut self, model: &Model, flight: &Flight) -> Option<Misdelivery> {
        let station = flight.tag.destination;
        let address = match flight.copies[..] {
            [] => {
                self.frames.local += 1;
                return None;
            }
            [address] if flight.looked_up.is_some() || flight.peers > 1 => address,
            _ => {
                self.frames.flooded += 1;
                let home = model.station(station).home();
                let lives = home.is_some_and(|home| {
                    model.plane_of(home.host).is_some_and(|p| model.planes[p].boot == home.boot)
                });
                if lives && flight.heard > 0 && flight.heard == model.station(station).epoch() {
                    self.frames.flooded_though_heard += 1;
                }
                return None;
            }
        };
        self.frames.directed += 1;
        let target = Target { address, id: None };
        match model.judge(flight.from, station, flight.heard, target, flight.at) {
            Judgement::Right => {
                let owner = model.station(station).home().map(|home| home.host);
                if owner.is_some_and(|owner| !flight.arrived.contains(&owner)) {
                    self.frames.lost += 1;
                }
                None
            }
            Judgement::Late => {
                self.frames.to_the_dead += 1;
                None
            }
            Judgement::Wrong(reason) => Some(Misdelivery {
                station,
                host: flight.from.host,
                event: flight.event,
                text: format!(
                    "frame {} of node-{} for station {station} went to {address} alone: {reason}; \
                     delivered to the hosts {:?}; the maps of the sender said {:?}",
                    flight.tag.sequence,
                    flight.from.host + 1,
                    flight.delivered.iter().map(|host| host + 1).collect::<Vec<_>>(),
                    flight.looked_up,
                ),
            }),
        }
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }
}

/// The address that a station tells of in ARP.
pub(crate) fn address(station: StationNumber) -> Ipv4Addr {
    let [high, low] = station.to_be_bytes();
    Ipv4Addr::new(10, 42, high, low)
}

fn put(host: &Host<'_>, way: Way, frame: &[u8]) {
    // A device that is down takes nothing: then nobody hears of it, and nobody need.
    let _taken = match way {
        Way::Port => host.send(frame),
        Way::Stack => host.send_from_stack(frame),
    };
}
