//! What the bed needs from the machine it runs on: rights, Debian packages, a Rust target.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::command::run;
use crate::error::{Error, Result};
use crate::progress::Step;

/// A file that proves that a package is installed, and the package.
struct Package {
    proof: &'static str,
    name: &'static str,
}

/// runc and the CNI plugins run pods; the rest is what kubelet, kube-proxy, CNI and we call. `musl-tools` compiles the
/// C in our images (ring), `prometheus` evaluates the chart's queries.
const PACKAGES: [Package; 9] = [
    Package {
        proof: "/usr/sbin/runc",
        name: "runc",
    },
    Package {
        proof: "/usr/lib/cni/bridge",
        name: "containernetworking-plugins",
    },
    Package {
        proof: "/usr/sbin/iptables",
        name: "iptables",
    },
    Package {
        proof: "/usr/sbin/ipset",
        name: "ipset",
    },
    Package {
        proof: "/usr/sbin/conntrack",
        name: "conntrack",
    },
    Package {
        proof: "/usr/bin/nsenter",
        name: "util-linux",
    },
    Package {
        proof: "/sbin/ip",
        name: "iproute2",
    },
    Package {
        proof: "/usr/bin/musl-gcc",
        name: "musl-tools",
    },
    Package {
        proof: "/usr/bin/prometheus",
        name: "prometheus",
    },
];

/// The target of the images: static, so that an image is one file.
pub const IMAGE_TARGET: &str = "x86_64-unknown-linux-musl";

/// Whether this process may make namespaces and mounts.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Refuses with a clear sentence where the bed cannot run at all.
///
/// # Errors
/// [`Error::Refused`] if this is not root on Linux x86-64.
pub fn require_root() -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(Error::refused(
            "the bed runs on Linux on x86-64 only",
            "use `althing up` for a local cluster",
        ));
    }
    if !is_root() {
        return Err(Error::refused(
            "the bed makes namespaces, mounts and cgroups, which only root may",
            "run this as root, or use `althing up` for a local cluster",
        ));
    }
    Ok(())
}

/// Installs the Debian packages that are missing; does nothing where all are there.
///
/// # Errors
/// If one is missing and this is not root on a Debian-like system, or apt fails.
pub fn install_packages() -> Result<()> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|package| !Path::new(package.proof).exists())
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() || !Path::new("/usr/bin/apt-get").exists() {
        return Err(Error::refused(
            format!("these Debian packages are missing: {}", missing.join(" ")),
            "install them (on other systems, the packages that hold the same programs)",
        ));
    }
    let step = Step::begin(format!("apt-get install {}", missing.join(" ")));
    run(apt().arg("update"))?;
    // Without recommended packages: prometheus would bring and start exporters that nobody asked for.
    run(apt().args(["install", "-y", "--no-install-recommends"]).args(&missing))?;
    step.done();
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.arg("-qq").env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Adds the images' Rust target if it is missing.
///
/// # Errors
/// If rustup is missing or fails.
pub fn install_target(checkout: &Path) -> Result<()> {
    let listed = run(Command::new("rustup")
        .args(["target", "list", "--installed"])
        .current_dir(checkout))?;
    if listed.lines().collect::<BTreeSet<_>>().contains(IMAGE_TARGET) {
        return Ok(());
    }
    let step = Step::begin(format!("rustup target add {IMAGE_TARGET}"));
    run(Command::new("rustup")
        .args(["target", "add", IMAGE_TARGET])
        .current_dir(checkout))?;
    step.done();
    Ok(())
}
