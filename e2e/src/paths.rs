//! Where things are kept: binaries in a cache, a run's state in a folder of its own, nothing in the checkout.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Built binaries and downloads: `$ALTHING_CACHE`, or `althing` in the user's cache folder.
///
/// # Errors
/// If neither `ALTHING_CACHE`, `XDG_CACHE_HOME` nor `HOME` is set.
pub fn cache() -> Result<PathBuf> {
    root("ALTHING_CACHE", "XDG_CACHE_HOME", ".cache")
}

/// The state of running beds and the logs of failed ones: `$ALTHING_STATE`, or `althing` in the user's state folder.
///
/// # Errors
/// If neither `ALTHING_STATE`, `XDG_STATE_HOME` nor `HOME` is set.
pub fn state() -> Result<PathBuf> {
    root("ALTHING_STATE", "XDG_STATE_HOME", ".local/state")
}

/// The checkout that this program was built from.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("invariant: e2e/ lies in the checkout")
}

fn root(own: &str, xdg: &str, below_home: &str) -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set(own)
        .or_else(|| set(xdg).map(|folder| folder.join("althing")))
        .or_else(|| set("HOME").map(|home| home.join(below_home).join("althing")))
        .ok_or_else(|| {
            Error::refused(
                format!("neither {own}, {xdg} nor HOME is set"),
                format!("set {own} to a folder"),
            )
        })
}
