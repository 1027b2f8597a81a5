//! Small libraries in C that stand between a process and libc: compiled here, and preloaded by those that start the process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::run;
use crate::error::{Error, Result};

/// Compiles `source` into `folder`, as `<name>.so` beside its text, and returns the library.
///
/// # Errors
/// If there is no C compiler.
pub(crate) fn compile(folder: &Path, name: &str, source: &str) -> Result<PathBuf> {
    let (text, library) = (folder.join(format!("{name}.c")), folder.join(format!("{name}.so")));
    fs::write(&text, source).map_err(Error::io("write", &text))?;
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"])
        .arg(&library)
        .arg(&text)
        .arg("-ldl");
    run(&mut compiler)?;
    Ok(library)
}
