//! What a single node does; what a cluster does is in `tests/sim`.
