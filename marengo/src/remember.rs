//! What outlives the host: the addresses of the members that this node has known, in a file. After a
//! restart of the host they are asked besides the seeds, so that a node whose seeds are gone, or a
//! cluster that lost power as a whole, comes together again.
//!
//! The file is an aid: one that is broken, or cannot be written, is a warning and no more.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use marengo_core::{identity::ClusterName, members::PeerTable, settings::IfName};
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::gossip::{Known, Request};

/// The file's version.
const VERSION: u32 = 1;
/// So many addresses are kept, those seen last.
const MAX_MEMBERS: usize = 1024;
/// A larger file was not written by us.
const MAX_BYTES: u64 = 1 << 20;
/// Who was not a member for so long is not asked any more.
const KEEP_FOR: Duration = Duration::from_hours(7 * 24);
/// A newcomer rarely comes alone: what changes within this is written at once.
const SETTLES_WITHIN: Duration = Duration::from_millis(500);
/// Between two writes.
const WRITE_EVERY: Duration = Duration::from_secs(5);
/// When the peers do not change, what is remembered may: members are forgotten.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// The times in the file are renewed after this, though nothing else changed.
const RENEW_AFTER: Duration = Duration::from_hours(12);

/// The file as it is written.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    cluster: String,
    members: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Gossip address.
    address: SocketAddr,
    /// When it was last known to be a member, in seconds since 1970 by this host's clock.
    seen: u64,
}

/// The file, and what is in it.
#[derive(Debug)]
pub(crate) struct Memory {
    path: PathBuf,
    cluster: ClusterName,
    /// By address: when it was last a member.
    seen: BTreeMap<SocketAddr, u64>,
    failing: bool,
}

impl Memory {
    /// Reads what an earlier run has written. Without a file there is nothing to remember.
    pub(crate) fn load(dir: &Path, bridge: &IfName, cluster: ClusterName) -> Self {
        let path = dir.join(format!("{bridge}.json"));
        let seen = match read(&path, cluster) {
            Ok(entries) => {
                let now = now();
                // A clock that went back makes nobody younger than now.
                let young = |entry: &Entry| now.saturating_sub(entry.seen) <= KEEP_FOR.as_secs();
                let young = entries.into_iter().filter(young);
                young.map(|entry| (entry.address, entry.seen.min(now))).collect()
            }
            Err(error) => {
                warn!(file = %path.display(), error = format!("{error:#}"),
                    "cannot read the members of an earlier run; going on without them");
                BTreeMap::new()
            }
        };
        if !seen.is_empty() {
            info!(members = seen.len(), file = %path.display(), "remember members of an earlier run");
        }
        Self { path, cluster, seen, failing: false }
    }

    /// The addresses, those seen last first.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let mut by_age: Vec<(u64, SocketAddr)> =
            self.seen.iter().map(|(address, seen)| (*seen, *address)).collect();
        by_age.sort_unstable_by(|a, b| b.cmp(a));
        by_age.into_iter().map(|(_, address)| address).collect()
    }

    /// Keeps the file up to date, until the gossip task is gone.
    pub(crate) async fn keep(
        mut self,
        gossip: mpsc::WeakSender<Request>,
        mut peers: watch::Receiver<PeerTable>,
    ) {
        loop {
            match timeout(LOOK_EVERY, peers.changed()).await {
                Ok(Err(_)) => return,
                Ok(Ok(())) => sleep(SETTLES_WITHIN).await,
                Err(_) => {}
            }
            peers.mark_unchanged();
            let (answer, answered) = oneshot::channel();
            let Some(gossip) = gossip.upgrade() else { return };
            if gossip.send(Request::Known(answer)).await.is_err() {
                return;
            }
            drop(gossip);
            let Ok(known) = answered.await else { return };
            if self.update(&known, now()) {
                self = self.write().await;
                sleep(WRITE_EVERY).await;
            }
        }
    }

    /// Takes note of who is known. Says whether that is worth writing.
    fn update(&mut self, known: &Known, now: u64) -> bool {
        let mut next = self.seen.clone();
        next.retain(|address, seen| {
            !known.left.contains(address)
                && *address != known.own
                && now.saturating_sub(*seen) <= KEEP_FOR.as_secs()
        });
        next.extend(known.members.iter().map(|address| (*address, now)));
        while next.len() > MAX_MEMBERS {
            let oldest = next.iter().min_by_key(|(_, seen)| **seen).map(|(address, _)| *address);
            oldest.and_then(|oldest| next.remove(&oldest));
        }
        let renewed = |(address, seen): (&SocketAddr, &u64)| {
            let before = self.seen.get(address).copied().unwrap_or_default();
            seen.saturating_sub(before) > RENEW_AFTER.as_secs()
        };
        let changed = !next.keys().eq(self.seen.keys()) || next.iter().any(renewed);
        if changed {
            self.seen = next;
        }
        // What could not be written is tried again.
        changed || self.failing
    }

    /// Writes the file, off this thread: a disk may take its time.
    async fn write(mut self) -> Self {
        let content = Content {
            version: VERSION,
            cluster: self.cluster.to_string(),
            members: self
                .seen
                .iter()
                .map(|(address, seen)| Entry { address: *address, seen: *seen })
                .collect(),
        };
        let path = self.path.clone();
        let written = spawn_blocking(move || replace(&path, &content)).await;
        match written.unwrap_or_else(|error| Err(error.into())) {
            Ok(()) if self.failing => {
                info!(file = %self.path.display(), "the members are written down again");
                self.failing = false;
            }
            Ok(()) => debug!(members = self.seen.len(), "wrote down the members"),
            Err(error) if !self.failing => {
                warn!(file = %self.path.display(), error = format!("{error:#}"),
                    "cannot write down the members; after a restart of the host only seeds are asked");
                self.failing = true;
            }
            Err(_) => {}
        }
        self
    }
}

fn read(path: &Path, cluster: ClusterName) -> Result<Vec<Entry>> {
    // Not blocking: it may be a pipe.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    let file = match file {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        bail!("it is no file, or larger than any of ours");
    }
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text)?;
    let head: Version = serde_json::from_str(&text)?;
    if head.version != VERSION {
        bail!("it has version {}, this is {VERSION}", head.version);
    }
    let content: Content = serde_json::from_str(&text)?;
    if content.cluster != cluster.as_str() {
        bail!("it tells of the cluster {:?}, this is {cluster}", content.cluster);
    }
    Ok(content.members.into_iter().take(MAX_MEMBERS).collect())
}

/// What is judged before the rest: another version's may look different.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Puts a new file in the place of the old one: whenever the power goes, one of the two is there.
fn replace(path: &Path, content: &Content) -> Result<()> {
    let dir = path.parent().context("it has no directory")?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let new = path.with_extension("json.new");
    let write = || -> Result<()> {
        // Not one that somebody left, whoever may read or write it.
        fs::remove_file(&new).or_else(gone)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(content)?)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(dir)?.sync_all()?;
        Ok(())
    };
    let written = write();
    if written.is_err() {
        fs::remove_file(&new).ok();
    }
    written
}

fn gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_written_is_read_again_by_the_owner_alone() {
        let dir = Dir::new("round");
        let mut memory = dir.memory();
        assert!(memory.update(&known(&[1, 2], &[]), now()));

        memory = block_on(memory.write());

        assert_eq!(dir.memory().seen, memory.seen);
        let mode = fs::metadata(&memory.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1, "no other file is left");
    }

    #[test]
    fn files_that_are_not_ours_are_not_believed() {
        let entry = r#"{"address":"10.0.0.1:1","seen":1}"#;
        let dir = Dir::new("broken");
        fs::create_dir_all(&dir.0).unwrap();
        let path = dir.0.join("marengo.json");
        for text in [
            String::new(),
            "{".to_owned(),
            "[]".to_owned(),
            format!(r#"{{"version":2,"cluster":"marengo","members":[{entry}]}}"#),
            format!(r#"{{"version":1,"cluster":"other","members":[{entry}]}}"#),
            r#"{"version":1,"cluster":"marengo","members":["10.0.0.1"]}"#.to_owned(),
            " ".repeat(2 << 20),
        ] {
            fs::write(&path, &text).unwrap();
            assert!(read(&path, cluster()).is_err(), "{}", text.trim());
            assert!(dir.memory().seen.is_empty());
        }
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(read(&path, cluster()).is_err(), "a pipe");
    }

    #[test]
    fn members_that_left_go_and_those_that_are_lost_stay_for_a_week() {
        let mut memory = Dir::new("week").memory();
        let day = 24 * 3600;

        assert!(memory.update(&known(&[1, 2, 3], &[]), 1000));
        assert!(!memory.update(&known(&[1, 2, 3], &[]), 1060), "nothing new");
        assert!(memory.update(&known(&[1], &[2]), 1000 + day));
        assert_eq!(
            memory.addresses(),
            [address(1), address(3)],
            "3 is not known, but has not left"
        );

        assert!(memory.update(&known(&[1], &[]), 1000 + 8 * day));
        assert_eq!(memory.addresses(), [address(1)]);
    }

    #[test]
    fn of_too_many_the_last_seen_are_kept() {
        let mut memory = Dir::new("many").memory();
        memory.update(&known(&[1], &[]), 1);

        let many: Vec<u16> = (2..2000).collect();
        memory.update(&known(&many, &[]), 2);

        assert_eq!(memory.seen.len(), MAX_MEMBERS);
        assert!(!memory.seen.contains_key(&address(1)));
    }

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("marengo-{name}-{}", std::process::id())))
        }

        fn memory(&self) -> Memory {
            Memory::load(&self.0, &IfName::new("marengo").unwrap(), cluster())
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    fn cluster() -> ClusterName {
        ClusterName::new("marengo").unwrap()
    }

    fn address(number: u16) -> SocketAddr {
        ([10, 0, 0, 1], number).into()
    }

    fn known(members: &[u16], left: &[u16]) -> Known {
        let addresses = |numbers: &[u16]| numbers.iter().map(|number| address(*number)).collect();
        Known { own: address(60_000), members: addresses(members), left: addresses(left) }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }
}
