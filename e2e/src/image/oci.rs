//! An OCI image with one layer, from static programs, without a Docker daemon.
//!
//! The same input gives the same bytes: files in order, no times, no names of the machine that built it.
//! Source: OCI Image Format Specification 1.1 (image layout, manifest, config).

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// The user that images run as; a number, so that Kubernetes can check `runAsNonRoot`.
pub const USER: u32 = 65532;

/// What goes into an image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Reference, such as `localhost/pause:1`.
    pub name: String,
    /// The program: where it is on the host; it becomes `/<file name>` and the entry point.
    pub program: PathBuf,
    /// Labels, such as `org.opencontainers.image.version`.
    pub labels: BTreeMap<String, String>,
}

/// A file or folder of the layer.
struct Entry<'a> {
    path: &'a str,
    mode: u32,
    content: Content<'a>,
}

enum Content<'a> {
    Folder,
    File(&'a [u8]),
}

impl Image {
    /// Writes the image as an archive that `ctr images import` reads.
    ///
    /// # Errors
    /// If the program cannot be read, is not static, or the archive cannot be written.
    pub fn write(&self, archive: &Path) -> Result<()> {
        let mut program = Vec::new();
        fs::File::open(&self.program)
            .and_then(|mut file| file.read_to_end(&mut program))
            .map_err(Error::io("read", &self.program))?;
        if needs_interpreter(&program) {
            return Err(Error::refused(
                format!(
                    "{} is linked dynamically and would not start in an image without a system",
                    self.program.display()
                ),
                "build it for a static target",
            ));
        }
        let entry_point = format!("/{}", self.program.file_name().unwrap_or_default().to_string_lossy());
        let failed = |source| Error::io("write", archive)(source);
        let layer = layer(&entry_point, &program).map_err(failed)?;
        let blobs = self.blobs(&entry_point, layer);
        let bytes = archive_of(&blobs).map_err(failed)?;
        fs::write(archive, bytes).map_err(Error::io("write", archive))
    }

    /// The layout's files by path: layer, config, manifest, index.
    fn blobs(&self, entry_point: &str, layer: Vec<u8>) -> BTreeMap<String, Vec<u8>> {
        let layer_digest = sha256(&layer);
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": [entry_point], "User": format!("{USER}:{USER}"), "WorkingDir": "/", "Labels": self.labels},
            // The layer is not compressed, so its digest and its content's are one.
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        });
        let config = bytes(&config);
        let manifest = bytes(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        }));
        let mut indexed = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        // containerd takes the name from the first, other tools from the second.
        indexed["annotations"] =
            json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": self.name});
        let index = bytes(&json!({"schemaVersion": 2, "manifests": [indexed]}));
        let blob = |content: Vec<u8>| {
            (
                format!("blobs/sha256/{}", sha256(&content).trim_start_matches("sha256:")),
                content,
            )
        };
        BTreeMap::from([
            ("oci-layout".to_owned(), bytes(&json!({"imageLayoutVersion": "1.0.0"}))),
            ("index.json".to_owned(), index),
            blob(layer),
            blob(config),
            blob(manifest),
        ])
    }
}

fn layer(entry_point: &str, program: &[u8]) -> std::io::Result<Vec<u8>> {
    let passwd = format!("root:x:0:0:root:/:/none\nnonroot:x:{USER}:{USER}:nonroot:/:/none\n");
    let group = format!("root:x:0:\nnonroot:x:{USER}:\n");
    let entries = [
        Entry {
            path: "etc/",
            mode: 0o755,
            content: Content::Folder,
        },
        Entry {
            path: "etc/group",
            mode: 0o644,
            content: Content::File(group.as_bytes()),
        },
        Entry {
            path: "etc/passwd",
            mode: 0o644,
            content: Content::File(passwd.as_bytes()),
        },
        Entry {
            path: "tmp/",
            mode: 0o1777,
            content: Content::Folder,
        },
        Entry {
            path: entry_point.trim_start_matches('/'),
            mode: 0o755,
            content: Content::File(program),
        },
    ];
    let mut builder = tar::Builder::new(Vec::new());
    for entry in &entries {
        append(&mut builder, entry)?;
    }
    builder.into_inner()
}

fn archive_of(files: &BTreeMap<String, Vec<u8>>) -> std::io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        append(
            &mut builder,
            &Entry {
                path,
                mode: 0o644,
                content: Content::File(content),
            },
        )?;
    }
    builder.into_inner()
}

fn append(builder: &mut tar::Builder<Vec<u8>>, entry: &Entry<'_>) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    let (kind, content): (_, &[u8]) = match entry.content {
        Content::Folder => (tar::EntryType::Directory, &[]),
        Content::File(content) => (tar::EntryType::Regular, content),
    };
    header.set_entry_type(kind);
    header.set_mode(entry.mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    builder.append_data(&mut header, entry.path, content)
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": sha256(content), "size": content.len()})
}

fn sha256(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    digest
        .iter()
        .fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// Whether an ELF file names a dynamic loader (program header `PT_INTERP`, System V ABI). 64-bit little-endian only, as
/// our images are; anything else is left for the kernel to judge.
fn needs_interpreter(program: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let field = |offset: usize, length: usize| program.get(offset..offset + length);
    let number = |offset, length| {
        field(offset, length).map(|field| {
            field
                .iter()
                .rev()
                .fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        })
    };
    if field(0, 6) != Some(b"\x7fELF\x02\x01") {
        return false;
    }
    let (Some(table), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else {
        return false;
    };
    (0..count).any(|index| {
        let header = usize::try_from(table + index * size).unwrap_or(usize::MAX - 4);
        number(header, 4) == Some(u64::from(PT_INTERP))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(program: &Path) -> Image {
        let labels = BTreeMap::from([("org.opencontainers.image.version".to_owned(), "1".to_owned())]);
        Image {
            name: "localhost/x:1".to_owned(),
            program: program.to_owned(),
            labels,
        }
    }

    fn write(folder: &Path, name: &str, program: &[u8]) -> Result<Vec<u8>> {
        let path = folder.join("program");
        fs::write(&path, program).unwrap();
        let archive = folder.join(name);
        image(&path).write(&archive)?;
        Ok(fs::read(archive).unwrap())
    }

    #[test]
    fn the_same_program_gives_the_same_archive() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            write(folder.path(), "a", b"static").unwrap(),
            write(folder.path(), "b", b"static").unwrap()
        );
        assert_ne!(
            write(folder.path(), "a", b"static").unwrap(),
            write(folder.path(), "b", b"another").unwrap()
        );
    }

    #[test]
    fn every_blob_is_named_by_its_digest_and_every_reference_leads_to_one() {
        let folder = tempfile::tempdir().unwrap();
        let archive = write(folder.path(), "a", b"static").unwrap();
        let mut blobs = BTreeMap::new();
        for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            blobs.insert(path, content);
        }
        let parse = |content: &[u8]| -> Value { serde_json::from_slice(content).unwrap() };
        let follow = |reference: &Value| -> &Vec<u8> {
            let digest = reference["digest"].as_str().unwrap();
            let blob = &blobs[&format!("blobs/{}", digest.replace(':', "/"))];
            assert_eq!(sha256(blob), digest);
            assert_eq!(reference["size"], blob.len());
            blob
        };
        let manifest = parse(follow(&parse(&blobs["index.json"])["manifests"][0]));
        let config = parse(follow(&manifest["config"]));
        assert_eq!(config["rootfs"]["diff_ids"][0], sha256(follow(&manifest["layers"][0])));
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Entrypoint"], json!(["/program"]));
    }

    #[test]
    fn a_program_that_needs_a_loader_is_refused() {
        // `sh` of any ordinary system is linked dynamically.
        let shell = fs::read("/bin/sh").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let error = write(folder.path(), "a", &shell).unwrap_err();
        assert!(error.to_string().contains("linked dynamically"), "{error}");
    }
}
