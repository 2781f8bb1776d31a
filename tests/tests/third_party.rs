//! A node dies, and nobody else notices.

use std::{net::IpAddr, time::Duration};

use marengo_tests::{Mesh, Probe, bpf::Maps, require_root, requirements, tell, wait};

/// Time before the fault, and from the moment that the dead node is off the maps.
const QUIET: Duration = Duration::from_millis(500);

#[test]
fn death_of_the_third_of_three_costs_the_others_no_packet() {
    require_root!();
    die_and_return(3, requirements::runs(3));
}

#[test]
fn death_of_the_third_of_five_costs_no_other_pair_a_packet() {
    require_root!();
    die_and_return(5, requirements::runs(2));
}

#[test]
fn leave_and_return_of_a_third_cost_the_others_no_packet() {
    require_root!();
    let mesh = Mesh::running(3);
    let (one, two, three) = (mesh.node(1), mesh.node(2), mesh.node(3));
    let (from, to) = (one.container(1), two.container(1));
    assert!(from.namespace.pings(&to.address().to_string(), 1));

    let probe = Probe::start(&from.namespace, &to.namespace, to.address());
    std::thread::sleep(QUIET);
    three.stop();
    std::thread::sleep(QUIET);
    three.start(&["-j", &one.seed()]);
    mesh.wait_converged();
    std::thread::sleep(QUIET);
    let outcome = probe.finish();

    assert_eq!((outcome.lost, outcome.duplicates), (0, 0), "{outcome:?}");
}

#[test]
fn restarts_of_a_third_without_end_cost_the_others_no_packet_and_no_descriptor() {
    require_root!();
    let mesh = Mesh::running(3);
    let (one, two, three) = (mesh.node(1), mesh.node(2), mesh.node(3));
    assert!(one.namespace.pings(&two.overlay().to_string(), 1));
    let open_files = || {
        [one, two].map(|node| {
            std::fs::read_dir(format!("/proc/{}/fd", node.pid())).expect("it runs").count()
        })
    };
    let before = open_files();
    let resident = one.resident_kib();

    let probe = Probe::start(&one.namespace, &two.namespace, two.overlay());
    for round in 0..20 {
        match round % 3 {
            0 => drop(three.stop()),
            _ => three.kill(),
        }
        three.launch(&[], &["-j", &one.seed()]);
        // Some starts are cut short in the middle.
        std::thread::sleep(Duration::from_millis(40 * (round % 5)));
        if round % 2 == 0 {
            three.wait_answers();
        }
    }
    three.wait_answers();
    mesh.wait_converged();
    let outcome = probe.finish();

    assert_eq!((outcome.lost, outcome.duplicates), (0, 0), "{outcome:?}");
    wait::until("descriptors are closed", Duration::from_secs(10), || {
        open_files().iter().zip(before).all(|(after, before)| *after <= before + 2)
    });
    assert!(one.resident_kib() <= resident + 2048, "{} to {}", resident, one.resident_kib());
    three.address_bridge();
    assert!(one.namespace.pings(&three.overlay().to_string(), 1));
    assert_eq!(Maps::open(one).slots().len(), 2);
    assert_eq!(Maps::open(one).flood_list().len(), 2);
}

/// SIGKILL and link cut of node 3, `runs` times, under probes between the others.
fn die_and_return(nodes: u8, runs: usize) {
    let runs_limit = Duration::from_secs(30) * u32::try_from(runs).expect("runs take time");
    let mesh = Mesh::within(nodes, Duration::from_mins(1) + runs_limit);
    mesh.start_all(&[]);
    let victim = mesh.node(3);
    let vtep = IpAddr::V4(victim.underlay());
    let others: Vec<_> = mesh.nodes().filter(|node| node.name() != victim.name()).collect();
    let maps: Vec<Maps> = others.iter().map(|node| Maps::open(node)).collect();
    // From each to the next: every other node sends and receives.
    let pairs: Vec<_> = others.iter().zip(others.iter().cycle().skip(1)).collect();

    for run in 1..=runs {
        for (from, to) in &pairs {
            assert!(from.namespace.pings(&to.overlay().to_string(), 1));
        }
        let probes: Vec<Probe> = pairs
            .iter()
            .map(|(from, to)| Probe::start(&from.namespace, &to.namespace, to.overlay()))
            .collect();
        std::thread::sleep(QUIET);
        victim.kill();
        victim.cut_link();
        let off = wait::until("the victim is off every map", Duration::from_secs(8), || {
            maps.iter().all(|maps| maps.lacks(vtep))
        });
        std::thread::sleep(QUIET);
        victim.restore_link();
        victim.start(&["-j", &mesh.node(1).seed()]);
        let back = wait::until("the victim is back", Duration::from_secs(8), || {
            maps.iter().all(|maps| maps.has(vtep))
        });
        std::thread::sleep(QUIET);
        for (probe, (from, to)) in probes.into_iter().zip(&pairs) {
            let outcome = probe.finish();
            tell(format_args!(
                "run {run}: {} to {}: {outcome:?}; off {off:?}, back {back:?}",
                from.name(),
                to.name()
            ));
            assert!(outcome.sent > 1500, "{outcome:?}");
            assert_eq!((outcome.lost, outcome.duplicates), (0, 0), "run {run}: {outcome:?}");
        }
        mesh.wait_converged();
    }
}
