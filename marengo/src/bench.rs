//! Hidden commands that measure the real code: `cargo xtask bench` runs them.

use crate::{cli::Output, failure::Failure};

pub(crate) async fn program(_peers: u32, _output: Output) -> Result<(), Failure> {
    Ok(())
}

pub(crate) fn members(_members: u32, _output: Output) -> Result<(), Failure> {
    Ok(())
}
