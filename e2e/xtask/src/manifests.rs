//! `cargo xtask manifests`: `manifests/install.yaml`, rendered from the chart, for people without Helm.

use std::path::PathBuf;
use std::process::Command;

use althing_e2e::command::run;
use althing_e2e::parts::Parts;
use althing_e2e::{Error, Result, paths};

const NAMESPACE: &str = "althing-system";

/// Says where the file comes from, and brings the namespace that `helm --create-namespace` would make.
const HEADER: &str = "# Rendered from charts/althing by `cargo xtask manifests`; do not edit.\n---\n\
                      apiVersion: v1\nkind: Namespace\nmetadata:\n  name: althing-system\n";

/// Writes the file.
///
/// # Errors
/// If Helm refuses the chart.
pub(crate) fn write() -> Result<()> {
    let path = file();
    std::fs::write(&path, render()?).map_err(Error::io("write", &path))
}

/// Fails if the file is not what the chart renders to now, or the chart is not what Helm likes.
///
/// # Errors
/// See above.
pub(crate) fn check() -> Result<()> {
    let path = file();
    let present = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    if present == render()? {
        return Ok(());
    }
    Err(Error::refused(
        format!("{} is not what the chart renders to", path.display()),
        "run `cargo xtask manifests` and commit the result",
    ))
}

fn render() -> Result<String> {
    let chart = paths::checkout().join("charts/althing");
    let helm = Parts::build_family("helm")?.path("helm");
    run(Command::new(&helm).args(["lint", "--strict"]).arg(&chart))?;
    let rendered = run(Command::new(&helm).args(["template", "althing"]).arg(&chart).args([
        "--namespace",
        NAMESPACE,
        "--include-crds",
    ]))?;
    Ok(format!("{HEADER}{rendered}"))
}

fn file() -> PathBuf {
    paths::checkout().join("manifests/install.yaml")
}
