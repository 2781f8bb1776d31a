//! The end of a test that does not end.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

/// Ends the process when it is not dropped in time.
#[derive(Debug)]
pub(crate) struct Watchdog {
    done: Arc<(Mutex<bool>, Condvar)>,
}

impl Watchdog {
    /// Runs `last_words` and aborts after `limit`. The janitor then removes what is there.
    pub(crate) fn start(limit: Duration, last_words: impl FnOnce() + Send + 'static) -> Self {
        let done = Arc::new((Mutex::new(false), Condvar::new()));
        let waiting = Arc::clone(&done);
        let test = thread::current().name().unwrap_or("?").to_owned();
        thread::spawn(move || {
            let (flag, wake) = &*waiting;
            let guard = flag.lock().unwrap_or_else(PoisonError::into_inner);
            let (guard, _) = wake
                .wait_timeout_while(guard, limit, |done| !*done)
                .unwrap_or_else(PoisonError::into_inner);
            if *guard {
                return;
            }
            eprintln!("\nTIMEOUT: {test} ran for more than {} s", limit.as_secs());
            last_words();
            std::process::abort();
        });
        Self { done }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let (flag, wake) = &*self.done;
        *flag.lock().unwrap_or_else(PoisonError::into_inner) = true;
        wake.notify_all();
    }
}
