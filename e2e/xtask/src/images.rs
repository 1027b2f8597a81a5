//! `cargo xtask images`: the project's images, for a person's cluster.

use std::process::ExitCode;

use althing_e2e::bed::Bed;
use althing_e2e::{Result, host, image};

use crate::cluster::Which;

/// Builds the images and imports them into the named cluster if it is up.
///
/// # Errors
/// If a build or an import fails.
pub(crate) fn run(which: &Which) -> Result<ExitCode> {
    host::install_packages()?;
    let images = image::build(&image::PROGRAMS, &[])?;
    let bed = Bed::find(&which.name)?;
    for image in &images {
        match &bed {
            Some(bed) => {
                bed.import_image(&image.archive)?;
                println!("{} is on every node of cluster `{}`", image.name, bed.name());
            }
            None => println!("{} is in {}", image.name, image.archive.display()),
        }
    }
    Ok(ExitCode::SUCCESS)
}
