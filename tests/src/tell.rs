//! Figures that belong into the output of every run, of those that pass as well.

use std::io::Write as _;

/// Writes a line to stderr, past libtest's capture.
pub fn tell(line: impl std::fmt::Display) {
    // Nobody to read it is no failure of a test.
    writeln!(std::io::stderr().lock(), "{line}").ok();
}
