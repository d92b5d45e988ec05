//! What can go wrong in a test besides an assertion.

use std::fmt;
use std::time::Duration;

/// A test's result.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Why a test could not go on.
#[derive(thiserror::Error)]
pub enum Failure {
    /// A program could not be run.
    #[error("running {command}: {source}")]
    Start {
        /// The program with its arguments.
        command: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A program ended with a failure.
    #[error("{command}: {status}\n{stderr}{stdout}")]
    Command {
        /// The program with its arguments.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it answered.
        stdout: String,
        /// What it complained of.
        stderr: String,
    },
    /// Something did not come to be in time.
    #[error("waited {} s for {what}; last seen: {seen}", limit.as_secs())]
    Waited {
        /// What was waited for.
        what: String,
        /// For how long.
        limit: Duration,
        /// What there was instead.
        seen: String,
    },
    /// The API server refused, or could not be reached.
    #[error("asking the API server: {0}")]
    Kube(#[source] Box<kube::Error>),
    /// The kubeconfig cannot be used.
    #[error("reading the cluster's kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// An answer that is not of the form that was expected.
    #[error("{0}")]
    Unexpected(String),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        Failure::Kube(Box::new(error))
    }
}

/// The test runner prints failures with `Debug`; people read them.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
