//! The project's own programs as static binaries and as images.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::Image;
use crate::command::run_inherited;
use crate::error::{Error, Result};
use crate::host::{self, IMAGE_TARGET};
use crate::paths;
use crate::progress::Step;

/// The cargo profile of images: optimised, built in minutes.
const PROFILE: &str = "image";

/// The packages that become images, each with a program of the same name.
pub const PROGRAMS: [&str; 2] = ["althing-node", "althing-operator"];

/// A package's image: its reference, and the archive that holds it.
#[derive(Debug, Clone)]
pub struct Built {
    /// Reference, such as `localhost/althing-node:0.1.0`.
    pub name: String,
    /// Archive for `ctr images import`.
    pub archive: PathBuf,
}

/// Builds static binaries of `packages` and writes an image of each.
///
/// `features` are cargo features, such as `althing-operator/failpoints`.
///
/// # Errors
/// If the target cannot be installed, or a build fails.
pub fn build(packages: &[&str], features: &[&str]) -> Result<Vec<Built>> {
    let checkout = paths::checkout();
    host::install_target(checkout)?;
    // Apart from the developer's own target folder, so that neither throws the other's work away.
    let target = paths::cache()?.join("target");
    let step = Step::begin(format!("building {} for {IMAGE_TARGET}", packages.join(", ")));
    let mut cargo = Command::new("cargo");
    cargo
        .args([
            "build",
            "--locked",
            "--quiet",
            "--profile",
            PROFILE,
            "--target",
            IMAGE_TARGET,
        ])
        .args(packages.iter().flat_map(|package| ["--package", package]))
        .env("CARGO_TARGET_DIR", &target)
        .current_dir(checkout);
    if !features.is_empty() {
        cargo.arg("--features").arg(features.join(","));
    }
    run_inherited(&mut cargo)?;
    step.done();
    let folder = paths::cache()?.join("images");
    fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    packages
        .iter()
        .map(|package| {
            let image = Image {
                name: format!("localhost/{package}:{}", env!("CARGO_PKG_VERSION")),
                program: target.join(IMAGE_TARGET).join(PROFILE).join(package),
                labels: BTreeMap::from([
                    ("org.opencontainers.image.title".to_owned(), (*package).to_owned()),
                    (
                        "org.opencontainers.image.version".to_owned(),
                        env!("CARGO_PKG_VERSION").to_owned(),
                    ),
                    ("org.opencontainers.image.licenses".to_owned(), "Apache-2.0".to_owned()),
                ]),
            };
            let archive = folder.join(format!("{package}.tar"));
            image.write(&archive)?;
            Ok(Built {
                name: image.name,
                archive,
            })
        })
        .collect()
}
