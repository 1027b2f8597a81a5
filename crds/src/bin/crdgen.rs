//! Writes the custom resource definitions into a folder, or checks that they are there.
//!
//! `crdgen [--check] FOLDER`

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--check", folder] => check(Path::new(folder)),
        [folder] if !folder.starts_with('-') => write(Path::new(folder)),
        _ => Err("usage: crdgen [--check] FOLDER".to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("crdgen: {message}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path) -> Result<(), String> {
    std::fs::create_dir_all(folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    for file in althing_crds::generate::files().map_err(|error| error.to_string())? {
        let path = folder.join(&file.name);
        std::fs::write(&path, file.content).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

fn check(folder: &Path) -> Result<(), String> {
    for file in althing_crds::generate::files().map_err(|error| error.to_string())? {
        let path = folder.join(&file.name);
        let present =
            std::fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        if present != file.content {
            return Err(format!(
                "{} differs from the types; run `cargo run -p althing-crds --bin crdgen -- {}`",
                path.display(),
                folder.display()
            ));
        }
    }
    Ok(())
}
