//! The whole loop against an API server and members in memory: the end state is asserted, not the order of calls.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::result_large_err,
    reason = "a failing step is the test's failure; JSON values and HTTP responses are not our types"
)]

mod api_server;
mod bed;
mod layouts;
mod members;
mod scenarios;
mod shards;
