//! Where the node program is: named, beside this program, built by cargo in a checkout, or in PATH.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::Error;

/// The node program's name.
const NODE: &str = "althing-node";

/// Finds the node program, building it if this program itself runs out of a checkout's target folder: there, one
/// left over from an older commit would be worse than none.
pub(crate) fn locate(named: Option<&Path>, say: impl Fn(&str)) -> Result<PathBuf, Error> {
    if let Some(path) = named {
        return if path.is_file() {
            Ok(path.to_owned())
        } else {
            Err(Error::NodeBinary(format!(
                "--node-binary (or ALTHING_NODE_BINARY) names {}, which is not a file\n  leave it out to have the program found",
                path.display()
            )))
        };
    }
    let own = std::env::current_exe().ok();
    if let Some((checkout, profile)) = own.as_deref().and_then(checkout_of) {
        return build(&checkout, &profile, say);
    }
    let beside = own.as_deref().and_then(Path::parent).map(|dir| dir.join(NODE));
    let in_path = std::env::var_os("PATH")
        .map(|path| {
            std::env::split_paths(&path)
                .map(|dir| dir.join(NODE))
                .collect::<Vec<_>>()
        })
        .unwrap_or_default();
    beside.into_iter().chain(in_path).find(|path| path.is_file()).ok_or_else(|| {
        Error::NodeBinary(format!(
            "found no {NODE}: neither beside this program nor in PATH\n  install it beside `althing`, or name it with --node-binary"
        ))
    })
}

/// If `exe` is a program that `cargo run` or `cargo test` started in our workspace: the workspace and cargo's profile.
/// Cargo tells a program that it runs it by `CARGO_MANIFEST_DIR`.
fn checkout_of(exe: &Path) -> Option<(PathBuf, String)> {
    let package = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
    let checkout = package
        .ancestors()
        .find(|dir| dir.join("node/Cargo.toml").is_file() && dir.join("Cargo.lock").is_file())?;
    Some((checkout.to_owned(), profile_of(exe)))
}

/// The profile whose folder a program lies in. Pure.
fn profile_of(exe: &Path) -> String {
    let folder = exe
        .parent()
        .filter(|dir| !dir.ends_with("deps"))
        .or_else(|| exe.parent().and_then(Path::parent));
    match folder.and_then(Path::file_name).and_then(|name| name.to_str()) {
        None | Some("debug") => "dev".to_owned(),
        Some(profile) => profile.to_owned(),
    }
}

fn build(checkout: &Path, profile: &str, say: impl Fn(&str)) -> Result<PathBuf, Error> {
    say(&format!(
        "building {NODE} with cargo (nothing to do if it is up to date)"
    ));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Not `-p`: chosen among the default members, as `cargo run --bin althing` chose, so that both builds agree on
    // the features of what they share and nothing is built twice.
    let output = Command::new(&cargo)
        .current_dir(checkout)
        .args([
            "build",
            "--bin",
            NODE,
            "--profile",
            profile,
            "--message-format",
            "json-render-diagnostics",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| Error::NodeBinary(format!("cannot run {}: {source}", cargo.to_string_lossy())))?;
    if !output.status.success() {
        return Err(Error::NodeBinary(format!(
            "cargo could not build {NODE} ({}); its messages are above\n  name a program built elsewhere with --node-binary",
            output.status
        )));
    }
    executable(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| {
        Error::NodeBinary(format!(
            "cargo built {NODE} but did not say where\n  name the program with --node-binary"
        ))
    })
}

/// The program's path in cargo's messages (The Cargo Book, "External tools"). Pure.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && message["target"]["name"] == NODE)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_the_one_this_program_was_built_with() {
        for (exe, profile) in [
            ("/t/debug/althing", "dev"),
            ("/t/debug/deps/local-0123", "dev"),
            ("/t/release/althing", "release"),
            ("/t/x86_64-unknown-linux-musl/image/althing", "image"),
        ] {
            assert_eq!(profile_of(Path::new(exe)), profile, "{exe}");
        }
    }

    #[test]
    fn cargos_messages_name_the_program_among_others() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"bytes"},"executable":null}"#,
            "\nnot json\n",
            r#"{"reason":"compiler-artifact","target":{"name":"althing-node"},"executable":"/t/debug/althing-node"}"#,
        );
        assert_eq!(executable(messages), Some(PathBuf::from("/t/debug/althing-node")));
        assert_eq!(executable(""), None);
    }

    #[test]
    fn a_named_program_that_is_not_there_is_an_error_and_not_replaced_by_another() {
        let error = locate(Some(Path::new("/nowhere/althing-node")), |_| ()).unwrap_err();
        assert!(error.to_string().contains("/nowhere/althing-node"), "{error}");
    }
}
