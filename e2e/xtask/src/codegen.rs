//! `cargo xtask codegen`: Rust for the `.proto` files of `node/api`, checked in so that nobody needs protoc.
//!
//! The generator (protox parses, tonic-prost-build writes) is behind the feature `codegen`: it would double this
//! task runner's build. Without the feature, `run` starts the same task again with it.

use althing_e2e::paths;
use std::path::Path;

/// Where the `.proto` files are, from the workspace's root.
#[cfg(feature = "codegen")]
const PROTO_DIR: &str = "node/api/proto";
/// Where the generated files go, from the workspace's root.
#[cfg(feature = "codegen")]
const OUT_DIR: &str = "node/api/src/generated";

/// Why no code was generated, or why it differs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodegenError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file or folder.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A `.proto` file is wrong, or no Rust came of it.
    #[cfg(feature = "codegen")]
    #[error("{PROTO_DIR}: {0}")]
    Generate(String),
    /// A checked-in file is not what the generator writes.
    #[cfg(feature = "codegen")]
    #[error("{OUT_DIR}/{0} is not what {PROTO_DIR} says: run `cargo xtask codegen` and commit the result")]
    Drift(String),
    /// The run with the feature did not work.
    #[cfg(not(feature = "codegen"))]
    #[error("`cargo run --package xtask --features codegen` failed: {0}")]
    Rerun(String),
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> CodegenError {
    let path = path.display().to_string();
    move |source| CodegenError::File { path, source }
}

/// Writes the generated files, or with `check` compares them with those checked in.
///
/// # Errors
/// See [`CodegenError`]; with `check`, [`CodegenError::Drift`] names the first file that differs.
#[cfg(not(feature = "codegen"))]
pub(crate) fn run(check: bool) -> Result<(), CodegenError> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(cargo);
    command
        .args([
            "run",
            "--quiet",
            "--package",
            "xtask",
            "--features",
            "codegen",
            "--",
            "codegen",
        ])
        .args(check.then_some("--check"))
        .current_dir(paths::checkout());
    let status = command.status().map_err(file_error(Path::new("cargo")))?;
    if status.success() {
        Ok(())
    } else {
        Err(CodegenError::Rerun(status.to_string()))
    }
}

/// Writes the generated files, or with `check` compares them with those checked in.
///
/// # Errors
/// See [`CodegenError`]; with `check`, [`CodegenError::Drift`] names the first file that differs.
#[cfg(feature = "codegen")]
pub(crate) fn run(check: bool) -> Result<(), CodegenError> {
    // Of this process: two runs at once must not share a folder.
    let fresh = paths::checkout()
        .join(OUT_DIR)
        .join(format!(".fresh-{}", std::process::id()));
    std::fs::create_dir_all(&fresh).map_err(file_error(&fresh))?;
    let outcome = generate(&fresh).and_then(|()| settle(&fresh, check));
    std::fs::remove_dir_all(&fresh).map_err(file_error(&fresh))?;
    outcome
}

/// Writes the files into `out`.
#[cfg(feature = "codegen")]
fn generate(out: &Path) -> Result<(), CodegenError> {
    let failed = |error: &dyn std::fmt::Display| CodegenError::Generate(error.to_string());
    let mut compiler = protox::Compiler::new([paths::checkout().join(PROTO_DIR)]).map_err(|error| failed(&error))?;
    compiler.include_imports(true).include_source_info(true);
    compiler
        .open_files(["kv.proto", "rpc.proto"])
        .map_err(|error| failed(&error))?;
    tonic_prost_build::configure()
        // Values are passed on without a copy, from the socket to the log.
        .bytes(".")
        .emit_rerun_if_changed(false)
        .out_dir(out)
        .compile_fds(compiler.file_descriptor_set())
        .map_err(|error| failed(&error))
}

/// Compares the files of `fresh` with those checked in, and unless `check` is set replaces these.
#[cfg(feature = "codegen")]
fn settle(fresh: &Path, check: bool) -> Result<(), CodegenError> {
    for entry in std::fs::read_dir(fresh).map_err(file_error(fresh))? {
        let source = entry.map_err(file_error(fresh))?.path();
        let name = source
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let text = std::fs::read_to_string(&source).map_err(file_error(&source))?;
        let target = paths::checkout().join(OUT_DIR).join(&name);
        if std::fs::read_to_string(&target).is_ok_and(|present| present == text) {
            continue;
        }
        if check {
            return Err(CodegenError::Drift(name));
        }
        std::fs::write(&target, text).map_err(file_error(&target))?;
    }
    Ok(())
}
