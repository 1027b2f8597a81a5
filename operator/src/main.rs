//! `althing-operator`: keeps Althing clusters in Kubernetes as declared.
//!
//! Contract: a reconciliation is one pass of dereference -> validate -> plan -> apply -> update status. It never waits, never
//! edits a Raft configuration (it asks the leader), and survives being killed between any two steps. What to do is decided
//! by `althing-plan`; objects are built by pure functions (`build`); this crate moves bytes.
//!
//! Not here: rules of the resources (`althing-crds`), decisions (`althing-plan`), anything inside a member (`althing-node`).

#![allow(
    clippy::disallowed_methods,
    reason = "a shell: it reads the clock and draws cluster ids for the pure crates"
)]

mod admin;
mod apply;
mod build;
mod cluster_controller;
mod context;
mod error;
mod events;
mod execute;
mod layout;
mod lease;
mod metrics;
mod observe;
mod placement;
#[cfg(test)]
mod rbac;
mod run;
mod serve;
mod settings;
#[cfg(test)]
mod tests;
mod update_status;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::settings::{LogFormat, Settings};

#[tokio::main]
async fn main() -> ExitCode {
    let settings = Settings::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    match settings.log_format {
        LogFormat::Text => tracing_subscriber::fmt().with_env_filter(filter).init(),
        LogFormat::Json => tracing_subscriber::fmt().json().with_env_filter(filter).init(),
    }
    #[cfg(feature = "failpoints")]
    let _scenario = {
        // A crash point is a crash of the process, not of one task.
        std::panic::set_hook(Box::new(|panic| {
            eprintln!("crash point: {panic}");
            std::process::abort();
        }));
        fail::FailScenario::setup()
    };
    match run::run(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the operator ends");
            ExitCode::FAILURE
        }
    }
}
