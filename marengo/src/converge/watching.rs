//! The kernel's reports, and what becomes of them when their connection ends.

use std::{
    future,
    time::{Duration, Instant},
};

use marengo_core::settings::DataPlane;
use tracing::{debug, info, warn};

use crate::{
    kernel::{
        Monitor,
        monitor::{self, Changes},
    },
    tasks::Spawner,
};

/// Between two tries to open a connection.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// Where the kernel's reports come from.
#[derive(Debug)]
pub(super) enum Watching {
    Reports(Monitor),
    /// The connection ended; another one is to be opened at this time.
    Again(Instant),
}

impl Watching {
    /// The connection ended.
    pub(super) fn ended(now: Instant) -> Self {
        warn!(
            "the kernel's reports have ended; what changes is found by looking until they are back"
        );
        Self::Again(now)
    }

    /// Opens a connection, or arranges for the next try.
    pub(super) fn open(data_plane: &DataPlane, spawner: &Spawner, now: Instant) -> Self {
        match monitor::spawn(spawner, data_plane.bridge.clone(), data_plane.device.clone()) {
            Ok(monitor) => {
                info!("the kernel's reports are back");
                Self::Reports(monitor)
            }
            Err(error) => {
                debug!(error = format!("{error:#}"), "the kernel's reports cannot be read");
                Self::Again(now + TRY_EVERY)
            }
        }
    }

    /// What has changed, when something has; `None` when the connection ends. Where there is none,
    /// this waits without end.
    pub(super) async fn changes(&mut self) -> Option<Changes> {
        match self {
            Self::Reports(monitor) => {
                monitor.changed().await.ok()?;
                Some(*monitor.borrow_and_update())
            }
            Self::Again(_) => future::pending().await,
        }
    }

    /// When to open a connection.
    pub(super) fn again_at(&self) -> Option<Instant> {
        match self {
            Self::Reports(_) => None,
            Self::Again(at) => Some(*at),
        }
    }
}
