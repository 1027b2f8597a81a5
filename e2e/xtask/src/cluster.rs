//! `cargo xtask cluster`: a bed for a person.

use std::process::ExitCode;

use althing_e2e::bed::{Bed, BedName, Lifetime};
use althing_e2e::command::{run as run_program, run_inherited};
use althing_e2e::parts::Parts;
use althing_e2e::{Error, Result, host};
use clap::{Args, Subcommand};

#[derive(Subcommand)]
pub(crate) enum Task {
    /// Build what is missing, boot Kubernetes, wait until it is ready.
    Up(Which),
    /// End it and remove its state.
    Down(Which),
    /// Open a shell, or run a command, that sees the cluster: its network, kubectl, helm, etcdctl, KUBECONFIG.
    Shell {
        #[command(flatten)]
        which: Which,
        /// A command instead of a shell.
        #[arg(trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// What runs of it.
    Status(Which),
}

#[derive(Args)]
pub(crate) struct Which {
    /// Which cluster, if there are several.
    #[arg(long, default_value = "dev")]
    pub(crate) name: BedName,
}

pub(crate) fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Up(which) => up(&which.name),
        Task::Down(which) => find(&which.name)?.down(),
        Task::Shell { which, command } => return shell(&find(&which.name)?, &command),
        Task::Status(which) => status(&find(&which.name)?),
    }
    .map(|()| ExitCode::SUCCESS)
}

fn up(name: &BedName) -> Result<()> {
    host::require_root()?;
    host::install_packages()?;
    let parts = Parts::build()?;
    let bed = Bed::up(name, Lifetime::Kept, &parts)?;
    println!("{}", run_program(bed.kubectl()?.args(["get", "nodes", "-o", "wide"]))?);
    println!(
        "`cargo xtask cluster shell` opens a shell in it; its state and logs are in {}",
        bed.folder().display()
    );
    Ok(())
}

fn shell(bed: &Bed, command: &[String]) -> Result<ExitCode> {
    let mut shell = match command {
        [] => {
            println!(
                "kubectl, helm and etcdctl are those of cluster `{}`; leave with Ctrl-D",
                bed.name()
            );
            bed.command(std::env::var_os("SHELL").unwrap_or_else(|| "sh".into()))?
        }
        [program, args @ ..] => {
            let mut shell = bed.command(program)?;
            shell.args(args);
            shell
        }
    };
    let status = shell.status().map_err(Error::io("run", "nsenter"))?;
    // A command's own status is the answer; a shell that was left is no failure of ours.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(if command.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(code)
    })
}

fn status(bed: &Bed) -> Result<()> {
    for (machine, process, runs) in bed.processes() {
        println!("{machine:8} {process:24} {}", if runs { "runs" } else { "ended" });
    }
    println!();
    run_inherited(
        bed.kubectl()?
            .args(["get", "nodes,pods", "--all-namespaces", "-o", "wide"]),
    )
}

fn find(name: &BedName) -> Result<Bed> {
    Bed::find(name)?.ok_or_else(|| {
        Error::refused(
            format!("there is no cluster `{name}`"),
            format!("start it with `cargo xtask cluster up --name {name}`"),
        )
    })
}
