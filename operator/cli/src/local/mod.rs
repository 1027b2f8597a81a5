//! Clusters on this machine: the same YAML and the same planner, with processes for pods and folders for volumes.
//!
//! Pure: `layout`, `ports`, `restarts`, `declared`, `node_args`, `action`, `status`. The rest moves bytes and signals.

mod action;
mod ask;
pub(crate) mod control;
mod declared;
mod files;
mod hub;
pub(crate) mod layout;
mod layouts;
mod node_args;
mod node_binary;
pub(crate) mod ports;
mod process;
mod restarts;
mod runner;
mod shared;
mod status;
pub(crate) mod supervisor;
mod worker;
