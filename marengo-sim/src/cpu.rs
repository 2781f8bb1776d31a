//! The processor that a daemon gets: all it wants, none, or a slice now and then.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;

/// Datagrams that a socket keeps for a process that does not read: 208 KiB, as the kernel accounts
/// for small ones.
pub(crate) const SOCKET_BUFFER: usize = 277;

/// Datagrams that the daemon takes before it looks at its deadlines.
pub(crate) const BATCH: usize = 64;

/// What a daemon does with one datagram or one deadline, in processor time.
const COST: Duration = Duration::from_micros(100);

/// How much of a processor a daemon gets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Cpu {
    /// Whatever it wants, at once.
    #[default]
    Full,
    /// None: SIGSTOP.
    Stopped,
    /// `run` in each `period`, as a cgroup with a quota gives it.
    Starved {
        /// How often.
        period: Duration,
        /// How much each time.
        run: Duration,
    },
}

impl Cpu {
    /// So many per cent of a processor, in periods of 100 ms as a cgroup has them.
    pub const fn percent(share: u32) -> Self {
        Self::Starved {
            period: Duration::from_millis(100),
            run: Duration::from_millis(share as u64),
        }
    }
}

/// What waits for the processor.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) inbox: VecDeque<(SocketAddr, Bytes)>,
    /// Datagrams taken since the deadlines were looked at.
    pub(crate) since_deadlines: usize,
    /// When the process is woken next, if that is arranged.
    pub(crate) wake_at: Option<Instant>,
    /// Until when the processor is taken by what was done last.
    busy_until: Option<Instant>,
}

impl Waiting {
    /// Keeps a datagram, unless the socket's buffer is full.
    pub(crate) fn keep(&mut self, from: SocketAddr, data: Bytes) {
        if self.inbox.len() < SOCKET_BUFFER {
            self.inbox.push_back((from, data));
        }
    }

    /// When something may be done next, not before `now`; `None` for a process that is stopped.
    pub(crate) fn next_run(&self, cpu: Cpu, start: Instant, now: Instant) -> Option<Instant> {
        match cpu {
            Cpu::Full => Some(now),
            Cpu::Stopped => None,
            Cpu::Starved { period, run } => {
                let at = self.busy_until.map_or(now, |until| until.max(now));
                let into = (at - start).as_nanos() % period.as_nanos();
                let into = Duration::from_nanos(u64::try_from(into).unwrap_or(0));
                Some(if into < run { at } else { at + period.saturating_sub(into) })
            }
        }
    }

    /// Something is done at `now`.
    pub(crate) fn spend(&mut self, now: Instant) {
        self.busy_until = Some(now + COST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ms;

    #[test]
    fn a_starved_process_runs_in_its_slices_alone() {
        #[expect(clippy::disallowed_methods, reason = "a test may start anywhere")]
        let start = Instant::now();
        let mut waiting = Waiting::default();
        let cpu = Cpu::percent(5);

        assert_eq!(waiting.next_run(cpu, start, start + ms(3)), Some(start + ms(3)));
        assert_eq!(waiting.next_run(cpu, start, start + ms(5)), Some(start + ms(100)));
        assert_eq!(waiting.next_run(Cpu::Stopped, start, start), None);

        waiting.spend(start + ms(4) + Duration::from_micros(950));
        assert_eq!(waiting.next_run(cpu, start, start + ms(4)), Some(start + ms(100)));
    }
}
