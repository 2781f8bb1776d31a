//! What a daemon says of itself through its control socket.

use std::path::Path;

use serde_json::Value;

use crate::http;

/// One daemon's answers. Each method asks anew; while nobody answers there is nothing.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    socket: &'a Path,
}

impl<'a> View<'a> {
    /// Of the daemon with that control socket.
    pub fn new(socket: &'a Path) -> Self {
        Self { socket }
    }

    /// The body of an answer of 200.
    pub fn get(&self, path: &str) -> Option<Value> {
        let answer = http::get_unix(self.socket, path)?;
        (answer.status == 200).then(|| answer.json())
    }

    pub fn status(&self) -> Value {
        self.get("/v1/status").unwrap_or_default()
    }

    pub fn members(&self) -> Vec<Value> {
        list(self.get("/v1/members"))
    }

    pub fn peers(&self) -> Vec<Value> {
        list(self.get("/v1/peers"))
    }

    /// The state of one member: `alive`, `suspect`, `down`, `left`; nothing if it is not known.
    pub fn state_of(&self, name: &str) -> Option<String> {
        let members = self.members();
        let member = members.iter().find(|member| member["name"] == name)?;
        member["state"].as_str().map(str::to_owned)
    }

    /// The names of the members that are alive, in order.
    pub fn alive(&self) -> Vec<String> {
        names(self.members().into_iter().filter(|member| member["state"] == "alive"))
    }

    /// The names of the peers in the data plane, in order.
    pub fn peer_names(&self) -> Vec<String> {
        names(self.peers().into_iter())
    }

    /// The data plane's peer of that name.
    pub fn peer(&self, name: &str) -> Option<Value> {
        self.peers().into_iter().find(|peer| peer["name"] == name)
    }

    pub fn is_converged(&self) -> bool {
        self.status()["converged"] == true
    }

    /// How many repairs it has counted.
    pub fn repairs(&self) -> u64 {
        self.status()["repairs"].as_u64().unwrap_or_default()
    }

    /// How many frames were dropped for a reason.
    pub fn drops(&self, reason: &str) -> u64 {
        let status = self.status();
        let count = &status["drops"][reason];
        // Either the number of frames, or an object with frames and bytes.
        count.as_u64().or_else(|| count["packets"].as_u64()).unwrap_or_default()
    }
}

fn list(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

fn names(items: impl Iterator<Item = Value>) -> Vec<String> {
    let mut names: Vec<String> =
        items.filter_map(|item| item["name"].as_str().map(str::to_owned)).collect();
    names.sort();
    names
}
