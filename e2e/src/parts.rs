//! The parts that are not ours, built from pinned Go modules (`e2e/cluster/*/go.mod`) into a cache outside the checkout.
//!
//! One module per family of tools, because their dependencies' versions conflict. A family is rebuilt when its module,
//! its flags or its sources change, and never otherwise.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::command::{describe, tail};
use crate::error::{Error, Result};
use crate::paths;
use crate::progress::Step;

/// A Go package that is a program.
#[derive(Debug)]
pub struct Program {
    /// Import path, or `.` for the module's own.
    package: &'static str,
    /// What `go build` calls the result: the import path's last element that is not a version.
    built_as: &'static str,
    /// What we call it.
    name: &'static str,
}

/// Programs that are built from one Go module.
#[derive(Debug)]
pub struct Family {
    /// The folder below `e2e/cluster`.
    pub name: &'static str,
    /// The version that go.mod pins; part of the cache's folder name.
    pub version: &'static str,
    /// Flags for the linker: versions that upstream's own build stamps in.
    link: &'static str,
    programs: &'static [Program],
}

const fn program(package: &'static str, name: &'static str) -> Program {
    Program {
        package,
        built_as: name,
        name,
    }
}

/// Everything the bed is made of.
pub const FAMILIES: [Family; 8] = [
    Family {
        name: "kubernetes",
        version: "1.36.3",
        link: "-X k8s.io/component-base/version.gitVersion=v1.36.3 -X k8s.io/component-base/version.gitMajor=1 \
               -X k8s.io/component-base/version.gitMinor=36",
        programs: &[
            program("k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver"),
            program(
                "k8s.io/kubernetes/cmd/kube-controller-manager",
                "kube-controller-manager",
            ),
            program("k8s.io/kubernetes/cmd/kube-scheduler", "kube-scheduler"),
            program("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
            program("k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"),
            program("k8s.io/kubernetes/cmd/kubectl", "kubectl"),
        ],
    },
    Family {
        name: "containerd",
        version: "2.4.2",
        link: "-X github.com/containerd/containerd/v2/version.Version=v2.4.2",
        programs: &[
            program("github.com/containerd/containerd/v2/cmd/containerd", "containerd"),
            program(
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
                "containerd-shim-runc-v2",
            ),
            program("github.com/containerd/containerd/v2/cmd/ctr", "ctr"),
        ],
    },
    Family {
        name: "etcd",
        version: "3.7.3",
        link: "",
        programs: &[
            Program {
                package: "go.etcd.io/etcd/server/v3",
                built_as: "server",
                name: "etcd",
            },
            program("go.etcd.io/etcd/etcdctl/v3", "etcdctl"),
        ],
    },
    // etcd's own load generator, which lives in the repository's root module and is released later than the server.
    Family {
        name: "benchmark",
        version: "3.6.8",
        link: "",
        programs: &[program("go.etcd.io/etcd/v3/tools/benchmark", "benchmark")],
    },
    Family {
        name: "coredns",
        version: "1.15.0",
        link: "",
        programs: &[program("github.com/coredns/coredns", "coredns")],
    },
    Family {
        name: "helm",
        version: "4.3.1",
        link: "-X helm.sh/helm/v4/internal/version.version=v4.3.1",
        programs: &[program("helm.sh/helm/v4/cmd/helm", "helm")],
    },
    Family {
        name: "provisioner",
        version: "1",
        link: "",
        programs: &[program(".", "provisioner")],
    },
    Family {
        name: "pause",
        version: "1",
        link: "",
        programs: &[program(".", "pause")],
    },
];

/// The programs, built; each by its path.
#[derive(Debug, Clone)]
pub struct Parts {
    folders: Vec<PathBuf>,
}

impl Parts {
    /// Builds what the cache does not hold and returns where everything is.
    ///
    /// # Errors
    /// If Go is missing, a module cannot be fetched or a build fails; a failed build leaves nothing in the cache.
    pub fn build() -> Result<Self> {
        Self::build_some(|_| true)
    }

    /// As [`Parts::build`], one family only.
    ///
    /// # Errors
    /// As [`Parts::build`].
    pub fn build_family(name: &str) -> Result<Self> {
        Self::build_some(|family| family.name == name)
    }

    /// The version that a family is pinned to.
    ///
    /// # Panics
    /// If there is no such family: names are constants of this crate.
    pub fn version(name: &str) -> &'static str {
        let family = FAMILIES.iter().find(|family| family.name == name);
        family.map_or_else(
            || panic!("invariant: there is no family `{name}` of parts"),
            |family| family.version,
        )
    }

    fn build_some(wanted: impl Fn(&Family) -> bool) -> Result<Self> {
        let cache = paths::cache()?.join("bin");
        fs::create_dir_all(&cache).map_err(Error::io("create", &cache))?;
        // Two commands at once must not build the same thing twice; the second waits and finds it done.
        let lock_path = cache.join(".lock");
        let lock = File::create(&lock_path).map_err(Error::io("create", &lock_path))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|errno| Error::io("lock", &lock_path)(errno.into()))?;
        let sources = paths::checkout().join("e2e/cluster");
        let folders = FAMILIES
            .iter()
            .filter(|family| wanted(family))
            .map(|family| family.ensure(&sources, &cache))
            .collect::<Result<_>>()?;
        Ok(Self { folders })
    }

    /// The path of a program, by its name.
    ///
    /// # Panics
    /// If no family has such a program: names are constants of this crate.
    pub fn path(&self, name: &str) -> PathBuf {
        let candidate = self
            .folders
            .iter()
            .map(|folder| folder.join(name))
            .find(|path| path.exists());
        candidate.unwrap_or_else(|| panic!("invariant: no family of parts holds a program `{name}`"))
    }

    /// A `PATH` with the programs before `rest`.
    pub fn search_path(&self, rest: &str) -> String {
        let own = self.folders.iter().map(|folder| folder.to_string_lossy().into_owned());
        own.chain(std::iter::once(rest.to_owned()))
            .collect::<Vec<_>>()
            .join(":")
    }
}

impl Family {
    fn ensure(&self, sources: &Path, cache: &Path) -> Result<PathBuf> {
        let source = sources.join(self.name);
        let folder = cache.join(format!("{}-{}-{}", self.name, self.version, self.fingerprint(&source)?));
        if self.programs.iter().all(|program| folder.join(program.name).exists()) {
            return Ok(folder);
        }
        let partial = cache.join(format!(".{}-{}", self.name, std::process::id()));
        fs::create_dir_all(&partial).map_err(Error::io("create", &partial))?;
        let built = self.compile(&source, &partial).and_then(|()| {
            for program in self.programs {
                let from = partial.join(program.built_as);
                fs::rename(&from, partial.join(program.name)).map_err(Error::io("rename", &from))?;
            }
            if folder.exists() {
                fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
            }
            fs::rename(&partial, &folder).map_err(Error::io("rename", &partial))
        });
        if built.is_err() {
            // Best effort: what matters is the build's error, and the folder has a name that nothing looks for.
            drop(fs::remove_dir_all(&partial));
        }
        built.map(|()| folder)
    }

    /// Twelve hex digits over all that decides what comes out of the build.
    fn fingerprint(&self, source: &Path) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(self.link);
        let mut files: Vec<PathBuf> = fs::read_dir(source)
            .map_err(Error::io("list", source))?
            .map(|entry| entry.map(|entry| entry.path()).map_err(Error::io("list", source)))
            .collect::<Result<_>>()?;
        files.sort();
        for file in files {
            hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
            hash.update(fs::read(&file).map_err(Error::io("read", &file))?);
        }
        Ok(hash
            .finalize()
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }

    fn compile(&self, source: &Path, into: &Path) -> Result<()> {
        let names: Vec<&str> = self.programs.iter().map(|program| program.name).collect();
        let step = Step::begin(format!(
            "building {} {} ({})",
            self.name,
            self.version,
            names.join(", ")
        ));
        let mut command = Command::new("go");
        command
            .args(["build", "-v", "-trimpath", "-mod=readonly", "-buildvcs=false"])
            .arg(format!("-ldflags=-s -w {}", self.link))
            .arg("-o")
            .arg(format!("{}/", into.display()))
            .args(self.programs.iter().map(|program| program.package))
            // Static, so that the same file works on the host and in an image without anything else in it.
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .current_dir(source)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| Error::Start {
            program: "go".to_owned(),
            source,
            hint: "install Go 1.21 or newer (it fetches the exact version that go.mod asks for)",
        })?;
        let stderr = child.stderr.take().expect("invariant: stderr was piped above");
        let printed = follow(&step, stderr);
        let status = child.wait().map_err(Error::io("wait for go in", source))?;
        if !status.success() {
            return Err(Error::Command {
                command: describe(&command),
                status: status.to_string(),
                output: printed,
            });
        }
        step.done();
        Ok(())
    }
}

/// Shows what a build is at, line by line, and returns the end of what it said.
fn follow(step: &Step, stderr: impl Read) -> String {
    const KEPT: usize = 4000;
    let mut printed = String::new();
    for line in BufReader::new(stderr).lines().map_while(std::io::Result::ok) {
        step.note(line.clone());
        printed = format!("{}{line}\n", tail(&printed, KEPT));
    }
    printed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_pins_the_version_that_its_cache_folder_is_named_after() {
        for family in FAMILIES.iter().filter(|family| family.programs[0].package != ".") {
            let path = paths::checkout().join("e2e/cluster").join(family.name).join("go.mod");
            let module = fs::read_to_string(&path).unwrap();
            assert!(
                module
                    .lines()
                    .any(|line| line.contains(&format!(" v{}", family.version)) && !line.contains("=>")),
                "{} does not require v{}",
                path.display(),
                family.version
            );
        }
    }

    #[test]
    fn a_program_is_found_by_the_name_that_go_gives_it() {
        for program in FAMILIES
            .iter()
            .flat_map(|family| family.programs)
            .filter(|program| program.package != ".")
        {
            let mut elements = program
                .package
                .rsplit('/')
                .filter(|element| *element != "v3" && *element != "v4");
            assert_eq!(elements.next(), Some(program.built_as), "{}", program.package);
        }
    }
}
