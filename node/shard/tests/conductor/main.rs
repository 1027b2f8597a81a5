//! The conductor in a simulated world of members and groups that lose, repeat and delay what they are told.
#![allow(clippy::unwrap_used, reason = "a panic is this test's failure")]

mod effects;
mod group;
mod look;
mod rules;
mod scale;
mod steps;
mod stories;
mod world;
