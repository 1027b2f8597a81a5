//! The wire types and services, generated from `proto/` by `cargo xtask codegen`. Nothing here is written by hand.

/// Keys, as `mvccpb` defines them.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::wildcard_enum_match_arm
)]
pub mod mvccpb {
    include!("generated/mvccpb.rs");
}

/// Requests, answers and services, as `etcdserverpb` defines them.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::wildcard_enum_match_arm
)]
pub mod etcdserverpb {
    include!("generated/etcdserverpb.rs");
}
