use super::*;

const BOUND: Duration = Duration::from_secs(6);

#[test]
fn the_old_home_is_right_until_the_first_frame_from_the_new_one_arrives() {
    let (mut model, start) = model();
    model.settle(0, home(0), start);
    model.hear(2, 0, 1, start);
    model.settle(0, home(1), start);

    assert_eq!(judge(&model, 2, at(0), start), Judgement::Right);
    assert_eq!(judge(&model, 2, at(1), start), Judgement::Right);
    model.hear(2, 0, 2, start);
    assert!(matches!(judge(&model, 2, at(0), start), Judgement::Wrong(_)));
    assert_eq!(judge(&model, 2, at(1), start), Judgement::Right);
}

#[test]
fn the_dead_may_be_believed_in_until_the_bound_unless_somebody_else_was_heard() {
    let (mut model, start) = model();
    model.settle(0, home(0), start);
    model.hear(2, 0, 1, start);
    model.power_off(0, start);

    assert_eq!(judge(&model, 2, at(0), start + BOUND), Judgement::Late);
    let after = start + BOUND + Duration::from_millis(1);
    assert!(matches!(judge(&model, 2, at(0), after), Judgement::Wrong(_)));
    model.settle(0, home(1), start);
    model.hear(2, 0, 2, start);
    assert!(matches!(judge(&model, 2, at(0), start), Judgement::Wrong(_)));
}

#[test]
fn a_new_machine_at_a_dead_ones_address_does_not_own_its_stations() {
    let (mut model, start) = model();
    model.settle(0, home(0), start);
    model.power_off(0, start);
    let mut next = model.planes[0].clone();
    (next.boot, next.id, next.died) = (2, Some(99), None);
    model.planes.push(next);

    let mut target = at(0);
    target.id = Some(99);
    assert!(matches!(judge(&model, 2, target, start), Judgement::Wrong(_)));
    assert_eq!(judge(&model, 2, at(0), start), Judgement::Late);
}

#[test]
fn a_frame_that_a_router_kept_is_believed_until_the_station_is_heard_again() {
    let (mut model, ms) = moved();
    let old = at(0).address;

    assert!(!model.was_kept(2, 0, old, ms(900)), "it was at its address all the time");
    model.renumber(2, Ipv4Addr::new(198, 51, 100, 2), ms(800), ms(810));
    assert!(!model.was_kept(2, 0, old, ms(700)), "it came before");
    assert!(!model.was_kept(2, 0, at(2).address, ms(900)), "nobody sent from there");
    let after = ms(0) + UNDERLAY_KEEPS + Duration::from_millis(1);
    assert!(!model.was_kept(2, 0, old, after), "no router keeps anything for so long");
    assert!(matches!(judge(&model, 2, at(0), ms(900)), Judgement::Wrong(_)));

    assert!(model.was_kept(2, 0, old, ms(900)));
    assert_eq!(judge(&model, 2, at(0), ms(0) + BOUND * 2), Judgement::Late);
    model.settle(0, home(1), ms(0) + BOUND * 2);
    model.hear(2, 0, 3, ms(0) + BOUND * 2);
    assert!(matches!(judge(&model, 2, at(0), ms(0) + BOUND * 2), Judgement::Wrong(_)));
}

#[test]
fn a_frame_that_a_router_kept_for_less_than_the_hold_is_to_be_refused() {
    let (mut model, ms) = moved();
    model.renumber(2, Ipv4Addr::new(198, 51, 100, 2), ms(150), ms(160));

    assert!(!model.was_kept(2, 0, at(0).address, ms(200)));
}

#[test]
fn nobody_blames_a_node_whose_daemon_rests_for_a_peer_that_died_meanwhile() {
    let (mut model, start) = model();
    model.settle(0, home(0), start);
    model.power_off(0, start);
    let later = start + BOUND * 10;

    let resting = Observer { host: 2, tended_since: None, adopted: false };
    assert_eq!(model.judge(resting, 0, 1, at(0), later), Judgement::Late);
    let awake = Observer { host: 2, tended_since: Some(later), adopted: false };
    assert_eq!(model.judge(awake, 0, 1, at(0), later + BOUND), Judgement::Late);
    assert_eq!(model.judge_slot(awake, at(0), later + BOUND), Judgement::Late);
}

#[test]
fn a_quick_return_counts_when_it_is_repeated() {
    let (mut model, start) = model();
    model.settle(0, home(0), start);
    model.hear(2, 0, 1, start);
    model.settle(0, home(1), start);
    model.hear(2, 0, 2, start);
    model.settle(0, home(0), start);

    model.hear(2, 0, 3, start + MOVE_HOLD / 2);
    assert_eq!(model.heard(2, 0), 2);
    model.hear(2, 0, 3, start + MOVE_HOLD);
    assert_eq!(model.heard(2, 0), 3);
}

/// A station that has moved from node 0 to 1 after 100 ms, as node 2 has heard; and the time.
fn moved() -> (Model, impl Fn(u64) -> Instant) {
    let (mut model, start) = model();
    let ms = move |ms| start + Duration::from_millis(ms);
    model.settle(0, home(0), start);
    model.hear(2, 0, 1, start);
    model.settle(0, home(1), ms(100));
    model.hear(2, 0, 2, ms(100));
    (model, ms)
}

fn model() -> (Model, Instant) {
    let start = Instant::now();
    let mut model = Model::new(3, 1, BOUND);
    model.planes = (0..3)
        .map(|host| DataPlane {
            host,
            boot: 1,
            id: Some(host as u64 + 1),
            address: address(host),
            took: start,
            former: Vec::new(),
            died: None,
        })
        .collect();
    (model, start)
}

fn home(host: HostNumber) -> Home {
    Home { host, boot: 1 }
}

fn address(host: HostNumber) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, u8::try_from(host).unwrap())
}

fn at(host: HostNumber) -> Target {
    Target { address: IpAddr::V4(address(host)), id: None }
}

fn judge(model: &Model, host: HostNumber, target: Target, now: Instant) -> Judgement {
    // It was awake all the time.
    let start = now.checked_sub(BOUND * 20).unwrap();
    let observer = Observer { host, tended_since: Some(start), adopted: false };
    model.judge(observer, 0, model.heard(host, 0), target, now)
}
