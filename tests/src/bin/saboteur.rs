//! Stands between a process and the kernel: sees each system call with which it writes there, and kills
//! the process at one, or lets one fail.
//!
//! `saboteur PID` takes orders on its input and prints each write on its output. It is a process of its
//! own because a process that traces its own children takes their exits for stops. When its input ends
//! it goes, and the process runs on.
//!
//! ```text
//! kill 3                   at the third write from now on
//! fail 12 3                the third write from now on fails with errno 12
//! fail-all 12 update peers  until `clear`, each write of that description does
//! refuse-look 2            once a program is loaded, the kernel does not know the second question for
//!                           links (no write, and not told of otherwise)
//! refuse-all 16 set master  until `clear`, the kernel answers each netlink message of that description
//!                           with errno 16, and does nothing
//! clear                    nothing from now on
//! ```
#![allow(clippy::print_stdout, reason = "it is what this program is for")]
#![allow(clippy::print_stderr, reason = "it is what this program is for")]

#[cfg(target_arch = "x86_64")]
mod trace {
    use std::{
        collections::{HashMap, HashSet},
        fs::{self, File},
        io::{BufRead as _, Write as _},
        os::unix::fs::FileExt as _,
        sync::{Arc, Mutex, PoisonError},
    };

    use aya::maps::MapData;
    use nix::{
        errno::Errno,
        libc::user_regs_struct,
        sys::{
            ptrace::{self, Options},
            signal::{Signal, kill},
            wait::{WaitPidFlag, WaitStatus, waitpid},
        },
        unistd::Pid,
    };

    /// What to do, and when.
    #[derive(Clone, Debug, Default)]
    enum Order {
        #[default]
        Nothing,
        Kill {
            countdown: u32,
        },
        Fail {
            errno: i32,
            countdown: u32,
        },
        FailAll {
            errno: i32,
            what: String,
        },
        RefuseLook {
            countdown: u32,
        },
        RefuseAll {
            errno: i32,
            what: String,
        },
    }

    enum Blow {
        None,
        Kill,
        Errno(i32),
        Refuse(i32),
        Unknown,
    }

    const SYSCALL_ENTRY: u8 = 1;
    const LOOK: &str = "look";
    const NLMSG_NOOP: u16 = 1;
    /// Above `RTM_MAX`: the kernel answers `EOPNOTSUPP`.
    const NLMSG_UNKNOWN: u16 = 0xfff0;

    pub(super) fn run(pid: i32) -> Result<(), String> {
        let process = Pid::from_raw(pid);
        let order = Arc::new(Mutex::new(Order::default()));
        let threads = fs::read_dir(format!("/proc/{pid}/task")).map_err(|e| e.to_string())?;
        for thread in threads.flatten() {
            let tid: i32 = thread.file_name().to_string_lossy().parse().unwrap_or(pid);
            let tid = Pid::from_raw(tid);
            ptrace::seize(tid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE)
                .map_err(|error| format!("failed to seize {tid}: {error}"))?;
            // One that is stopped by a signal is not stopped again.
            ptrace::interrupt(tid).ok();
        }
        println!("ready");
        let orders = Arc::clone(&order);
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                *orders.lock().unwrap_or_else(PoisonError::into_inner) = parse(&line);
                println!("ordered");
            }
            // The kernel lets go of the process with this one's end.
            #[expect(clippy::exit, reason = "the other thread waits for the traced process")]
            std::process::exit(0);
        });
        let mut scene = Scene {
            process,
            memory: None,
            has_loaded: false,
            netlink: HashSet::new(),
            maps: HashMap::new(),
            refused: HashMap::new(),
        };
        let mut failing: HashMap<Pid, i32> = HashMap::new();
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                // It is gone.
                Err(_) => return Ok(()),
            };
            let (tid, signal) = match status {
                WaitStatus::PtraceSyscall(tid) => {
                    scene.syscall(tid, &order, &mut failing);
                    (tid, None)
                }
                WaitStatus::Stopped(tid, signal) => (tid, Some(signal)),
                WaitStatus::PtraceEvent(tid, _, _) => (tid, None),
                _ => continue,
            };
            // It may be dead by now.
            ptrace::syscall(tid, signal).ok();
        }
    }

    fn parse(line: &str) -> Order {
        let words: Vec<&str> = line.splitn(3, ' ').collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u32>().ok());
        let errno = number(1).and_then(|errno| i32::try_from(errno).ok()).unwrap_or(5);
        let rest = words.get(2).copied().unwrap_or_default().to_owned();
        match words.first().copied() {
            Some("kill") => Order::Kill { countdown: number(1).unwrap_or(1) },
            Some("fail") => Order::Fail { errno, countdown: number(2).unwrap_or(1) },
            Some("refuse-look") => Order::RefuseLook { countdown: number(1).unwrap_or(1) },
            Some("fail-all") => Order::FailAll { errno, what: rest },
            Some("refuse-all") => Order::RefuseAll { errno, what: rest },
            _ => Order::Nothing,
        }
    }

    impl Order {
        fn is_about_looks(&self) -> bool {
            matches!(self, Self::RefuseLook { .. })
        }

        /// A write is about to happen.
        fn meet(&mut self, write: &str) -> Blow {
            match self {
                Self::Nothing => Blow::None,
                Self::RefuseLook { .. } if write != LOOK => Blow::None,
                Self::FailAll { errno, what } => {
                    if what == write {
                        Blow::Errno(*errno)
                    } else {
                        Blow::None
                    }
                }
                Self::RefuseAll { errno, what } => {
                    if what == write {
                        Blow::Refuse(*errno)
                    } else {
                        Blow::None
                    }
                }
                Self::Kill { countdown }
                | Self::Fail { countdown, .. }
                | Self::RefuseLook { countdown }
                    if *countdown > 1 =>
                {
                    *countdown -= 1;
                    Blow::None
                }
                Self::Kill { .. } => Blow::Kill,
                Self::RefuseLook { .. } => {
                    *self = Self::Nothing;
                    Blow::Unknown
                }
                Self::Fail { errno, .. } => {
                    let errno = *errno;
                    *self = Self::Nothing;
                    Blow::Errno(errno)
                }
            }
        }
    }

    /// What is known of the process.
    struct Scene {
        process: Pid,
        memory: Option<File>,
        /// It has loaded a program since this looks.
        has_loaded: bool,
        netlink: HashSet<String>,
        maps: HashMap<u32, String>,
        /// Netlink messages that the kernel was kept from, by their sequence number, and what it is
        /// made to answer.
        refused: HashMap<u32, i32>,
    }

    impl Scene {
        fn syscall(&mut self, tid: Pid, order: &Mutex<Order>, failing: &mut HashMap<Pid, i32>) {
            let Ok(info) = ptrace::syscall_info(tid) else { return };
            if info.op != SYSCALL_ENTRY {
                if let Some(errno) = failing.remove(&tid)
                    && let Ok(mut regs) = ptrace::getregs(tid)
                {
                    regs.rax = i64::from(-errno).cast_unsigned();
                    ptrace::setregs(tid, regs).ok();
                } else if !self.refused.is_empty()
                    && let Ok(regs) = ptrace::getregs(tid)
                {
                    self.answer(&regs);
                }
                return;
            }
            let Ok(mut regs) = ptrace::getregs(tid) else { return };
            let Some(write) = self.describe(&regs) else { return };
            self.has_loaded |= write.starts_with("load program");
            let mut order = order.lock().unwrap_or_else(PoisonError::into_inner);
            if write == LOOK && !(self.has_loaded && order.is_about_looks()) {
                return;
            }
            let blow = order.meet(&write);
            drop(order);
            let mut out = std::io::stdout().lock();
            match blow {
                Blow::None => writeln!(out, "write {write}").unwrap_or_default(),
                Blow::Kill => {
                    writeln!(out, "killed {write}").unwrap_or_default();
                    // At the entry: the call does not happen.
                    kill(self.process, Signal::SIGKILL).ok();
                }
                Blow::Refuse(errno) => {
                    writeln!(out, "failed {write}").unwrap_or_default();
                    self.keep_from_kernel(&regs, errno);
                }
                Blow::Unknown => {
                    writeln!(out, "failed {write}").unwrap_or_default();
                    self.retype(&regs, NLMSG_UNKNOWN);
                }
                Blow::Errno(errno) => {
                    writeln!(out, "failed {write}").unwrap_or_default();
                    // A system call that there is not.
                    regs.orig_rax = u64::MAX;
                    ptrace::setregs(tid, regs).ok();
                    failing.insert(tid, errno);
                }
            }
        }

        /// Turns a netlink message into one that the kernel acknowledges and does not act on.
        fn keep_from_kernel(&mut self, regs: &user_regs_struct, errno: i32) {
            if let Some(sequence) = self.retype(regs, NLMSG_NOOP) {
                self.refused.insert(sequence, errno);
            }
        }

        /// Gives a netlink message another type. Returns its sequence number.
        fn retype(&mut self, regs: &user_regs_struct, kind: u16) -> Option<u32> {
            let buffer = if regs.orig_rax == 46 {
                self.number(regs.rsi + 16).and_then(|vector| self.number(vector))?
            } else {
                regs.rsi
            };
            let sequence = self.bytes(buffer + 8, 4)?.try_into().ok()?;
            self.poke(buffer + 4, &kind.to_ne_bytes()).then(|| u32::from_ne_bytes(sequence))
        }

        /// Turns the acknowledgement of such a message into an error.
        fn answer(&mut self, regs: &user_regs_struct) {
            const NLMSG_ERROR: u16 = 2;
            let buffer = match regs.orig_rax {
                45 => Some(regs.rsi),
                47 => self.number(regs.rsi + 16).and_then(|vector| self.number(vector)),
                _ => None,
            };
            let length = regs.rax.cast_signed();
            let (Some(buffer), 20..=65_536) = (buffer, length) else { return };
            let Some(bytes) = self.bytes(buffer, 20) else { return };
            let word = |at: usize| {
                u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            };
            if u16::from_ne_bytes([bytes[4], bytes[5]]) == NLMSG_ERROR
                && word(16) == 0
                && let Some(errno) = self.refused.remove(&word(8))
            {
                self.poke(buffer + 16, &(-errno).to_ne_bytes());
            }
        }

        fn poke(&self, address: u64, bytes: &[u8]) -> bool {
            self.memory.as_ref().is_some_and(|memory| memory.write_all_at(bytes, address).is_ok())
        }

        /// Says what a system call writes to the kernel; `None` if nothing that counts.
        fn describe(&mut self, regs: &user_regs_struct) -> Option<String> {
            let (first, second, third) = (regs.rdi, regs.rsi, regs.rdx);
            match regs.orig_rax {
                44 => self.netlink(first, second, third),
                46 => {
                    // The first buffer of a `msghdr`.
                    let vector = self.number(second + 16)?;
                    let (buffer, length) = (self.number(vector)?, self.number(vector + 8)?);
                    self.netlink(first, buffer, length)
                }
                82 => self.path("rename", first),
                83 => self.path("mkdir", first),
                84 => self.path("rmdir", first),
                87 => self.path("unlink", first),
                165 => self.path("mount", second),
                258 => self.path("mkdir", second),
                263 => self.path("unlink", second),
                264 | 316 => self.path("rename", second),
                321 => self.bpf(first, second),
                _ => None,
            }
        }

        fn bpf(&mut self, command: u64, attr: u64) -> Option<String> {
            Some(match command {
                0 => format!("create map {}", self.text(attr + 28, 16)?),
                2 => format!("update {}", self.map(attr)?),
                3 => format!("delete {}", self.map(attr)?),
                5 => format!("load program {}", self.text(attr + 48, 16)?),
                6 => {
                    let path = self.number(attr)?;
                    let path = self.text(path, 4096)?;
                    format!("pin {}", path.rsplit('/').next().unwrap_or_default())
                }
                8 | 9 => "attach or detach a program".to_owned(),
                18 => "load btf".to_owned(),
                22 => format!("freeze {}", self.map(attr)?),
                28 => "create link".to_owned(),
                29 => "update link".to_owned(),
                34 => "detach link".to_owned(),
                _ => return None,
            })
        }

        fn netlink(&mut self, fd: u64, buffer: u64, length: u64) -> Option<String> {
            const RTM_GETLINK: u16 = 18;
            if length < 16 || !self.is_netlink(fd) {
                return None;
            }
            let bytes = self.bytes(buffer, usize::try_from(length.min(4096)).ok()?)?;
            let short =
                |at: usize| Some(u16::from_ne_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
            let word = |at: usize| Some(u32::from(short(at)?) | u32::from(short(at + 2)?) << 16);
            let (kind, flags) = (short(4)?, short(6)?);
            if kind == RTM_GETLINK {
                return Some(LOOK.to_owned());
            }
            // Of each four message types, the third asks.
            if kind < 16 || kind % 4 == 2 {
                return None;
            }
            let create = flags & 0x400 != 0;
            let mut attributes = Vec::new();
            let mut at = 32;
            while let (Some(length), Some(kind)) = (short(at), short(at + 2)) {
                attributes.push(kind & 0x3fff);
                at += usize::from(length.max(4)).next_multiple_of(4);
            }
            let has = |kind: u16| attributes.contains(&kind);
            Some(match kind {
                16 if create && has(10) => "create device".to_owned(),
                16 if create => "create bridge".to_owned(),
                16 | 19 if word(28)? & 1 != 0 => {
                    (if word(24)? & 1 == 0 { "set link down" } else { "set link up" }).to_owned()
                }
                16 | 19 if has(4) => "set mtu".to_owned(),
                16 | 19 if has(10) => "set master".to_owned(),
                16 | 19 if has(20) => "set alias".to_owned(),
                16 | 19 if has(3) => "set name".to_owned(),
                16 | 19 => "change link".to_owned(),
                17 => "delete link".to_owned(),
                36 => "create qdisc".to_owned(),
                44 => "create filter".to_owned(),
                45 => "delete filter".to_owned(),
                other => format!("netlink message {other}"),
            })
        }

        fn is_netlink(&mut self, fd: u64) -> bool {
            let link = fs::read_link(format!("/proc/{}/fd/{fd}", self.process)).unwrap_or_default();
            let link = link.to_string_lossy();
            let Some(inode) = link.strip_prefix("socket:[").and_then(|l| l.strip_suffix(']'))
            else {
                return false;
            };
            if !self.netlink.contains(inode) {
                // Inodes of sockets that are gone are not given out again soon.
                let path = format!("/proc/{}/net/netlink", self.process);
                let text = fs::read_to_string(path).unwrap_or_default();
                self.netlink.extend(
                    text.lines()
                        .filter_map(|line| line.split_whitespace().last().map(str::to_owned)),
                );
            }
            self.netlink.contains(inode)
        }

        /// The name of the map whose descriptor stands at an address.
        fn map(&mut self, address: u64) -> Option<String> {
            let fd = u32::try_from(self.number(address)? & u64::from(u32::MAX)).ok()?;
            let path = format!("/proc/{}/fdinfo/{fd}", self.process);
            let text = fs::read_to_string(path).ok()?;
            let id = text.lines().find_map(|line| line.strip_prefix("map_id:"))?;
            let id: u32 = id.trim().parse().ok()?;
            let name = self.maps.entry(id).or_insert_with(|| {
                let info = MapData::from_id(id).and_then(|map| map.info());
                let name = info.ok().and_then(|info| info.name_as_str().map(str::to_owned));
                name.unwrap_or_else(|| "a map".to_owned())
            });
            Some(name.clone())
        }

        /// Only what happens on the BPF file system counts.
        fn path(&mut self, call: &str, address: u64) -> Option<String> {
            let path = self.text(address, 4096)?;
            let inside = path.strip_prefix("/sys/fs/bpf")?;
            Some(format!("{call} {}", inside.rsplit('/').next().unwrap_or_default()))
        }

        fn number(&mut self, address: u64) -> Option<u64> {
            Some(u64::from_ne_bytes(self.bytes(address, 8)?.try_into().ok()?))
        }

        /// The text at an address, to its zero byte.
        fn text(&mut self, address: u64, limit: usize) -> Option<String> {
            let mut text = Vec::new();
            while text.len() < limit {
                let byte = self.bytes(address + text.len() as u64, 1)?[0];
                if byte == 0 {
                    break;
                }
                text.push(byte);
            }
            Some(String::from_utf8_lossy(&text).into_owned())
        }

        fn bytes(&mut self, address: u64, length: usize) -> Option<Vec<u8>> {
            let mut bytes = vec![0; length];
            if let Some(memory) = &self.memory
                && memory.read_exact_at(&mut bytes, address).is_ok()
            {
                return Some(bytes);
            }
            // Another memory since it has become another program.
            let path = format!("/proc/{}/mem", self.process);
            self.memory = File::options().read(true).write(true).open(path).ok();
            self.memory.as_ref()?.read_exact_at(&mut bytes, address).ok()?;
            Some(bytes)
        }
    }
}

fn main() -> std::process::ExitCode {
    let pid = std::env::args().nth(1).and_then(|text| text.parse::<i32>().ok());
    #[cfg(target_arch = "x86_64")]
    let result = pid.ok_or_else(|| "usage: saboteur PID".to_owned()).and_then(trace::run);
    #[cfg(not(target_arch = "x86_64"))]
    let result = Err::<(), _>(format!("saboteur knows x86_64 alone; {pid:?} goes on untouched"));
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("saboteur: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
