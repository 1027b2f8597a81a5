//! One scenario per pitfall of the study (P-numbers), each a sentence about what must not go wrong. Those of the core are here,
//! by theme; the others stand where the rule is kept:
//!
//! | pitfalls | where |
//! |---|---|
//! | P1 to P3 | `pitfalls/reads.rs` |
//! | P4, P5, P23 | `pitfalls/elections.rs` |
//! | P6, P7, P14, P16, P17, P27 to P29 | `pitfalls/log.rs` |
//! | P8 to P12 | `pitfalls/membership.rs`, and `pitfalls/joint.rs` for several members at once |
//! | P13, P15 | `pitfalls/snapshots.rs` |
//! | P18, P19 | `node/wal/tests/pitfalls.rs`, and damage before a later record in `node/wal/tests/log.rs` |
//! | P20 | `node/sim/tests/pitfalls.rs`: a quorum that forgets what was not synced |
//! | P21, P22, P24, P25 | with the leases, whose rules they are |
//! | P26 | not met: no group hibernates yet, every group ticks |
//! | P30 | `node/sim/tests/pitfalls.rs`, and over real sockets `node/tests/three.rs`: a wiped volume is another member |

#![allow(clippy::unwrap_used)]

#[path = "pitfalls/elections.rs"]
mod elections;
#[path = "pitfalls/help.rs"]
mod help;
#[path = "pitfalls/joint.rs"]
mod joint;
mod kit;
#[path = "pitfalls/log.rs"]
mod log;
#[path = "pitfalls/membership.rs"]
mod membership;
#[path = "pitfalls/reads.rs"]
mod reads;
#[path = "pitfalls/snapshots.rs"]
mod snapshots;
