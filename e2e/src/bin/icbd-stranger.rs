//! The stranger: somebody in the cluster whom nobody has asked to come. In a pod of the tests'
//! `icbd-stranger wait` keeps the pod, and `icbd-stranger` tries the one thing that its standard
//! input says, as JSON, and prints what came of it, as a line of JSON.

use std::io::{Read, Write, stdin, stdout};
use std::process::ExitCode;

use icbd_e2e::stranger::{Task, carry_out};

#[tokio::main]
async fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("wait") {
        let _ = tokio::signal::ctrl_c().await;
        return ExitCode::SUCCESS;
    }
    match task().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

async fn task() -> Result<(), Box<dyn std::error::Error>> {
    let mut input = String::new();
    stdin().read_to_string(&mut input)?;
    let task: Task = serde_json::from_str(&input)?;
    let report = serde_json::to_string(&carry_out(task).await)?;
    writeln!(stdout(), "{report}")?;
    Ok(())
}
