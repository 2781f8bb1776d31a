//! A clock that rings once.
//!
//! The runtime keeps its timers in a wheel of coarse and fine slots: who sleeps for more than 64 ms is
//! woken once for the coarse slot, to sleep again, and once for the deadline. For a daemon that
//! sleeps most of the time that is every second of its wakes. The kernel's timer wakes it once.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::{
    io::unix::AsyncFd,
    time::{sleep, sleep_until},
};
use tracing::debug;

/// A timer of the kernel's; where there is none to be had, the runtime's.
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: Option<AsyncFd<Timer>>,
    /// When the kernel's timer rings.
    set: Option<Instant>,
}

/// The descriptor; it is closed with its owner.
#[derive(Debug)]
struct Timer(TimerFd);

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for Timer {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Alarm {
    /// Makes one that is not set. To be called inside the runtime.
    pub(crate) fn new() -> Self {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(std::io::Error::from);
        let timer = timer.and_then(|timer| {
            // SAFETY: the timer owns its descriptor, and the `AsyncFd` drops it after its own
            // registration.
            #[expect(unsafe_code, reason = "the safe constructor does not exist yet")]
            let registered = unsafe { AsyncFd::register(Timer(timer)) };
            registered.map_err(std::io::Error::from)
        });
        let timer = timer.inspect_err(|error| debug!(%error, "no timer of the kernel's")).ok();
        Self { timer, set: None }
    }

    /// Waits until then. May be cancelled, and called anew with another time.
    pub(crate) async fn ring(&mut self, deadline: Instant) {
        let Some(timer) = &self.timer else { return sleep_until(deadline.into()).await };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            if self.set != Some(deadline) {
                let expiration = Expiration::OneShot(TimeSpec::from_duration(left));
                if timer.get_ref().0.set(expiration, TimerSetTimeFlags::empty()).is_err() {
                    return sleep(left).await;
                }
                self.set = Some(deadline);
            }
            match timer.readable().await {
                Ok(mut guard) => guard.clear_ready(),
                Err(_shutting_down) => return sleep(Duration::from_secs(1)).await,
            }
            // It has rung, for this deadline or for one of before.
            timer.get_ref().0.wait().ok();
            self.set = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test);
    }

    #[test]
    fn it_rings_at_its_time_and_not_before() {
        run(async {
            let mut alarm = Alarm::new();
            assert!(alarm.timer.is_some());
            for millis in [1, 100, 0, 150] {
                let deadline = Instant::now() + Duration::from_millis(millis);
                alarm.ring(deadline).await;
                let late = Instant::now().checked_duration_since(deadline);
                assert!(late.is_some_and(|late| late < Duration::from_secs(2)), "{late:?}");
            }
        });
    }

    #[test]
    fn it_can_be_set_anew_before_it_rings() {
        run(async {
            let mut alarm = Alarm::new();
            let far = Instant::now() + Duration::from_mins(1);
            let soon = Duration::from_millis(20);
            assert!(tokio::time::timeout(soon, alarm.ring(far)).await.is_err());

            let near = Instant::now() + Duration::from_millis(50);
            alarm.ring(near).await;
            assert!(Instant::now() >= near);

            // One that has rung unheard does not ring for the next deadline.
            let missed = Instant::now() + Duration::from_millis(10);
            assert!(tokio::time::timeout(Duration::ZERO, alarm.ring(missed)).await.is_err());
            std::thread::sleep(Duration::from_millis(30));
            let later = Instant::now() + Duration::from_millis(80);
            alarm.ring(later).await;
            assert!(Instant::now() >= later);
        });
    }
}
