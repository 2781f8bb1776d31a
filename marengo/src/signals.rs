//! The signals that end the daemon.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

/// A signal that asked the daemon to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Asked {
    /// Its name.
    pub signal: &'static str,
    /// Whether it asks to leave the data plane in place whatever `--on-exit` says.
    pub keep: bool,
}

/// The signals that the daemon waits for.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    restart: Signal,
    hangup: Signal,
}

impl Signals {
    /// Starts to catch them.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            // What the unit sends when it is the service manager who starts the daemon again.
            restart: signal(SignalKind::user_defined2())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one that ends the daemon. A hang-up, of the terminal it was started from, does not.
    pub(crate) async fn stop(&mut self) -> Asked {
        let asked = |signal, keep| Asked { signal, keep };
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return asked("SIGTERM", false),
                _ = self.interrupt.recv() => return asked("SIGINT", false),
                _ = self.restart.recv() => return asked("SIGUSR2", true),
                _ = self.hangup.recv() => info!("SIGHUP: there is nothing to read again"),
            }
        }
    }
}
