//! Images for the bed's nodes.

mod oci;
mod project;

pub use oci::{Image, USER};
pub use project::{Built, PROGRAMS, build};
