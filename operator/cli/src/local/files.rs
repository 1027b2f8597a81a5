//! Reading and writing the supervisor's own files.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// Writes a file so that a reader, or the next supervisor after a crash, sees the old or the new content, never a part.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    let replace = || -> io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".tmp");
        let temporary = path.with_file_name(name);
        let mut file = fs::File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // The rename itself is only durable with its folder.
        path.parent()
            .map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
    };
    replace().map_err(Error::file("write", path))
}

/// Writes a value as JSON.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let mut json = serde_json::to_vec_pretty(value).map_err(|error| Error::File {
        what: "write",
        path: path.to_owned(),
        source: io::Error::other(error),
    })?;
    json.push(b'\n');
    write(path, &json)
}

/// Reads a file; none if it is not there.
pub(crate) fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File {
            what: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Reads a JSON file; none if it is not there. `lost` says what removing a damaged one costs.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, lost: &'static str) -> Result<Option<T>, Error> {
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    serde_json::from_str(&text).map(Some).map_err(|error| Error::Damaged {
        path: path.to_owned(),
        message: error.to_string(),
        lost,
    })
}

/// Removes a file if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::File {
            what: "remove",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Removes a folder and what is in it, if it is there.
pub(crate) fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::File {
            what: "remove",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Makes a folder that only its owner can enter: whoever reaches the control socket can delete clusters.
pub(crate) fn private_dir(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::file("create", path))
}

/// The last lines of a log, read from its end only.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    use std::io::{Read, Seek, SeekFrom};
    /// Enough for a panic message with a few lines around it.
    const WINDOW: u64 = 8 * 1024;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
        let mut bytes = Vec::new();
        file.take(WINDOW).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = read()
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
