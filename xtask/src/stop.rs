//! One flag that SIGINT, SIGTERM and SIGHUP set and that every wait looks at.
//!
//! The signal itself ends nothing: whoever waits returns [`Interrupted`], the stack unwinds, and the
//! guards that own namespaces and processes tidy up on the way. A second signal sets the same flag
//! again, so it cannot skip that.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// The error of a wait that a signal ended.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Lets the signals set the flag. Called once, at the start.
pub(crate) fn install() -> Result<()> {
    let flag = STOP.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag))
            .with_context(|| format!("failed to install a handler for signal {signal}"))?;
    }
    Ok(())
}

pub(crate) fn requested() -> bool {
    STOP.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Fails with [`Interrupted`] once a signal has come.
pub(crate) fn check() -> Result<()> {
    if requested() { Err(Interrupted.into()) } else { Ok(()) }
}

/// Polls until `ready` gives a value; fails on a signal or after `limit`, naming `what` it waited for.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    wait_for_every(what, limit, Duration::from_millis(20), ready)
}

/// As [`wait_for`], with a pause of one's own between two looks.
pub(crate) fn wait_for_every<T>(
    what: &str,
    limit: Duration,
    pause: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        check()?;
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            anyhow::bail!("gave up after {} s waiting for {what}", limit.as_secs());
        }
        std::thread::sleep(pause);
    }
}
