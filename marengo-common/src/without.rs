//! What a test may take away from the programs. The bits of a constant that the daemon sets when it
//! loads them; in a daemon that is not under test the verifier finds zero, and nothing is left of it.

/// The name of the constant: a `u32`.
pub const WITHOUT: &str = "MARENGO_WITHOUT";
/// A MAC entry is valid whatever its stamp.
pub const WITHOUT_GENERATIONS: u32 = 1 << 0;
/// Every frame moves its source to where it came from, and none to this node.
pub const WITHOUT_MOVES: u32 = 1 << 1;
