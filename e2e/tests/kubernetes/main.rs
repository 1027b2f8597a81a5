//! The product on a real Kubernetes of three nodes, as a user works with it: helm, kubectl, etcdctl, and things that
//! break. Run with `cargo xtask e2e [filter]`; by themselves these tests are ignored, for they need the bed.
//!
//! They share one bed and run one after the other, in the order of their modules' names.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failing step is the test's failure; real things take real time"
)]

mod a_install;
mod b_scale;
mod c_faults;
mod d_operator_killed;
mod e_bad_input;
mod f_observability;
mod g_shards;
mod kit;
