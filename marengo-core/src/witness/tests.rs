use super::*;
use crate::{
    identity::{Generation, Identity},
    members::Peer,
};

const STEP: Duration = Duration::from_millis(50);
const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 100));

#[test]
fn nobody_is_asked_while_gossip_vouches_for_all() {
    let mut bench = Bench::new(&[Standing::Alive, Standing::Alive]);

    assert_eq!(bench.run(Duration::from_mins(1)), 0);
    assert_eq!(bench.witness.poll_timeout(), None);
}

#[test]
fn a_lost_peer_that_is_heard_is_held_for_as_long_as_it_is() {
    let mut bench = Bench::new(&[Standing::Alive, Standing::Lost]);
    bench.answers = true;

    assert!(bench.run(Duration::from_mins(5)) < 5 * 60 * 3, "two questions a second, or so");
    assert!(bench.kept(2));
    assert_eq!(bench.witness.held(2, bench.now).unwrap().0, Reason::Lost);
    assert_eq!((bench.witness.held_count(), bench.witness.holds()), (1, 1));
    assert!(matches!(bench.events()[..], [WitnessEvent::Held { .. }]), "told once");

    bench.answers = false;
    bench.run(Duration::from_millis(1700));
    assert!(!bench.kept(2));
    assert!(matches!(bench.events()[..], [WitnessEvent::Silent { held: Some(_), .. }]));
}

#[test]
fn many_that_are_held_are_asked_together() {
    let mut bench = Bench::new(&[Standing::Alive; 90]);
    bench.answers = true;
    for lost in 0..90 {
        bench.standings[lost] = Standing::Lost;
        bench.step();
    }
    bench.run(Duration::from_secs(5));

    let looks = (0..200).filter(|_| bench.step() > 0).count();

    assert_eq!(bench.witness.held_count(), 90);
    // In ten seconds, each is asked twenty times.
    assert!((20..=60).contains(&looks), "{looks} looks");
}

#[test]
fn a_lost_peer_that_was_silent_while_suspected_goes_at_once() {
    let mut bench = Bench::new(&[Standing::Suspect]);
    bench.run(Duration::from_secs(2));
    assert!(bench.slots.get(1).is_some());

    bench.standings = vec![Standing::Lost];
    bench.step();

    assert!(!bench.kept(1));
}

#[test]
fn a_lost_peer_that_was_never_asked_is_asked_first() {
    let mut bench = Bench::new(&[Standing::Lost]);

    bench.run(Duration::from_secs(1));
    assert!(bench.kept(1));
    assert_eq!(bench.witness.held_count(), 0, "kept for want of knowledge, not held");
    bench.run(Duration::from_millis(600));

    assert!(!bench.kept(1));
}

#[test]
fn no_slot_stays_at_this_nodes_own_address() {
    let mut bench = Bench::new(&[Standing::Lost; 100]);
    bench.answers = true;

    bench.step();

    assert!(bench.kept(99));
    assert!(!bench.kept(100), "what is sent there would come back as that peer's");
}

#[test]
fn a_daemon_that_was_stopped_asks_again_before_it_takes_anybody_out() {
    let mut bench = Bench::new(&[Standing::Lost]);
    bench.answers = true;
    bench.run(Duration::from_secs(10));

    // SIGSTOP: nobody is asked, so nobody answers.
    bench.now += Duration::from_mins(1);
    bench.answers = false;
    bench.step();
    assert!(bench.kept(1));
    bench.answers = true;
    bench.run(Duration::from_secs(10));
    assert!(bench.kept(1));

    bench.now += Duration::from_mins(1);
    bench.answers = false;
    bench.run(Duration::from_millis(1700));
    assert!(!bench.kept(1), "and whoever is silent still goes");
}

#[test]
fn questions_before_a_daemon_was_stopped_make_no_silence_after_it() {
    let mut bench = Bench::new(&[Standing::Lost]);
    bench.answers = true;
    bench.run(Duration::from_secs(10));
    bench.answers = false;
    let enough = WitnessConfig::DEFAULT.questions();
    while bench.witness.doubts[&1].unanswered < enough {
        bench.step();
    }
    assert!(bench.kept(1), "not for long enough");

    // The path came back meanwhile.
    bench.now += Duration::from_secs(10);
    bench.answers = true;
    bench.run(Duration::from_secs(10));

    let events = bench.events();
    assert!(matches!(events[..], [WitnessEvent::Held { .. }]), "{events:?}");
}

#[test]
fn a_peer_that_is_back_soon_is_taken_out_if_its_data_plane_is_silent() {
    let mut bench = Bench::new(&[Standing::Restarting]);
    bench.answers = true;
    bench.run(Duration::from_secs(30));
    assert!(bench.kept(1));
    assert!(bench.events().is_empty(), "it was announced");

    bench.answers = false;
    bench.run(Duration::from_secs(2));
    assert!(!bench.kept(1), "it lost power meanwhile");
}

#[test]
fn questions_that_could_not_be_sent_make_no_silence() {
    let mut bench = Bench::new(&[Standing::Lost]);
    for _ in 0..200 {
        bench.step();
        bench.witness.not_asked(1);
    }
    assert!(bench.kept(1));
}

#[test]
fn a_stranger_at_its_address_is_no_witness() {
    let mut bench = Bench::new(&[Standing::Lost]);
    bench.answers = true;
    bench.is_stranger = true;

    bench.run(Duration::from_millis(1700));

    assert!(!bench.kept(1));
}

#[test]
fn gossip_that_comes_back_ends_the_hold() {
    let mut bench = Bench::new(&[Standing::Lost]);
    bench.answers = true;
    bench.run(Duration::from_secs(10));
    bench.events();

    bench.standings = vec![Standing::Alive];
    bench.run(Duration::from_secs(10));

    assert!(matches!(bench.events()[..], [WitnessEvent::Released { .. }]));
    assert!(!bench.witness.is_doubted(1));
}

#[test]
fn who_left_is_not_held_however_loud_its_data_plane_is() {
    let mut bench = Bench::new(&[Standing::Alive]);
    bench.answers = true;
    bench.run(Duration::from_secs(1));

    bench.left = true;
    bench.step();

    assert!(!bench.kept(1));
    assert_eq!(bench.witness.poll_timeout(), None);
}

#[test]
fn slots_that_gossip_has_not_told_of_wait_until_it_speaks() {
    let mut bench = Bench::new(&[Standing::Alive]);
    bench.standings.clear();
    bench.speaks = false;

    assert_eq!(bench.run(Duration::from_mins(1)), 0);
    assert!(bench.kept(1));
    bench.speaks = true;
    bench.answers = true;
    bench.run(Duration::from_mins(1));
    assert_eq!(bench.witness.held(1, bench.now).unwrap().0, Reason::Unknown);
    bench.answers = false;
    bench.run(Duration::from_secs(2));

    assert!(!bench.kept(1));
}

#[test]
fn without_the_second_witness_gossips_word_is_enough() {
    let mut bench = Bench::new(&[Standing::Lost]);
    bench.witness.config.without = Control::Witness.into();
    bench.answers = true;

    bench.step();

    assert!(!bench.kept(1));
}

/// Peers 1, 2, ... in slots 1, 2, ..., and what gossip thinks of them.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the test")]
struct Bench {
    witness: Witness,
    slots: Slots,
    standings: Vec<Standing>,
    left: bool,
    speaks: bool,
    answers: bool,
    is_stranger: bool,
    answered: Option<Instant>,
    now: Instant,
}

impl Bench {
    fn new(standings: &[Standing]) -> Self {
        let mut slots = Slots::new(128);
        let all: Vec<Identity> = (1..=standings.len()).map(identity).collect();
        slots.assign(&all, &BTreeSet::new());
        #[expect(clippy::disallowed_methods, reason = "a test may start anywhere")]
        let now = Instant::now();
        Self {
            witness: Witness::new(WitnessConfig::DEFAULT),
            slots,
            standings: standings.to_vec(),
            left: false,
            speaks: true,
            answers: false,
            is_stranger: false,
            answered: None,
            now,
        }
    }

    /// Runs for a while; returns how many questions were asked.
    fn run(&mut self, time: Duration) -> usize {
        let end = self.now + time;
        let mut asked = 0;
        while self.now < end {
            asked += self.step();
        }
        asked
    }

    fn step(&mut self) -> usize {
        self.now += STEP;
        let peers = self.standings.iter().zip(1..).filter(|_| !self.left);
        let peers: PeerTable = peers
            .map(|(standing, n)| Peer { identity: identity(n), standing: *standing })
            .collect();
        let left = self.left.then(|| identity(1).data_plane);
        let peers = peers.with_left(left.into_iter());
        let ago = self.answered.map(|at| self.now.duration_since(at));
        let sighting = Sighting { ago, is_stranger: self.is_stranger };
        self.witness.judge(self.now, &peers, &self.slots, OWN, self.speaks, |_| sighting);
        let asked = self.witness.poll_ask(self.now).len();
        if asked > 0 && self.answers {
            self.answered = Some(self.now);
        }
        asked
    }

    fn kept(&self, index: PeerIndex) -> bool {
        self.witness.keep.contains(&index)
    }

    fn events(&mut self) -> Vec<WitnessEvent> {
        std::iter::from_fn(|| self.witness.poll_event()).collect()
    }
}

fn identity(n: usize) -> Identity {
    let n = u8::try_from(n).unwrap();
    let ip = IpAddr::from([192, 0, 2, n]);
    let name = NodeName::new(&format!("n{n}")).unwrap();
    let data_plane = DataPlaneId::new(u64::from(n)).unwrap();
    Identity::new(name, (ip, 1).into(), ip, (ip, 2).into(), Generation(1), data_plane).unwrap()
}
