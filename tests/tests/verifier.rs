//! The kernel's verifier takes the programs, and logging costs nothing where it is off.

use std::io::Write as _;

use marengo_common::ProgramName;
use marengo_tests::{object::Object, require_root};

const OFF: u8 = 0;
const DEBUG: u8 = 4;

/// The verifier gives up at a million. A jump towards that is a question for review.
const VERIFIED_LIMIT: u32 = 250_000;

#[test]
fn programs_verify_with_and_without_logging_which_costs_nothing_when_off() {
    require_root!();
    let (silent, logging) = (Object::load(OFF), Object::load(DEBUG));

    for name in [ProgramName::INGRESS, ProgramName::EGRESS] {
        let (off, on) = (silent.size(name), logging.size(name));
        // Past libtest's capture: the numbers belong into every run's output.
        writeln!(
            std::io::stderr(),
            "{name}: {} instructions verified, {} bytes; with logging {} and {}",
            off.verified,
            off.translated,
            on.verified,
            on.translated
        )
        .unwrap();
        assert!(off.translated < on.translated, "{name}: log statements are still there");
        assert!(off.verified < VERIFIED_LIMIT && on.verified < VERIFIED_LIMIT, "{name}");
    }
}
