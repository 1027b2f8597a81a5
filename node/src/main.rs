//! `althing-node`: one member of a replicated, etcd-compatible key-value database.

use althing_node::config::{Config, ConfigError, RunArgs};
use althing_node::node::Node;
use althing_node::telemetry::Telemetry;
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

// musl's own allocator is many times slower under threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A graceful shutdown that takes longer has hung; Kubernetes would kill the process at 30 s.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(25);

/// One member of an Althing cluster.
#[derive(Parser)]
#[command(name = "althing-node", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a member until SIGTERM or SIGINT
    Run(Box<RunArgs>),
    /// Print the version
    Version,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Version => {
            println!("althing-node {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Command::Run(args) => match settings(&args) {
            Ok(config) => run(config),
            Err(error) => {
                eprintln!("althing-node: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

fn settings(args: &RunArgs) -> Result<Config, ConfigError> {
    let file = args.config.as_ref().map(|path| {
        std::fs::read_to_string(path)
            .map_err(|error| ConfigError(vec![format!("cannot read {}: {error}", path.display())]))
    });
    args.resolve(file.transpose()?.as_deref())
}

fn run(config: Config) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("althing-node: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let telemetry = match Telemetry::start(&config) {
            Ok(telemetry) => telemetry,
            Err(error) => {
                eprintln!("althing-node: {error}");
                return ExitCode::FAILURE;
            }
        };
        let node = match Node::start(config, telemetry.tracer()).await {
            Ok(node) => node,
            Err(error) => {
                tracing::error!(%error, "the node cannot start");
                return ExitCode::FAILURE;
            }
        };
        telemetry.export_metrics(&node.shared().metrics);
        if let Err(error) = stop_signal().await {
            tracing::error!(%error, "cannot listen for signals");
        }
        let ended = tokio::time::timeout(SHUTDOWN_TIMEOUT, node.shutdown()).await;
        tokio::task::block_in_place(|| telemetry.stop());
        if ended.is_err() {
            tracing::error!(
                "the shutdown took longer than {SHUTDOWN_TIMEOUT:?}; the process ends as it is, nothing durable is lost"
            );
            return ExitCode::FAILURE;
        }
        ExitCode::SUCCESS
    })
}

async fn stop_signal() -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
