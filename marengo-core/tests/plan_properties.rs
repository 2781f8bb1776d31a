//! The laws of the planner, for arbitrary desired and observed states.
#![expect(clippy::unwrap_used, reason = "a test ends with a panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use marengo_common::{FLOOD_CHUNK, FloodChunk, PeerEntry, Settings, Vni, VtepKey};
use marengo_core::{
    desired::desired,
    identity::{DataPlaneId, Generation, Identity, NodeName},
    op::{Hook, Link, Op},
    plan::{plan, plan_teardown},
    settings::{DataPlane, IfName},
    slots::Slots,
    state::{DesiredState, ObservedBridge, ObservedDevice, ObservedState},
};
use marengo_sim::fake_kernel::FakeKernel;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn applying_the_plan_reaches_what_is_desired(want in desired_state(), have in observed_state()) {
        let mut kernel = FakeKernel::new(have);
        for op in plan(&want, &kernel.state).ops {
            prop_assert_eq!(kernel.apply(&op), Ok(()), "{}", op);
        }
        assert_reached(&want, &kernel.state)?;
    }

    #[test]
    fn what_is_reached_needs_no_plan(want in desired_state(), have in observed_state()) {
        let mut kernel = FakeKernel::new(have);
        for op in plan(&want, &kernel.state).ops {
            prop_assert_eq!(kernel.apply(&op), Ok(()));
        }
        prop_assert_eq!(plan(&want, &kernel.state).ops, vec![]);
    }

    #[test]
    fn any_part_of_a_plan_may_be_applied_and_planned_again(
        want in desired_state(),
        have in observed_state(),
        cut in 0_usize..40,
    ) {
        let mut kernel = FakeKernel::new(have);
        for op in plan(&want, &kernel.state).ops.iter().take(cut) {
            prop_assert_eq!(kernel.apply(op), Ok(()));
        }
        for op in plan(&want, &kernel.state).ops {
            prop_assert_eq!(kernel.apply(&op), Ok(()));
        }
        assert_reached(&want, &kernel.state)?;
    }

    #[test]
    fn one_input_gives_one_plan(want in desired_state(), have in observed_state()) {
        prop_assert_eq!(plan(&want, &have), plan(&want.clone(), &have.clone()));
    }

    #[test]
    fn additions_come_before_removals(want in desired_state(), have in observed_state()) {
        let ops = plan(&want, &have).ops;
        let first_removal = ops.iter().position(is_removal).unwrap_or(ops.len());
        prop_assert!(ops[first_removal..].iter().all(is_removal), "{ops:?}");
    }

    #[test]
    fn somebody_elses_link_is_left_alone(want in desired_state(), have in foreign_state()) {
        let plan = plan(&want, &have);
        prop_assert!(plan.obstacle.is_some());
        let mut kernel = FakeKernel::new(have.clone());
        for op in plan.ops {
            prop_assert_eq!(kernel.apply(&op), Ok(()), "{}", op);
        }
        prop_assert_eq!(&kernel.state.bridge, &have.bridge);
        // But for our own device's name.
        let named = |device: &Option<ObservedDevice>| {
            device.clone().map(|device| ObservedDevice { named: true, ..device })
        };
        prop_assert_eq!(named(&kernel.state.device), named(&have.device));
        let ours = |device: &&ObservedDevice| {
            device.ours && device.collects_metadata && device.port == want.port
        };
        if have.device.as_ref().is_some_and(|device| ours(&device)) {
            prop_assert!(kernel.state.hooks.contains(&Hook::DeviceIngress));
            prop_assert_eq!(&kernel.state.peers, &want.peers);
        }

        let mut kernel = FakeKernel::new(have.clone());
        for op in plan_teardown(&have).ops {
            prop_assert_eq!(kernel.apply(&op), Ok(()), "{}", op);
        }
        prop_assert_eq!(&kernel.state.bridge, &have.bridge);
        if have.device.as_ref().is_some_and(|device| !device.ours) {
            prop_assert_eq!(&kernel.state, &have, "a device that is not ours keeps what guards it");
        }
    }

    /// Nothing that fails before it keeps the lock from the door of a device that is up.
    #[test]
    fn the_lock_of_a_device_that_stays_comes_first(
        want in desired_state(),
        have in observed_state(),
    ) {
        let ops = plan(&want, &have).ops;
        let device_stays = !ops.contains(&Op::DeleteDevice) && have.device.is_some();
        if let Some(at) = ops.iter().position(|op| *op == Op::Attach(Hook::DeviceIngress))
            && device_stays
        {
            // Whose name is another's cannot be found by it.
            let harmless = |op: &Op| op.is_map_write() || matches!(op, Op::Rename { .. });
            prop_assert!(ops[..at].iter().all(harmless), "{ops:?}");
        }
    }

    /// What comes from an address that leads to the wrong slot until then is void afterwards.
    #[test]
    fn a_generation_is_raised_when_all_addresses_lead_where_they_should(
        want in desired_state(),
        have in observed_state(),
    ) {
        let ops = plan(&want, &have).ops;
        let raise = ops.iter().position(|op| op.raises_generation(&have.peers));
        let raise = raise.unwrap_or(ops.len());
        let is_early = |op: &Op| matches!(op, Op::PutVtep(..));
        prop_assert!(!ops[raise..].iter().any(is_early), "{ops:?}");
    }

    #[test]
    fn a_teardown_leaves_the_bridge_and_nothing_else(have in observed_state()) {
        let mut kernel = FakeKernel::new(have.clone());
        for op in plan_teardown(&have).ops {
            prop_assert_eq!(kernel.apply(&op), Ok(()), "{}", op);
        }
        let left = ObservedState {
            bridge: have.bridge,
            underlay_mtu: have.underlay_mtu,
            ..ObservedState::default()
        };
        prop_assert_eq!(kernel.state, left);
    }

    #[test]
    fn a_change_of_peers_alone_is_map_writes_alone(
        before in proptest::collection::btree_set(1_u8..60, 0..40),
        after in proptest::collection::btree_set(1_u8..60, 0..40),
    ) {
        let mut slots = Slots::new(64);
        let mut kernel = FakeKernel::new(ObservedState::default());
        slots.assign(&table(&before), &BTreeSet::new());
        for op in plan(&desired(&data_plane(), &slots, Some(1500)), &kernel.state).ops {
            prop_assert_eq!(kernel.apply(&op), Ok(()));
        }

        slots.assign(&table(&after), &BTreeSet::new());
        let ops = plan(&desired(&data_plane(), &slots, Some(1500)), &kernel.state).ops;

        prop_assert!(ops.iter().all(Op::is_map_write), "{ops:?}");
        let changed = before.symmetric_difference(&after).count();
        prop_assert!(ops.len() <= 1 + 4 * changed, "{} ops for {changed} changes", ops.len());
        let names: Vec<NodeName> =
            table(&before.intersection(&after).copied().collect()).iter().map(|p| p.name).collect();
        let stay: BTreeSet<u32> = slots
            .iter()
            .filter(|(_, slot)| slot.name.is_some_and(|name| names.contains(&name)))
            .map(|(index, _)| index)
            .collect();
        for op in ops {
            prop_assert_eq!(kernel.apply(&op), Ok(()));
            let listed: Vec<u32> =
                kernel.state.flood.values().flat_map(|chunk| chunk.peers).collect();
            let missing = stay.iter().find(|index| !listed.contains(index));
            prop_assert_eq!(missing, None, "who stays is flooded to all the time: {}", op);
        }
    }

    /// The promise itself: whatever peers come and go, a stamp of a slot is valid only for the peer
    /// that it was made for.
    #[test]
    fn a_stamp_is_never_valid_for_another_peer(
        rounds in proptest::collection::vec(
            proptest::collection::btree_set(1_u8..12, 0..8), 1..30),
    ) {
        let mut slots = Slots::new(64);
        let mut stamps: BTreeMap<(u32, u32), NodeName> = BTreeMap::new();
        for peers in rounds {
            slots.assign(&table(&peers), &BTreeSet::new());
            for (index, slot) in slots.iter() {
                let name = slot.name.unwrap();
                let holder = *stamps.entry((index, slot.generation)).or_insert(name);
                prop_assert_eq!(holder, name);
            }
        }
    }
}

#[test]
fn the_first_plan_reads_like_a_shell_session() {
    let mut slots = Slots::new(64);
    slots.assign(&table(&BTreeSet::from([2, 3])), &BTreeSet::new());

    let plan = plan(&desired(&data_plane(), &slots, Some(1500)), &ObservedState::default());

    let lines: Vec<String> = plan.ops.iter().map(Op::to_string).collect();
    assert_eq!(
        lines,
        [
            "create bridge mtu 1450",
            "set bridge up",
            "create vxlan device external dstport 4789 mtu 1450",
            "set device alias and addrgenmode none",
            "write settings vni 1024 generation 2",
            "attach program at tc ingress of the device",
            "attach program at tc egress of the device",
            "attach program at tc egress of the bridge",
            "put peer 1 vtep 192.0.2.2 generation 1",
            "put peer 2 vtep 192.0.2.3 generation 2",
            "put vtep 192.0.2.2 peer 1",
            "put vtep 192.0.2.3 peer 2",
            "put flood 0 peers 1,2",
            "set device up",
        ]
    );
}

fn is_removal(op: &Op) -> bool {
    matches!(op, Op::DeletePeer(_) | Op::DeleteVtep(_) | Op::DeleteFlood(_))
}

fn assert_reached(want: &DesiredState, have: &ObservedState) -> Result<(), TestCaseError> {
    let bridge = have.bridge.as_ref().unwrap();
    let device = have.device.as_ref().unwrap();
    prop_assert!(bridge.up && device.up && device.ours && device.collects_metadata);
    prop_assert!(bridge.named && device.named && device.finished);
    prop_assert_eq!((bridge.mtu, device.mtu), (u32::from(want.mtu), u32::from(want.mtu)));
    prop_assert_eq!(device.port, want.port);
    prop_assert_eq!(device.master, Some(bridge.ifindex));
    prop_assert_eq!(&have.hooks, &BTreeSet::from(Hook::ALL));
    let settings = Settings { vxlan_ifindex: device.ifindex, ..want.settings };
    prop_assert_eq!(have.settings, Some(settings));
    prop_assert_eq!(&have.peers, &want.peers);
    prop_assert_eq!(&have.vteps, &want.vteps);
    prop_assert_eq!(&have.flood, &want.flood);
    Ok(())
}

fn data_plane() -> DataPlane {
    DataPlane {
        bridge: IfName::new("marengo").unwrap(),
        device: IfName::new("ol-marengo").unwrap(),
        vni: Vni::new(1024).unwrap(),
        port: 4789,
        vtep: address(1),
        mtu: None,
        max_peers: 64,
        id: DataPlaneId::new(1).unwrap(),
    }
}

fn address(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, n))
}

fn table(peers: &BTreeSet<u8>) -> Vec<Identity> {
    peers
        .iter()
        .map(|n| {
            let name = NodeName::new(&format!("node-{n:02}")).unwrap();
            let (addr, listen) = ((address(*n), 7946).into(), (address(*n), 8080).into());
            Identity::new(
                name,
                addr,
                address(*n),
                listen,
                Generation(1),
                DataPlaneId::new(u64::from(*n)).unwrap(),
            )
            .unwrap()
        })
        .collect()
}

/// Any set of peers, the way it comes out of slots that have a past.
fn desired_state() -> impl Strategy<Value = DesiredState> {
    let peers = || proptest::collection::btree_set(1_u8..40, 0..24);
    (peers(), peers(), 1400_u32..9000, prop_oneof![Just(4789_u16), Just(8472)]).prop_map(
        |(before, now, underlay, port)| {
            let mut slots = Slots::new(64);
            slots.assign(&table(&before), &BTreeSet::new());
            slots.assign(&table(&now), &BTreeSet::new());
            let data_plane = DataPlane { port, ..data_plane() };
            desired(&data_plane, &slots, Some(underlay))
        },
    )
}

/// Anything that a kernel may hold under our names and marks, much of it wrong.
fn observed_state() -> impl Strategy<Value = ObservedState> {
    let bridge = (any::<bool>(), any::<bool>(), 1280_u32..2000).prop_map(|(named, up, mtu)| {
        ObservedBridge { ifindex: 7, named, is_bridge: true, up, mtu }
    });
    let device = (
        (any::<bool>(), any::<bool>()),
        any::<bool>(),
        prop_oneof![Just(4789_u16), Just(8472)],
        prop_oneof![Just(None), Just(Some(7)), Just(Some(99))],
        any::<bool>(),
        1280_u32..2000,
    )
        .prop_map(|((named, finished), collects_metadata, port, master, up, mtu)| {
            ObservedDevice {
                ifindex: 8,
                named,
                ours: true,
                collects_metadata,
                finished,
                port,
                master,
                up,
                mtu,
            }
        });
    let peers = proptest::collection::btree_map(1_u32..30, peer_entry(), 0..20);
    let vteps = proptest::collection::btree_map(
        (1_u8..60).prop_map(|n| VtepKey::new(address(n))),
        1_u32..30,
        0..20,
    );
    (
        proptest::option::of(bridge),
        proptest::option::of(device),
        proptest::sample::subsequence(Hook::ALL.to_vec(), 0..=3),
        proptest::option::of(0_u32..50),
        (peers, vteps, proptest::collection::btree_map(0_u32..4, flood_chunk(), 0..4)),
    )
        .prop_map(|(bridge, device, hooks, generation, (peers, vteps, flood))| {
            let hooks = hooks
                .into_iter()
                .filter(|hook| match hook.link() {
                    Link::Bridge => bridge.is_some(),
                    Link::Device => device.is_some(),
                })
                .collect();
            let vni = Vni::new(1024).unwrap();
            let settings =
                generation.map(|generation| Settings::new(vni, address(1), 1, 8, generation));
            ObservedState {
                bridge,
                device,
                hooks,
                settings,
                peers,
                vteps,
                flood,
                underlay_mtu: Some(1500),
            }
        })
}

fn foreign_state() -> impl Strategy<Value = ObservedState> {
    (observed_state(), any::<bool>()).prop_map(|(mut state, bridge_is_foreign)| {
        if bridge_is_foreign {
            let bridge =
                ObservedBridge { ifindex: 7, named: true, is_bridge: false, up: true, mtu: 1500 };
            state.bridge = Some(bridge);
        } else {
            state.device = Some(ObservedDevice {
                ifindex: 8,
                named: true,
                ours: false,
                collects_metadata: false,
                finished: false,
                port: 4789,
                master: None,
                up: true,
                mtu: 1450,
            });
        }
        state
    })
}

fn peer_entry() -> impl Strategy<Value = PeerEntry> {
    (1_u8..60, 0_u32..50, 0_u8..3).prop_map(|(n, generation, state)| PeerEntry {
        vtep: VtepKey::new(address(n)).vtep,
        generation,
        path_mtu: 1450,
        state,
        flags: 0,
        data_plane: u64::from(n),
    })
}

fn flood_chunk() -> impl Strategy<Value = FloodChunk> {
    proptest::collection::vec(0_u32..30, FLOOD_CHUNK)
        .prop_map(|peers| FloodChunk { peers: peers.try_into().unwrap() })
}
