//! What a host that lost everything but its disk still knows: whom to ask.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use marengo_tests::{
    Mesh, Node,
    node::{BRIDGE, DEVICE},
    require_root, tell, wait,
};

/// The addresses in the daemon's file, if it can be read.
fn remembered(node: &Node) -> Option<Vec<String>> {
    let text = fs::read_to_string(node.state_dir().join("marengo.json")).ok()?;
    let content: serde_json::Value = serde_json::from_str(&text).ok()?;
    let members = content["members"].as_array()?.iter();
    let mut addresses: Vec<String> =
        members.map(|member| member["address"].as_str().unwrap_or_default().to_owned()).collect();
    addresses.sort();
    Some(addresses)
}

fn wait_remembers(node: &Node, others: &[&Node]) {
    let mut addresses: Vec<String> = others.iter().map(|node| node.seed()).collect();
    addresses.sort();
    let what = format!("{} remembers {addresses:?}", node.name());
    wait::until(&what, Duration::from_secs(15), || remembered(node).as_ref() == Some(&addresses));
}

/// What a restart of the host does: no process, no link of ours, no pin.
fn lose_power(node: &Node) {
    node.kill();
    node.namespace.ip(&format!("link del {DEVICE}\nlink del {BRIDGE}"));
    fs::remove_dir_all(node.pins()).expect("there are pins");
}

/// All hosts of a site lose power, and the one that all others joined by never returns.
fn after_a_loss_of_power(args: &[&str]) -> Mesh {
    let mesh = Mesh::new(3);
    mesh.start_all(args);
    let (one, two, three) = (mesh.node(1), mesh.node(2), mesh.node(3));
    if !args.contains(&"--without") {
        wait_remembers(two, &[one, three]);
        wait_remembers(three, &[one, two]);
    }
    for node in [one, two, three] {
        lose_power(node);
    }
    two.start(args);
    three.start(args);
    mesh
}

#[test]
fn cluster_that_lost_power_comes_together_without_seeds() {
    require_root!();
    let mesh = after_a_loss_of_power(&[]);

    let took = mesh.wait_converged();

    tell(format_args!("together after {took:?}"));
    let (two, three) = (mesh.node(2), mesh.node(3));
    two.address_bridge();
    three.address_bridge();
    assert!(two.namespace.pings(&three.overlay().to_string(), 2));
    let log = two.log();
    assert!(log.contains("remember members of an earlier run"), "{log}");
}

/// The control: those who remember nobody stay alone.
#[test]
fn without_memory_it_does_not() {
    require_root!();
    let mesh = after_a_loss_of_power(&["--without", "remember"]);

    let nodes = [mesh.node(2), mesh.node(3)];
    wait::stays("they are alone", Duration::from_secs(10), || {
        nodes.iter().all(|node| node.view().peer_names().is_empty())
    });
    assert!(nodes.iter().all(|node| !node.state_dir().exists()));
}

#[test]
fn members_are_written_down_once_and_by_the_owner_alone() {
    require_root!();
    let mesh = Mesh::running(3);
    let (one, two, three) = (mesh.node(1), mesh.node(2), mesh.node(3));
    wait_remembers(one, &[two, three]);
    let file = one.state_dir().join("marengo.json");
    let written = || fs::metadata(&file).unwrap().modified().unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let before = written();

    // Lost members are remembered, those that left are not.
    three.kill();
    one.wait_until("node 3 is down", Duration::from_secs(8), |view| {
        view.state_of("node-3").as_deref() == Some("down")
    });
    wait::stays("it is written on a change alone", Duration::from_secs(2), || written() == before);
    two.stop();
    wait_remembers(one, &[three]);

    // Its own end is no reason to forget.
    one.stop();
    assert_eq!(remembered(one), Some(vec![three.seed()]));
}

#[test]
fn broken_or_unwritable_file_is_a_warning() {
    require_root!();
    let mesh = Mesh::new(2);
    let (one, two) = (mesh.node(1), mesh.node(2));
    let dir = one.state_dir();
    let file = dir.join("marengo.json");
    fs::create_dir_all(&dir).unwrap();
    two.start(&[]);
    let warnings = |what: &str| one.log().lines().filter(|line| line.contains(what)).count();

    for (number, content) in (1..).zip(["", "{\"version\":9}", "\u{0}\u{0}"]) {
        fs::write(&file, content).unwrap();
        one.start(&["-j", &two.seed()]);
        mesh.wait_converged();
        assert_eq!(warnings("cannot read the members of an earlier run"), number, "{content:?}");
        wait_remembers(one, &[two]);
        one.stop();
    }

    // A directory that cannot be made, and one in the place of the file.
    fs::remove_file(&file).unwrap();
    fs::create_dir_all(file.join("x")).unwrap();
    for (number, dir) in (1..).zip(["/proc/marengo", &dir.display().to_string()]) {
        one.start(&["-j", &two.seed(), "--state-dir", dir]);
        mesh.wait_converged();
        let told = || warnings("cannot write down the members");
        wait::until("it warns", Duration::from_secs(5), || told() == number);
        two.stop();
        two.start(&["-j", &one.seed()]);
        mesh.wait_converged();
        std::thread::sleep(Duration::from_secs(6));
        assert_eq!(told(), number, "it says so once\n{}", one.log());
        one.stop();
    }
}
