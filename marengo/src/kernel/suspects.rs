//! Who may have changed what is ours: evidence, no proof.
//!
//! The kernel does not say who changed a link: the port number in a report of a link is zero unless
//! the request asked for an echo. But whoever changes one has a netlink socket open in this network
//! namespace, and often still has when the report comes: the namespace's list of sockets is read then.
//! Reports of filters carry the number of the requester. Nothing reports a change of a map or of a TCX
//! link; who has one of ours open is to be seen in /proc.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, fs,
    time::{Duration, Instant},
};

/// Looks that are remembered.
const LOOKS: usize = 32;
/// Looks are at least this far apart.
const SPACING: Duration = Duration::from_millis(20);

/// A process at the time of a look.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Process {
    pid: u32,
    name: String,
    /// Its parent, for what lives too short to be found: a script is seen as its commands.
    parent: Option<(u32, String)>,
}

/// Who was seen when something of ours changed.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    looks: VecDeque<(Instant, BTreeSet<Process>)>,
}

impl Suspects {
    /// Looks around, because the kernel reported a change. `requester` is the port number of the
    /// last report that has one: by default the number of its process.
    pub(crate) fn look(&mut self, now: Instant, requester: Option<u32>) {
        let recently = self.looks.back().is_some_and(|(last, _)| now - *last < SPACING);
        if recently && requester.is_none() {
            return;
        }
        let own = std::process::id();
        if requester == Some(own) {
            return;
        }
        let seen = if let Some(requester) = requester.and_then(process) {
            BTreeSet::from([requester])
        } else {
            let path = "/proc/thread-self/net/netlink";
            let sockets = route_sockets(&fs::read_to_string(path).unwrap_or_default());
            sockets.into_iter().filter(|pid| *pid != own).filter_map(process).collect()
        };
        if self.looks.len() == LOOKS {
            self.looks.pop_front();
        }
        self.looks.push_back((now, seen));
    }

    /// Who was seen most often since `since`: a command that was there under ever new numbers, or a
    /// process that is there all the time. `None`: nobody was.
    pub(crate) fn accuse(&self, since: Instant) -> Option<String> {
        let mut seen: BTreeMap<&str, Vec<&Process>> = BTreeMap::new();
        for process in self.looks.iter().filter(|(at, _)| *at >= since).flat_map(|(_, all)| all) {
            seen.entry(&process.name).or_default().push(process);
        }
        let pids = |seen: &[&Process]| {
            seen.iter().map(|process| process.pid).collect::<BTreeSet<u32>>().len()
        };
        // Who comes anew each time is there because of the change; who is always there need not be.
        let most = seen.values().max_by_key(|seen| (pids(seen), seen.len()))?;
        let last = most.last()?;
        Some(match &last.parent {
            Some((parent, name)) if pids(most) > 1 => {
                format!("{} (run by {name}, pid {parent})", last.name)
            }
            _ => last.to_string(),
        })
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

/// The processes, this one aside, that have one of these maps or programs open, or a link to such a
/// program. Reads all of /proc: not for the thread of the tasks.
pub(crate) fn holders(maps: &[u32], programs: &[u32]) -> Option<String> {
    let own = std::process::id();
    let pids = numbers("/proc").filter(|pid| *pid != own);
    let found = pids.filter(|pid| holds(*pid, maps, programs)).filter_map(process);
    let names: Vec<String> = found.map(|process| process.to_string()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn holds(pid: u32, maps: &[u32], programs: &[u32]) -> bool {
    numbers(&format!("/proc/{pid}/fd")).any(|fd| {
        let target = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
        if !target.to_str().is_some_and(|target| target.starts_with("anon_inode:bpf")) {
            return false;
        }
        let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
        let field = |name: &str| -> Option<u32> {
            text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
        };
        field("map_id:").is_some_and(|id| maps.contains(&id))
            || field("prog_id:").is_some_and(|id| programs.contains(&id))
    })
}

fn numbers(folder: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn process(pid: u32) -> Option<Process> {
    let parent = stat(pid).and_then(|(_, parent)| Some((parent, stat(parent)?.0)));
    Some(Process { pid, name: stat(pid)?.0, parent })
}

/// A process's name and its parent's number. The name may hold anything, also parentheses.
fn stat(pid: u32) -> Option<(String, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let parent = tail.split_whitespace().nth(1)?.parse().ok()?;
    Some((name.to_owned(), parent))
}

/// The port numbers of the sockets of rtnetlink that may be numbers of processes: the kernel gives a
/// process's first socket its number, and others what no process has.
fn route_sockets(text: &str) -> Vec<u32> {
    const ROUTE: &str = "0";
    const MAX_PID: u32 = 1 << 22;
    let ports = text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        (fields.next()? == ROUTE).then(|| fields.next()?.parse().ok())?
    });
    let mut pids: Vec<u32> = ports.filter(|pid| (1..=MAX_PID).contains(pid)).collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_rtnetlink_are_told_from_others_and_processes_from_other_numbers() {
        let text = "sk               Eth Pid        Groups   Rmem Wmem Dump Locks Drops Inode\n\
             000000001 0   4242       00000001 0 0 0 2 0 1\n\
             000000002 0   0          00000000 0 0 0 2 0 2\n\
             000000003 0   4294963200 00000440 0 0 0 2 0 3\n\
             000000004 16  99         00000000 0 0 0 2 0 4\n\
             000000005 0   4242       00000000 0 0 0 2 0 5\n";

        assert_eq!(route_sockets(text), [4242]);
    }

    #[test]
    fn who_comes_anew_each_time_is_suspected_before_who_is_always_there() {
        let process = |pid, name: &str| Process {
            pid,
            name: name.to_owned(),
            parent: Some((7, "sh".to_owned())),
        };
        let start = Instant::now();
        let mut suspects = Suspects::default();
        for n in 0..5 {
            let seen = BTreeSet::from([process(100, "networkd"), process(200 + n, "ip")]);
            suspects.looks.push_back((start, seen));
        }
        assert_eq!(suspects.accuse(start).as_deref(), Some("ip (run by sh, pid 7)"));

        suspects.looks.retain_mut(|(_, seen)| {
            seen.pop_first().is_some() && {
                *seen = BTreeSet::from([process(100, "networkd")]);
                true
            }
        });
        assert_eq!(suspects.accuse(start).as_deref(), Some("networkd (pid 100)"));
        assert_eq!(suspects.accuse(start + Duration::from_secs(1)), None);
    }

    #[test]
    fn this_process_is_found_with_its_parent() {
        let own = process(std::process::id()).unwrap();

        assert!(!own.name.is_empty());
        assert!(own.parent.is_some());
    }
}
