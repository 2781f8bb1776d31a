//! The next version takes over what the former one left running, whatever its maps look like.

use std::collections::BTreeMap;

use aya::maps::{Array, Map, MapData};
use marengo_common::{MapName, Settings};
use marengo_tests::{
    Mesh, Node, Probe,
    bpf::{self, Maps},
    exec, require_root,
    requirements::runs,
};
use serde_json::Value;

#[test]
fn maps_of_another_size_are_carried_over_without_a_lost_packet() {
    require_root!();
    for attach in ["tcx", "clsact"] {
        let mesh = Mesh::new(3);
        mesh.start_all(&["--attach", attach]);
        let (one, two) = (mesh.node(1), mesh.node(2));
        assert!(one.namespace.pings(&two.overlay().to_string(), 1));
        let slots = Maps::open(one).content();
        let stations = stations(one);
        assert!(!stations.is_empty());
        let there = Probe::start(&one.namespace, &two.namespace, two.overlay());
        let back = Probe::start(&two.namespace, &one.namespace, one.overlay());

        for round in 0..runs(2) {
            let before = bpf::id("map", &one.pins().join("peers"));
            one.kill();
            let size = if round % 2 == 0 { "2000" } else { "1000" };
            let args = ["-j", &two.seed(), "--max-peers", size, "--attach", attach];
            one.launch(&[], &args);
            one.wait_answers();
            mesh.wait_converged();
            assert_ne!(bpf::id("map", &one.pins().join("peers")), before, "they are new ones");
            assert_eq!(Maps::open(one).content(), slots, "and hold the same");
            for (mac, peer) in &stations {
                assert_eq!(self::stations(one).get(mac), Some(peer), "what was learnt stays");
            }
        }
        let left = std::fs::read_dir(one.pins())
            .unwrap()
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                name.to_string_lossy().starts_with("next-")
            })
            .count();
        assert_eq!(left, 0);

        for outcome in [there.finish(), back.finish()] {
            assert_eq!((outcome.lost, outcome.duplicates), (0, 0), "{attach}: {outcome:?}");
        }
    }
}

/// What is known of stations: MAC address, and peer and generation behind which it is.
fn stations(node: &Node) -> BTreeMap<String, (Value, Value)> {
    let entries = node.bpftool_dump("macs");
    entries
        .iter()
        .map(|entry| {
            let value = &entry["value"];
            let place = (value["peer"].clone(), value["generation"].clone());
            (entry["key"]["mac"].to_string(), place)
        })
        .collect()
}

/// Pin, name, kind, bytes of a key and of a value, room, and an entry.
type Shape<'a> = (&'a str, &'a str, &'a str, usize, usize, &'a str, Option<(&'a [u8], &'a [u8])>);

/// The maps of layout 1, as 0.1 made them, with one peer and one station.
#[test]
fn maps_of_the_layout_before_are_read_without_a_lost_packet() {
    require_root!();
    let mesh = Mesh::running(2);
    let (one, two) = (mesh.node(1), mesh.node(2));
    assert!(one.namespace.pings(&two.overlay().to_string(), 1));
    let there = Probe::start(&one.namespace, &two.namespace, two.overlay());
    let back = Probe::start(&two.namespace, &one.namespace, one.overlay());
    let vtep = mesh.node(2).underlay().octets();
    one.kill();
    for entry in std::fs::read_dir(one.pins()).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_name().to_string_lossy().contains("gress") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let vtep16: Vec<u8> = vtep.into_iter().chain([0; 12]).collect();
    let bytes = |parts: &[&[u8]]| parts.concat();
    let own = one.underlay().octets();
    let settings = bytes(&[
        &1_u32.to_ne_bytes(),
        &1024_u32.to_ne_bytes(),
        &own,
        &[0; 12],
        &one.namespace.ifindex("ol-marengo").unwrap().to_ne_bytes(),
        &77_u32.to_ne_bytes(),
        &[4, 0, 0, 0],
    ]);
    let peer = bytes(&[&vtep16, &41_u32.to_ne_bytes(), &1450_u16.to_ne_bytes(), &[1, 0]]);
    let mac_key = bytes(&[&1024_u32.to_ne_bytes(), &[2, 0, 0, 0, 0, 9], &[0, 0]]);
    let mac = bytes(&[&3_u32.to_ne_bytes(), &41_u32.to_ne_bytes(), &5_u64.to_ne_bytes()]);
    let three = 3_u32.to_ne_bytes().to_vec();
    let chunk = bytes(&[&three, &[0; 60]]);
    let zero = 0_u32.to_ne_bytes().to_vec();
    let maps: [Shape<'_>; 7] = [
        ("peers", "marengo_peers", "hash", 4, 24, "1024", Some((&three, &peer))),
        (
            "vteps",
            "marengo_vteps",
            "hash",
            16,
            8,
            "1024",
            Some((&vtep16, &[3, 0, 0, 0, 0, 0, 0, 0])),
        ),
        ("macs", "marengo_macs", "lru_hash", 12, 16, "65536", Some((&mac_key, &mac))),
        ("flood", "marengo_flood", "hash", 4, 64, "64", Some((&zero, &chunk))),
        ("stats", "marengo_stats", "percpu_hash", 4, 32, "1024", None),
        ("drops", "marengo_drops", "percpu_array", 4, 16, "10", None),
        ("settings", "marengo_setting", "array", 4, 36, "1", Some((&zero, &settings))),
    ];
    for (pin, name, kind, key, value, entries, entry) in maps {
        let path = one.pins().join(pin);
        let (key, value) = (key.to_string(), value.to_string());
        let mut command = exec::command("bpftool");
        command.args(["map", "create"]).arg(&path).args(["type", kind, "key", &key]);
        command.args(["value", &value, "entries", entries, "name", name]);
        exec::capture(&mut command);
        if let Some((key, value)) = entry {
            let hex =
                |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>();
            let mut command = exec::command("bpftool");
            command.args(["map", "update", "pinned"]).arg(&path).args(["key", "hex"]);
            command.args(hex(key)).args(["value", "hex"]).args(hex(value));
            exec::capture(&mut command);
        }
    }

    one.start(&["-j", &mesh.node(2).seed()]);
    mesh.wait_converged();

    let slots = Maps::open(one).slots();
    let (index, slot) = slots.iter().next().unwrap();
    assert_eq!((*index, slot.generation), (3, 41), "the peer keeps its slot");
    assert_ne!(slot.data_plane, 0, "and says whose it is");
    assert!(stations(one).values().any(|place| *place == (3.into(), 41.into())));
    assert!(one.log().contains("carrying the maps"), "{}", one.log());
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
