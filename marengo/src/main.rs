//! The `marengo` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    marengo::main()
}
