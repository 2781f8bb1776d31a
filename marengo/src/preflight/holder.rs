//! Who holds a port: from /proc, as ss(8) finds it out.

use std::{collections::BTreeSet, fmt, fs};

/// A process.
#[derive(Debug)]
pub(super) struct Holder {
    pid: u32,
    command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.command, self.pid)
    }
}

/// Finds a process in this network namespace that holds a UDP or TCP port. `None` if it cannot be
/// found out: the kernel itself, or a process that this one may not look into.
pub(super) fn of_port(protocol: &str, port: u16) -> Option<Holder> {
    let protocol = protocol.to_lowercase();
    let mut inodes = BTreeSet::new();
    for table in [format!("/proc/net/{protocol}"), format!("/proc/net/{protocol}6")] {
        inodes.extend(inodes_on(&fs::read_to_string(table).unwrap_or_default(), port));
    }
    let processes = fs::read_dir("/proc").ok()?;
    processes.filter_map(Result::ok).find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let holds =
            fs::read_dir(process.path().join("fd")).ok()?.filter_map(Result::ok).any(|fd| {
                let target = fs::read_link(fd.path()).unwrap_or_default();
                let inode = target.to_str().and_then(|text| text.strip_prefix("socket:["));
                inode
                    .and_then(|text| text.strip_suffix(']')?.parse().ok())
                    .is_some_and(|inode: u64| inodes.contains(&inode))
            });
        holds.then(|| Holder { pid, command: command(pid) })
    })
}

/// The name of a process.
pub(super) fn command(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim().is_empty() { "a process".to_owned() } else { name.trim().to_owned() }
}

/// The inodes of the sockets on a local port, from a table like /proc/net/udp. Listening TCP sockets
/// and bound UDP sockets alike; established TCP connections hold no port against a listener.
fn inodes_on(table: &str, port: u16) -> impl Iterator<Item = u64> {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let held = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        let bound = matches!(state, "0A" | "07");
        let inode = fields.nth(5)?.parse().ok()?;
        (held == port && bound && inode != 0).then_some(inode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_of_this_process_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();

        let holder = of_port("UDP", socket.local_addr().unwrap().port()).unwrap();

        assert_eq!(holder.pid, std::process::id());
    }
}
