//! Why the program ends, and the exit code that says so.

use std::{fmt, process::ExitCode};

/// What kind of thing went wrong. The codes are documented in the README and never change meaning.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// Something failed while the program ran.
    Failed,
    /// No daemon answers on the control socket.
    NotRunning,
    /// A port or the socket is somebody else's.
    InUse,
    /// A link or a pin directory with our name is not ours.
    Foreign,
    /// Another daemon has this bridge or this pin directory.
    AnotherDaemon,
    /// An address is not this host's, or none was found.
    Address,
    /// The kernel lacks something.
    Kernel,
    /// The process lacks a capability.
    Permission,
    /// The configuration is wrong.
    Config,
}

impl Kind {
    /// The exit code. 2, wrong usage, is clap's; 3 is that of the LSB for "not running", 77 and 78 are those of
    /// sysexits.h.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::NotRunning => 3,
            Self::InUse => 10,
            Self::Foreign => 11,
            Self::AnotherDaemon => 12,
            Self::Address => 13,
            Self::Kernel => 14,
            Self::Permission => 77,
            Self::Config => 78,
        }
    }
}

/// The end of the program: a kind, and one sentence that names the thing and the remedy.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    error: anyhow::Error,
}

impl Failure {
    /// Says what went wrong.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, error: anyhow::Error::msg(message.into()) }
    }

    /// The exit code.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind.code())
    }

    /// The kind.
    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { kind: Kind::Failed, error }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

/// Gives an error a kind.
pub(crate) trait OrFailure<T> {
    /// The error becomes a [`Failure`] of this kind.
    fn or_failure(self, kind: Kind) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrFailure<T> for Result<T, E> {
    fn or_failure(self, kind: Kind) -> Result<T, Failure> {
        self.map_err(|error| Failure { kind, error: error.into() })
    }
}
