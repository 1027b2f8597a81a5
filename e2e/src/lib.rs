//! Tests of Althing against real processes and a real Kubernetes, and what they stand on: a bed ([`bed`]) that boots
//! Kubernetes on one machine from pinned parts ([`parts`]), images without a Docker daemon ([`image`]), faults
//! ([`bed::faults`]) and clients whose history is judged (`workload`).
//! `chaos` needs no Kubernetes: real members on loopback under faults; nor does [`mod@bench`], which compares speeds with etcd.
//!
//! All of it is shell: it reads clocks, waits and starts processes. It is not part of any program that is shipped, and
//! knows nothing about how Althing works inside.
#![allow(clippy::disallowed_methods, reason = "a test bed waits for real processes")]

pub mod bed;
pub mod bench;
mod cgroup;
#[cfg(feature = "workload")]
pub mod chaos;
#[cfg(feature = "observability")]
pub mod chart;
pub mod command;
#[cfg(feature = "observability")]
pub mod discovery;
pub mod error;
pub mod host;
pub mod image;
pub mod machine;
#[cfg(feature = "observability")]
pub mod observability;
pub mod parts;
pub mod paths;
mod preload;
pub mod process;
pub mod progress;
#[cfg(feature = "observability")]
pub mod prometheus;
#[cfg(feature = "observability")]
pub mod promql;
#[cfg(feature = "workload")]
pub mod workload;

pub use error::{Error, Result};
