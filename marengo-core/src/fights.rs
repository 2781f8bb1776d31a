//! What another hand keeps undoing: when to put it right again, and when to speak of a fight.
//!
//! A change by another hand is put right at once, and so are some in a row. From then on it is a
//! fight: what is fought over is put right after a wait that doubles, alone; all else goes on as if
//! nothing were. The fight is over when the object has stayed as it should be for half a minute.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use crate::op::{Hook, Link, Op};

/// What two hands can fight over.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Object {
    /// That there is a bridge.
    Bridge,
    /// That there is a device, of our kind.
    Device,
    /// The name of a link.
    Name(Link),
    /// The device's alias and address mode.
    Alias,
    /// The device's place in the bridge.
    Port,
    /// That a link is up.
    Up(Link),
    /// The MTU of a link.
    Mtu(Link),
    /// The program at a hook.
    Hook(Hook),
    /// The programs' settings.
    Settings,
    /// The slots.
    Peers,
    /// The tunnel addresses.
    Vteps,
    /// The flood list.
    Flood,
}

impl Object {
    /// What an operation puts right.
    pub const fn of(op: &Op) -> Option<Self> {
        Some(match op {
            Op::CreateBridge { .. } => Self::Bridge,
            Op::CreateDevice { .. } | Op::DeleteDevice => Self::Device,
            Op::FinishDevice => Self::Alias,
            Op::Rename { link, .. } => Self::Name(*link),
            Op::SetMtu { link, .. } => Self::Mtu(*link),
            Op::Enslave => Self::Port,
            Op::SetUp(link) => Self::Up(*link),
            Op::WriteSettings(_) => Self::Settings,
            Op::Attach(hook) => Self::Hook(*hook),
            Op::PutPeer(..) | Op::DeletePeer(_) => Self::Peers,
            Op::PutVtep(..) | Op::DeleteVtep(_) => Self::Vteps,
            Op::PutFlood(..) | Op::DeleteFlood(_) => Self::Flood,
            Op::SetDeviceDown | Op::Detach(_) | Op::RemovePins => return None,
        })
    }

    /// True for what is in a map.
    pub const fn is_in_a_map(self) -> bool {
        matches!(self, Self::Settings | Self::Peers | Self::Vteps | Self::Flood)
    }

    /// What goes when `self` goes, and comes back with it: no fight of its own.
    const fn takes_along(self, other: Self) -> bool {
        match self {
            Self::Bridge => matches!(
                other,
                Self::Up(Link::Bridge)
                    | Self::Mtu(Link::Bridge)
                    | Self::Hook(Hook::BridgeEgress)
                    | Self::Port
            ),
            Self::Device => matches!(
                other,
                Self::Alias
                    | Self::Up(Link::Device)
                    | Self::Mtu(Link::Device)
                    | Self::Hook(Hook::DeviceIngress | Hook::DeviceEgress)
                    | Self::Port
                    | Self::Settings
            ),
            Self::Name(_)
            | Self::Alias
            | Self::Port
            | Self::Up(_)
            | Self::Mtu(_)
            | Self::Hook(_)
            | Self::Settings
            | Self::Peers
            | Self::Vteps
            | Self::Flood => false,
        }
    }

    /// The longest wait before it is put right: a map entry costs one system call, a link an
    /// interruption of everybody's traffic.
    const fn longest_wait(self) -> Duration {
        if self.is_in_a_map() { LONGEST_WAIT_MAP } else { LONGEST_WAIT_LINK }
    }

    /// Each repair weighs as much as this time pays off: a link that is undone more often than once a
    /// second is fought over. What is in a map is looked at less often than that.
    const fn weight(self) -> Duration {
        if self.is_in_a_map() { WEIGHT_MAP } else { WEIGHT_LINK }
    }

    /// Never waited for: without the ingress program the door is open.
    const fn is_the_lock(self) -> bool {
        matches!(self, Self::Hook(Hook::DeviceIngress))
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge => f.pad("bridge"),
            Self::Device => f.pad("device"),
            Self::Name(link) => write!(f, "name of the {link}"),
            Self::Alias => f.pad("alias of the device"),
            Self::Port => f.pad("device as a port of the bridge"),
            Self::Up(link) => write!(f, "{link} up"),
            Self::Mtu(link) => write!(f, "mtu of the {link}"),
            Self::Hook(hook) => write!(f, "program at {hook}"),
            Self::Settings => f.pad("map settings"),
            Self::Peers => f.pad("map peers"),
            Self::Vteps => f.pad("map vteps"),
            Self::Flood => f.pad("map flood"),
        }
    }
}

const WEIGHT_LINK: Duration = Duration::from_secs(1);
const WEIGHT_MAP: Duration = Duration::from_secs(3);
/// From so many unpaid repairs on it is a fight.
const PATIENCE: u32 = 8;
/// The first wait in a fight.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT_LINK: Duration = Duration::from_secs(5);
const LONGEST_WAIT_MAP: Duration = Duration::from_secs(1);
/// A fight ends when nothing was found wrong for so long.
const PEACE: Duration = Duration::from_secs(30);

/// A fight, as one tells of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fight {
    /// What it is over.
    pub object: Object,
    /// When the first of these repairs was.
    pub since: Instant,
    /// How often the object was put right.
    pub repairs: u64,
}

/// What becomes of a plan.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Verdict {
    /// What is to be done now.
    pub ops: Vec<Op>,
    /// What else is wrong, and waited with.
    pub held: BTreeSet<Object>,
    /// When the first of those is to be put right.
    pub retry: Option<Instant>,
    /// What another hand undid and is put right now.
    pub repaired: BTreeSet<Object>,
    /// Fights that begin here.
    pub began: Vec<Object>,
}

/// The repairs of the recent past.
#[derive(Clone, Debug)]
pub struct Fights {
    records: BTreeMap<Object, Record>,
    /// Whether to wait at all.
    back_off: bool,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    /// What is not paid off, as of `at`.
    debt: Duration,
    at: Instant,
    since: Instant,
    repairs: u64,
    last_wrong: Instant,
    fight: Option<Wait>,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    until: Instant,
    next: Duration,
}

impl Fights {
    /// None yet. Without `back_off`, fights are noted, and nothing waits.
    pub const fn new(back_off: bool) -> Self {
        Self { records: BTreeMap::new(), back_off }
    }

    /// Judges a plan made at `now`: what of it is done and what waits.
    ///
    /// `repairing` says that nothing else was wanted than before: what the plan changes is another
    /// hand's doing. In other rounds nothing is counted, and map entries never wait: they may be a
    /// peer's that has just come.
    pub fn judge(&mut self, now: Instant, ops: Vec<Op>, repairing: bool) -> Verdict {
        let objects: BTreeSet<Object> = ops.iter().filter_map(Object::of).collect();
        let root = |object: Object| {
            let roots = [Object::Bridge, Object::Device];
            let taken = |root: &Object| objects.contains(root) && root.takes_along(object);
            roots.into_iter().find(taken).unwrap_or(object)
        };
        let mut verdict = Verdict::default();
        let mut waiting = BTreeSet::new();
        for object in objects.iter().copied().filter(|object| root(*object) == *object) {
            match self.look(now, object, repairing) {
                Look::Now { began } => {
                    if repairing {
                        verdict.repaired.insert(object);
                    }
                    if began {
                        verdict.began.push(object);
                    }
                }
                Look::Later(until) => {
                    waiting.insert(object);
                    verdict.retry = Some(verdict.retry.map_or(until, |retry| retry.min(until)));
                }
            }
        }
        // A device is made as a port of the bridge.
        if waiting.contains(&Object::Bridge) && objects.contains(&Object::Device) {
            waiting.insert(Object::Device);
            verdict.repaired.remove(&Object::Device);
        }
        let waits = |op: &Op| Object::of(op).is_some_and(|object| waiting.contains(&root(object)));
        verdict.ops = ops.into_iter().filter(|op| !waits(op)).collect();
        verdict.held = waiting;
        verdict
    }

    fn look(&mut self, now: Instant, object: Object, repairing: bool) -> Look {
        if !repairing {
            return match self.records.get(&object).and_then(|record| record.fight) {
                Some(wait)
                    if wait.until > now && !object.is_in_a_map() && !object.is_the_lock() =>
                {
                    Look::Later(wait.until)
                }
                _ => Look::Now { began: false },
            };
        }
        let fresh = Record {
            debt: Duration::ZERO,
            at: now,
            since: now,
            repairs: 0,
            last_wrong: now,
            fight: None,
        };
        let record = self.records.entry(object).or_insert(fresh);
        record.last_wrong = now;
        let wait = record.fight.filter(|wait| wait.until > now);
        if let Some(wait) = wait.filter(|_| self.back_off && !object.is_the_lock()) {
            return Look::Later(wait.until);
        }
        record.debt = record.debt.saturating_sub(now.saturating_duration_since(record.at));
        if record.debt.is_zero() && record.fight.is_none() {
            record.since = now;
            record.repairs = 0;
        }
        record.debt += object.weight();
        record.at = now;
        record.repairs += 1;
        match &mut record.fight {
            Some(wait) => {
                wait.until = now + wait.next;
                wait.next = (wait.next * 2).min(object.longest_wait());
                Look::Now { began: false }
            }
            None if record.debt > object.weight() * PATIENCE => {
                record.fight = Some(Wait { until: now + FIRST_WAIT, next: FIRST_WAIT * 2 });
                Look::Now { began: true }
            }
            None => Look::Now { began: false },
        }
    }

    /// Takes out and returns the fights that are over at `now`.
    pub fn ended(&mut self, now: Instant) -> Vec<Fight> {
        let quiet = |record: &Record| now.saturating_duration_since(record.last_wrong) >= PEACE;
        let over: Vec<Fight> = self.fights().filter(|f| quiet(&self.records[&f.object])).collect();
        self.records.retain(|_, record| !quiet(record));
        over
    }

    /// The fights that are on.
    pub fn fights(&self) -> impl Iterator<Item = Fight> {
        self.records.iter().filter(|(_, record)| record.fight.is_some()).map(|(object, record)| {
            Fight { object: *object, since: record.since, repairs: record.repairs }
        })
    }
}

enum Look {
    Now { began: bool },
    Later(Instant),
}

#[cfg(test)]
mod tests {
    use marengo_common::{FloodChunk, Settings, Vni};

    use super::*;

    #[test]
    fn single_changes_are_put_right_at_once_however_many_there_are_in_a_day() {
        let (mut fights, mut now) = start();
        for _ in 0..1000 {
            let verdict = fights.judge(now, device(), true);
            assert_eq!((verdict.ops, verdict.held.len()), (device(), 0));
            assert_eq!(verdict.repaired, BTreeSet::from([Object::Device]));
            now += Duration::from_secs(4);
        }
        assert_eq!(fights.fights().count(), 0);
    }

    #[test]
    fn what_is_undone_again_and_again_is_a_fight_told_once_and_waited_for() {
        let (mut fights, start) = start();
        let mut repairs = Vec::new();
        let mut began = 0;
        // Ten times a second for a minute, as a script does it.
        for tick in 0..600 {
            let now = start + Duration::from_millis(100) * tick;
            let verdict = fights.judge(now, vec![Op::Enslave], true);
            began += verdict.began.len();
            if verdict.ops.is_empty() {
                assert_eq!(verdict.held, BTreeSet::from([Object::Port]));
                assert!(verdict.retry > Some(now));
            } else {
                repairs.push(now);
            }
        }
        assert_eq!(began, 1);
        assert!((18..30).contains(&repairs.len()), "{} repairs in a minute", repairs.len());
        let last = repairs[repairs.len() - 1] - repairs[repairs.len() - 2];
        assert!(last >= LONGEST_WAIT_LINK, "{last:?}");
        let fight = fights.fights().next().unwrap();
        assert_eq!((fight.object, fight.since), (Object::Port, start));
        assert_eq!(fight.repairs, repairs.len() as u64);
    }

    #[test]
    fn map_entries_are_put_right_once_a_second_even_in_a_fight() {
        let (mut fights, start) = start();
        let repairs = (0..600)
            .filter(|tick| {
                let now = start + Duration::from_millis(100) * *tick;
                !fights.judge(now, flood(), true).ops.is_empty()
            })
            .count();
        assert!((60..80).contains(&repairs), "{repairs} repairs in a minute");
    }

    #[test]
    fn all_else_goes_on_beside_a_fight() {
        let (mut fights, now) = start();
        let now = fight(&mut fights, now, &[Op::Enslave]);

        let verdict = fights.judge(now, vec![Op::SetUp(Link::Bridge), Op::Enslave], true);

        assert_eq!(verdict.ops, [Op::SetUp(Link::Bridge)]);
        assert_eq!(verdict.repaired, BTreeSet::from([Object::Up(Link::Bridge)]));
    }

    #[test]
    fn map_entries_that_are_newly_wanted_do_not_wait() {
        let (mut fights, now) = start();
        let now = fight(&mut fights, now, &flood());
        assert_eq!(fights.judge(now, flood(), true).ops, []);

        assert_eq!(fights.judge(now, flood(), false).ops, flood());
    }

    #[test]
    fn links_wait_whatever_else_is_wanted() {
        let (mut fights, now) = start();
        let now = fight(&mut fights, now, &device());

        let verdict = fights.judge(now, [device(), flood()].concat(), false);

        assert_eq!(verdict.ops, flood(), "the device's programs and settings wait with it");
        assert!(verdict.retry.is_some());
    }

    #[test]
    fn the_lock_on_the_door_is_never_waited_for() {
        let (mut fights, now) = start();
        let lock = vec![Op::Attach(Hook::DeviceIngress)];
        let now = fight(&mut fights, now, &lock);

        let verdict = fights.judge(now, lock.clone(), true);

        assert_eq!(verdict.ops, lock);
        assert_eq!(fights.fights().count(), 1, "it is told all the same");
    }

    #[test]
    fn without_a_bridge_no_device_is_made() {
        let (mut fights, now) = start();
        let bridge = vec![Op::CreateBridge { mtu: 1450 }, Op::SetUp(Link::Bridge)];
        let now = fight(&mut fights, now, &bridge);

        let verdict = fights.judge(now, [bridge, device()].concat(), true);

        assert_eq!(verdict.ops, []);
        assert_eq!(verdict.repaired, BTreeSet::new());
    }

    #[test]
    fn a_fight_is_over_after_half_a_minute_of_peace() {
        let (mut fights, now) = start();
        let now = fight(&mut fights, now, &[Op::Enslave]);
        assert_eq!(fights.ended(now + Duration::from_secs(29)), []);

        let over = fights.ended(now + PEACE);

        assert_eq!(over.len(), 1);
        assert_eq!(over[0].object, Object::Port);
        assert_eq!(fights.fights().count(), 0);
        assert_eq!(fights.judge(now + PEACE, vec![Op::Enslave], true).ops, [Op::Enslave]);
    }

    #[test]
    fn without_back_off_nothing_waits() {
        let (_, start) = start();
        let mut fights = Fights::new(false);
        for tick in 0..600 {
            let now = start + Duration::from_millis(100) * tick;
            assert_eq!(fights.judge(now, vec![Op::Enslave], true).ops, [Op::Enslave]);
        }
        assert_eq!(fights.fights().count(), 1);
    }

    /// Undoes until it is a fight, and returns a moment at which it is waited.
    fn fight(fights: &mut Fights, mut now: Instant, ops: &[Op]) -> Instant {
        loop {
            now += Duration::from_millis(10);
            if !fights.judge(now, ops.to_vec(), true).began.is_empty() {
                return now + Duration::from_millis(1);
            }
        }
    }

    fn device() -> Vec<Op> {
        vec![
            Op::CreateDevice { port: 4789, mtu: 1450 },
            Op::WriteSettings(Settings::new(Vni::new(1).unwrap(), [192, 0, 2, 1].into(), 1, 0, 1)),
            Op::Attach(Hook::DeviceIngress),
            Op::Attach(Hook::DeviceEgress),
            Op::SetUp(Link::Device),
        ]
    }

    fn flood() -> Vec<Op> {
        vec![Op::PutFlood(0, FloodChunk { peers: [1; marengo_common::FLOOD_CHUNK] })]
    }

    fn start() -> (Fights, Instant) {
        #[expect(clippy::disallowed_methods, reason = "a test may start anywhere")]
        let now = Instant::now();
        (Fights::new(true), now)
    }
}
