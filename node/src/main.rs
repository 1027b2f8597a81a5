//! `althing-node`: one member of a replicated, etcd-compatible key-value database.

use althing_node::config::{Config, ConfigError, RunArgs};
use althing_node::inspect::{inspect, render};
use althing_node::node::Node;
use althing_node::telemetry::Telemetry;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
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
    /// Print what a volume holds and what a start would do with it; changes nothing
    Inspect(InspectArgs),
    /// Print the version
    Version,
}

/// Flags of `althing-node inspect`.
#[derive(Args)]
struct InspectArgs {
    /// Directory of the volume
    #[arg(long, env = "ALTHING_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Where a copy of the state may be opened for a look, which takes as much room as the state [default: the place for temporary files]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

fn look(args: &InspectArgs) -> ExitCode {
    let scratch = args.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let report = match inspect(&args.data_dir, &scratch) {
        Ok(report) => report,
        Err(error) => {
            eprintln!(
                "althing-node: cannot list {}: {error}; is the volume mounted there?",
                args.data_dir.display()
            );
            return ExitCode::FAILURE;
        }
    };
    match args.output {
        Output::Table => print!("{}", render(&report)),
        Output::Json => match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("althing-node: cannot write the report: {error}");
                return ExitCode::FAILURE;
            }
        },
    }
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Version => {
            println!("althing-node {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Command::Inspect(args) => look(&args),
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
        telemetry.export_metrics(node.shared());
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
