//! One seed, and what broke if something did.

use std::{
    cell::RefCell,
    panic::{self, AssertUnwindSafe},
};

use marengo_sim::chaos::{self, Report, Settings};

thread_local! {
    /// What the last panic of this thread said.
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps what panics say, instead of printing it. To be called once, before any attempt.
pub(super) fn keep_what_panics_say() {
    panic::set_hook(Box::new(|info| {
        SAID.with_borrow_mut(|said| {
            *said = match (info.payload().downcast_ref::<String>(), info.location()) {
                (Some(text), _) if text.starts_with("invariant") || text.starts_with("goal") => {
                    text.clone()
                }
                _ => info.to_string(),
            };
        });
    }));
}

/// Runs a seed; the error is which promise was broken, and the state of the world then.
pub(super) fn attempt(seed: u64, settings: &Settings) -> Result<Report, String> {
    panic::catch_unwind(AssertUnwindSafe(|| chaos::run(seed, settings)))
        .map_err(|_panic| SAID.with_borrow(Clone::clone))
}
