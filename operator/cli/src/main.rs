//! `althing`: clusters on this machine with `up`, and the same commands for Kubernetes, also as `kubectl althing`.
//!
//! Contract: it holds no state of its own; what it shows is what the supervisor or the API server says. Local mode
//! (`local`) runs the planner of `althing-plan` over processes and folders. An error says what failed, where, and the
//! next step, on standard error, and ends the program with status 1 (2 for a command line that cannot be read).
//!
//! Not here: deciding what to do about a cluster (`althing-plan`), what is valid (`althing-crds`), serving keys
//! (`althing-node`).

// A shell: it owns the clock, the terminal and the processes. The modules that decide say in their first line that they are pure.
#![allow(clippy::disallowed_methods)]

mod args;
mod error;
mod kubernetes;
mod local;
mod manifest;
mod run;
mod schema;
mod target;
mod ui;
mod view;

use std::process::ExitCode;

fn main() -> ExitCode {
    match run::run() {
        Ok(()) => ExitCode::SUCCESS,
        // `althing get | head -1`: the reader has what it wanted.
        Err(error::Error::Print(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
