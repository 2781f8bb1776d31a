//! The control socket: a stale one is replaced, a live one is not.

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt as _, net::UnixListener, net::UnixStream},
    path::PathBuf,
};

use nix::sys::stat::{Mode, umask};

use super::lock::peer;
use crate::{
    failure::{Failure, Kind},
    values::SocketPath,
};

/// The bound socket.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    pub listener: UnixListener,
    pub file: SocketFile,
}

/// The socket's file, which goes when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

/// Binds the socket with mode 0660.
pub(super) fn bind(socket: &SocketPath) -> Result<ControlSocket, Failure> {
    let path = socket.as_path();
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            let message = format!(
                "{} exists and is no socket; remove it, or choose another path with --socket",
                path.display()
            );
            return Err(Failure::new(Kind::InUse, message));
        }
        match UnixStream::connect(path) {
            Ok(stream) => {
                let who = peer(&stream).unwrap_or_default();
                let message = format!(
                    "the control socket {} is in use by another process{who}; stop it, or choose \
                     another path with --socket",
                    path.display()
                );
                return Err(Failure::new(Kind::InUse, message));
            }
            // Nobody listens: it was left by one who could not clean up.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).ok();
            }
            Err(error) => {
                let message =
                    format!("failed to look at the control socket {}: {error}", path.display());
                return Err(Failure::new(Kind::InUse, message));
            }
        }
    }
    // The file has its mode from the first moment; nothing else creates files meanwhile.
    let before = umask(Mode::from_bits_truncate(0o117));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    match listener {
        Ok(listener) => Ok(ControlSocket { listener, file: SocketFile(path.to_owned()) }),
        Err(error) => {
            let message = format!(
                "failed to make the control socket {}: {error}; choose another path with --socket",
                path.display()
            );
            Err(Failure::new(Kind::Failed, message))
        }
    }
}
