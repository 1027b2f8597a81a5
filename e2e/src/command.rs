//! Running programs to their end, and waiting for conditions.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How often a condition is looked at: often enough to be exact to a tenth of a second, seldom enough for two cores.
const POLL: Duration = Duration::from_millis(100);

/// How much of a failed program's output an error carries; more belongs in a log.
const OUTPUT_LIMIT: usize = 4000;

/// Runs a program to its end and returns what it printed on standard output.
///
/// # Errors
/// If it cannot be started, or ends with anything but success.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| start_error(command, source))?;
    finish(command, output)
}

/// Like [`run`], with `input` on standard input.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| start_error(command, source))?;
    let mut stdin = child.stdin.take().expect("invariant: stdin was piped one line above");
    let input = input.to_owned();
    // On a thread of its own: a program that prints much before it reads all would otherwise wait for us, and we for it.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child
        .wait_with_output()
        .map_err(|source| start_error(command, source))?;
    // A broken pipe means that the program stopped reading; its exit status tells whether that was a failure.
    drop(writer.join());
    finish(command, output)
}

/// Runs a program with this process's own terminal.
///
/// # Errors
/// As [`run`], without the output.
pub fn run_inherited(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|source| start_error(command, source))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: describe(command),
        status: status.to_string(),
        output: "(printed above)".to_owned(),
    })
}

/// Looks at `probe` until it returns `Ok(value)`; its `Err` says what is still missing.
///
/// # Errors
/// [`Error::Timeout`] with the last thing seen.
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> std::result::Result<T, String>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= deadline => {
                return Err(Error::Timeout {
                    what: what.to_owned(),
                    limit,
                    last,
                });
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// The command as a person would type it.
pub fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The last `limit` bytes of `text`, cut at a character.
pub(crate) fn tail(text: &str, limit: usize) -> &str {
    let mut start = text.len().saturating_sub(limit);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

fn finish(command: &Command, output: Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let printed = format!("{stdout}{}", String::from_utf8_lossy(&output.stderr));
    Err(Error::Command {
        command: describe(command),
        status: output.status.to_string(),
        output: tail(&printed, OUTPUT_LIMIT).to_owned(),
    })
}

fn start_error(command: &Command, source: std::io::Error) -> Error {
    let program = command.get_program().to_string_lossy().into_owned();
    let hint = match program.as_str() {
        "go" => "install Go 1.21 or newer (it fetches the exact version that go.mod asks for)",
        "rustup" => "install rustup from https://rustup.rs",
        "nsenter" | "unshare" => "install util-linux",
        "ip" | "bridge" => "install iproute2",
        "perf" => "install perf (Debian: linux-perf)",
        _ => "run `cargo xtask cluster up` once to install and build what the bed needs",
    };
    Error::Start { program, source, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_program_is_reported_with_its_words() {
        let error = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("exit status: 3") && text.contains("out") && text.contains("err"),
            "{text}"
        );
    }

    #[test]
    fn input_larger_than_a_pipe_does_not_deadlock() {
        let input = "x".repeat(1 << 20);
        assert_eq!(run_with_input(&mut Command::new("cat"), &input).unwrap(), input);
    }

    #[test]
    fn a_condition_that_never_holds_says_what_was_seen_last() {
        let error = wait_until("water boils", Duration::ZERO, || Err::<(), _>("20 C".to_owned())).unwrap_err();
        assert_eq!(error.to_string(), "water boils: not so after 0 s; last seen: 20 C");
    }

    #[test]
    fn a_tail_never_splits_a_character() {
        assert_eq!(tail("añb", 2), "b");
    }
}
