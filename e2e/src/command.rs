//! Running a program to its end.

use std::ffi::OsStr;
use std::process::{ExitStatus, Stdio};

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::{Failure, Outcome};

/// What a program left behind.
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output; bytes that are no UTF-8 are replaced.
    pub stdout: String,
    /// Its standard error, likewise.
    pub stderr: String,
}

/// Runs `program` and returns its standard output.
///
/// # Errors
/// When it cannot be started, or ends with anything but success.
pub async fn run<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[A]) -> Outcome<String> {
    let output = run_with_input(program.as_ref(), arguments, "").await?;
    succeeded(program.as_ref(), arguments, output)
}

/// The standard output of a program that succeeded.
pub(crate) fn succeeded<A: AsRef<OsStr>>(
    program: &OsStr,
    arguments: &[A],
    output: Output,
) -> Outcome<String> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Failure::Command {
        command: shown(program, arguments),
        status: output.status,
        stdout: output.stdout,
        stderr: output.stderr,
    })
}

/// Runs `program` with `input` on its standard input, whatever its exit status.
///
/// # Errors
/// When it cannot be started.
pub async fn run_with_input<A: AsRef<OsStr>>(
    program: &OsStr,
    arguments: &[A],
    input: &str,
) -> Outcome<Output> {
    let start = |source| Failure::Start {
        command: shown(program, arguments),
        source,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input may close it: its exit status tells the story.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(start)?;
    Ok(Output {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn shown<A: AsRef<OsStr>>(program: &OsStr, arguments: &[A]) -> String {
    let mut words = vec![program.to_string_lossy()];
    words.extend(
        arguments
            .iter()
            .map(|argument| argument.as_ref().to_string_lossy()),
    );
    words.join(" ")
}
