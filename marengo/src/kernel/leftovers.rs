//! What a daemon left in place on purpose, or could not take away: found and removed without loading a
//! program.

use std::path::{Path, PathBuf};

use anyhow::Result;
use marengo_core::settings::IfName;

use super::{Links, bpf, hooks};

/// What is there to be removed.
#[derive(Debug)]
pub(crate) struct Leftovers {
    /// Whether the device is there.
    pub(crate) has_device: bool,
    /// A link with the device's name is there and is not Marengo's.
    pub(crate) foreign_device: bool,
    /// The directories with pins: the one that was named, and the one that the device names.
    pub(crate) pin_dirs: Vec<PathBuf>,
}

/// Looks for what a daemon left.
pub(crate) async fn leftovers(device: &IfName, pin_dir: &Path) -> Result<Leftovers> {
    let links = Links::open()?;
    let observed = links.observe_device(device).await?;
    let named = links.device_pin_dir(device).await?;
    let mut pin_dirs = vec![pin_dir.to_owned()];
    pin_dirs.extend(named.filter(|named| named != pin_dir));
    pin_dirs.retain(|dir| dir.is_dir());
    Ok(Leftovers {
        has_device: observed.is_some(),
        foreign_device: observed.is_some_and(|observed| !observed.ours),
        pin_dirs,
    })
}

/// Removes it. The device goes first: at no moment is it up without its programs.
pub(crate) async fn remove(bridge: &IfName, device: &IfName, leftovers: &Leftovers) -> Result<()> {
    let links = Links::open()?;
    if leftovers.has_device {
        links.set_down(device).await?;
        links.delete_device(device).await?;
    }
    if let Some(observed) = links.observe_bridge(bridge).await? {
        hooks::remove_bridge_filter(&links, bridge, observed.ifindex).await?;
    }
    for dir in &leftovers.pin_dirs {
        bpf::remove_pins(dir)?;
    }
    Ok(())
}
