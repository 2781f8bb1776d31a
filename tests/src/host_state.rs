//! What is on a host that a daemon could have made, for comparing before and after.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    bpf::{self, Attachment},
    node::Node,
};

/// Links, attachments, pins and the control socket of a node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostState {
    /// (index, name, kind, up, mtu, master, alias) of each link.
    pub links: Vec<String>,
    pub attachments: Vec<Attachment>,
    pub pins: Vec<PathBuf>,
    pub socket: bool,
}

impl HostState {
    /// Looks.
    pub fn of(node: &Node) -> Self {
        let links: Value = serde_json::from_str(&node.namespace.run("ip -json -details link show"))
            .expect("ip prints JSON");
        let links = links.as_array().expect("ip prints a list").iter().map(|link| {
            let up = link["flags"].as_array().is_some_and(|flags| flags.contains(&"UP".into()));
            format!(
                "{} {} {} up:{up} mtu:{} master:{} alias:{}",
                link["ifindex"],
                link["ifname"],
                link["linkinfo"]["info_kind"],
                link["mtu"],
                link["master"],
                link["ifalias"]
            )
        });
        let mut pins = Vec::new();
        list(node.pins(), &mut pins);
        pins.sort();
        Self {
            links: links.collect(),
            attachments: bpf::attachments(&node.namespace),
            pins,
            socket: node.socket().exists(),
        }
    }

    /// Panics unless nothing is different now.
    pub fn expect_unchanged(&self, node: &Node) {
        assert_eq!(*self, Self::of(node), "{} was changed", node.name());
    }
}

fn list(folder: &Path, into: &mut Vec<PathBuf>) {
    if !folder.exists() {
        return;
    }
    into.push(folder.to_owned());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            list(&entry.path(), into);
        } else {
            into.push(entry.path());
        }
    }
}
