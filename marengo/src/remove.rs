//! `marengo remove`: takes away the data plane that a daemon left in place.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    cli::Output,
    config::RemoveConfig,
    failure::{Failure, Kind, OrFailure as _},
    kernel::{self, bpf},
    preflight,
};

/// What was removed.
#[derive(Debug, Serialize)]
struct Removed {
    device: Option<String>,
    pin_dirs: Vec<PathBuf>,
}

/// Removes the device, the programs and the maps of a bridge, unless a daemon runs on it.
pub(crate) async fn run(config: &RemoveConfig, output: Output) -> Result<(), Failure> {
    let mut lock = preflight::lock_for_removal(&config.bridge)?;
    let leftovers =
        kernel::leftovers(&config.device, &config.pin_dir).await.or_failure(Kind::Failed)?;
    if leftovers.foreign_device {
        let message = format!("the link {} was not made by Marengo: it is left", config.device);
        return Err(Failure::new(Kind::Foreign, message));
    }
    for dir in &leftovers.pin_dirs {
        bpf::refuse_foreign(dir).or_failure(Kind::Foreign)?;
        lock.hold_pin_dir(dir)?;
    }
    kernel::remove(&config.bridge, &config.device, &leftovers)
        .await
        .context("failed to remove what a daemon left")?;
    let removed = Removed {
        device: leftovers.has_device.then(|| config.device.to_string()),
        pin_dirs: leftovers.pin_dirs,
    };
    let text = if output.json {
        serde_json::to_string_pretty(&removed).or_failure(Kind::Failed)? + "\n"
    } else {
        removed.text()
    };
    io::stdout().lock().write_all(text.as_bytes()).or_failure(Kind::Failed)
}

impl Removed {
    fn text(&self) -> String {
        let device = self.device.iter().map(|device| format!("removed the device {device}\n"));
        let pins = self.pin_dirs.iter();
        let pins = pins.map(|dir| format!("removed programs and maps in {}\n", dir.display()));
        let text: String = device.chain(pins).collect();
        if text.is_empty() { "there was nothing to remove\n".to_owned() } else { text }
    }
}
