//! One daemon a bridge, and one a pin directory.
//!
//! The bridge's lock is an abstract Unix socket: like the bridge, it belongs to a network namespace,
//! and the kernel frees it whatever becomes of the process. The pin directory is shared by all
//! namespaces, so it has a lock of its own: flock(2) on the directory.

use std::{
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use marengo_core::settings::IfName;
use nix::{
    fcntl::{Flock, FlockArg},
    sys::socket::{getsockopt, sockopt::PeerCredentials},
};

use super::holder;
use crate::{
    failure::{Failure, Kind, OrFailure as _},
    kernel::open_dir,
};

/// Held for as long as the daemon lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _bridge: UnixListener,
    pin_dirs: Vec<(PathBuf, Flock<OwnedFd>)>,
}

impl Lock {
    /// Takes the bridge's lock, or names who has it.
    pub(super) fn take(bridge: &IfName) -> Result<Self, Failure> {
        let name = format!("marengo/{bridge}");
        let address = SocketAddr::from_abstract_name(&name).or_failure(Kind::Failed)?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => Ok(Self { _bridge: listener, pin_dirs: Vec::new() }),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                let who = UnixStream::connect_addr(&address).ok();
                let who = who.and_then(|stream| peer(&stream)).unwrap_or_default();
                let message = format!(
                    "another daemon{who} runs on the bridge {bridge}; stop it, or choose another \
                     bridge with --bridge"
                );
                Err(Failure::new(Kind::AnotherDaemon, message))
            }
            Err(error) => Err(error).or_failure(Kind::Failed),
        }
    }

    /// Takes a pin directory's lock, if the directory is there. Called again when it was made.
    pub(crate) fn hold_pin_dir(&mut self, dir: &Path) -> Result<(), Failure> {
        if self.pin_dirs.iter().any(|(held, _)| held == dir) || !dir.is_dir() {
            return Ok(());
        }
        let fd = open_dir(dir).or_failure(Kind::Failed)?;
        match Flock::lock(fd, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                self.pin_dirs.push((dir.to_owned(), lock));
                Ok(())
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let message = format!(
                    "another daemon uses the pin directory {}; stop it, or choose another with \
                     --pin-dir",
                    dir.display()
                );
                Err(Failure::new(Kind::AnotherDaemon, message))
            }
            Err((_, error)) => Err(anyhow::Error::from(error)
                .context(format!("failed to lock the pin directory {}", dir.display())))
            .or_failure(Kind::Failed),
        }
    }
}

/// Who is at the other end of a Unix socket.
pub(super) fn peer(stream: &UnixStream) -> Option<String> {
    let credentials = getsockopt(stream, PeerCredentials).ok()?;
    let pid = u32::try_from(credentials.pid()).ok()?;
    Some(format!(" ({}, process {pid})", holder::command(pid)))
}
