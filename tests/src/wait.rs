//! Waiting for what must happen, never longer than a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Between two looks.
const STEP: Duration = Duration::from_millis(5);

/// Looks until there is something, and returns it. Panics after `limit`, naming `what`.
pub fn until_some<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(STEP);
    }
}

/// Looks until it is so, and returns how long that took. Panics after `limit`, naming `what`.
pub fn until(what: &str, limit: Duration, mut look: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    until_some(what, limit, || look().then_some(()));
    start.elapsed()
}

/// Looks for all of `time`, and panics as soon as it is not so.
pub fn stays(what: &str, time: Duration, mut look: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert!(look(), "after {:?} no longer: {what}", start.elapsed());
        thread::sleep(Duration::from_millis(20));
    }
}
