//! How things look to a person. Pure: objects in, text out.

pub(crate) mod members;
pub(crate) mod objects;
pub(crate) mod paint;
pub(crate) mod shards;
