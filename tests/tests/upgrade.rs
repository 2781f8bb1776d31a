//! The next version takes over what the former one left running, whatever its maps look like.

#![expect(clippy::unwrap_used, reason = "a test ends with a panic")]

use std::collections::BTreeMap;

use aya::maps::{Array, Map, MapData};
use marengo_common::{MapName, Settings};
use marengo_tests::{
    Mesh, Probe,
    bpf::{self, Maps},
    require_root,
    requirements::runs,
};

#[test]
fn maps_of_another_size_are_carried_over_without_a_lost_packet() {
    require_root!();
    let mesh = Mesh::running(3);
    let (one, two) = (mesh.node(1), mesh.node(2));
    assert!(one.namespace.pings(&two.overlay().to_string(), 1));
    let slots = Maps::open(one).content();
    let there = Probe::start(&one.namespace, &two.namespace, two.overlay());
    let back = Probe::start(&two.namespace, &one.namespace, one.overlay());

    for round in 0..runs(4) {
        let before = bpf::id("map", &one.pins().join("peers"));
        one.kill();
        let size = if round % 2 == 0 { "2000" } else { "1000" };
        one.launch(&[], &["-j", &two.seed(), "--max-peers", size]);
        one.wait_answers();
        mesh.wait_converged();
        assert_ne!(bpf::id("map", &one.pins().join("peers")), before, "they are new ones");
        assert_eq!(Maps::open(one).content(), slots, "and hold the same");
    }
    let left: BTreeMap<_, _> = std::fs::read_dir(one.pins())
        .unwrap()
        .map(|entry| (entry.unwrap().file_name(), ()))
        .filter(|(name, ())| name.to_string_lossy().starts_with("next-"))
        .collect();
    assert_eq!(left, BTreeMap::new());

    for outcome in [there.finish(), back.finish()] {
        assert_eq!((outcome.lost, outcome.duplicates), (0, 0), "{outcome:?}");
    }
}

#[test]
fn maps_of_a_version_that_is_not_known_are_refused_with_a_sentence_and_left() {
    require_root!();
    let mesh = Mesh::running(2);
    let one = mesh.node(1);
    one.kill();
    let settings = MapData::from_pin(one.pins().join(MapName::SETTINGS.pin)).unwrap();
    let mut settings: Array<_, Settings> =
        Map::from_map_data(settings).unwrap().try_into().unwrap();
    let own = settings.get(&0, 0).unwrap();
    settings.set(0, Settings { abi_version: 99, ..own }, 0).unwrap();
    let before = bpf::id("map", &one.pins().join("peers"));

    let ended = one.run_to_end(&[], &[]);

    assert_eq!(ended.code, Some(11), "{}", ended.stderr);
    assert!(ended.complaint().contains("version 99"), "{}", ended.complaint());
    assert!(ended.complaint().contains("marengo remove"), "{}", ended.complaint());
    assert_eq!(bpf::id("map", &one.pins().join("peers")), before);
    settings.set(0, own, 0).unwrap();
    one.start(&[]);
    mesh.wait_converged();
}
