//! What this agent is to the operator and to other agents: where its certificate comes from, and how
//! it stays valid. How connections use it is `net`'s business and icbd-net's; which peer may do what,
//! that of `control` and `transfer`.

mod directory;
mod enrolment;
pub(crate) mod throwaway;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use icbd_net::{Credentials, Fingerprint, Identity};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::watch::Facts;

pub(crate) use directory::Directory;
pub(crate) use enrolment::Enrolment;

/// How often files that may change are read again.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// Where the identity comes from.
pub(crate) enum Origin {
    /// From files that somebody else keeps.
    Directory(Directory),
    /// From the operator.
    Enrolment(Enrolment),
}

impl Origin {
    /// The first credentials. From the operator they take as long as it takes.
    ///
    /// # Errors
    /// There are files, and they are none.
    pub(crate) async fn obtain(&self, standing: &Standing) -> Result<Identity> {
        let credentials = match self {
            Self::Directory(directory) => directory.read().await?,
            Self::Enrolment(enrolment) => enrolment.first(standing).await,
        };
        Ok(Identity::new(credentials))
    }

    /// Renews them, and follows whom to believe, until `closing`.
    pub(crate) async fn keep(self, identity: Identity, closing: CancellationToken) {
        let keep = async {
            match self {
                Self::Directory(directory) => directory.keep(&identity).await,
                Self::Enrolment(enrolment) => enrolment.keep(&identity).await,
            }
        };
        tokio::select! {
            () = closing.cancelled() => {}
            () = keep => {}
        }
    }
}

/// Tells the operator whom this agent believes, and Prometheus until when it is believed, now and
/// whenever that changes, until `closing`.
pub(crate) async fn publish(
    identity: Identity,
    facts: Facts,
    metrics: Arc<Metrics>,
    standing: Standing,
    closing: CancellationToken,
) {
    let mut follow = identity.follow();
    loop {
        let credentials = Arc::clone(&follow.borrow_and_update());
        let trusted = credentials.trust().fingerprints();
        facts.set_trusted(trusted.iter().map(ToString::to_string).collect());
        metrics.set_certificate_expiry(credentials.not_after());
        standing.have(&credentials);
        tokio::select! {
            () = closing.cancelled() => return,
            changed = follow.changed() => if changed.is_err() { return },
        }
    }
}

/// Whether this agent has an identity, for whoever asks whether it is ready. Cheap to share.
#[derive(Clone)]
pub(crate) struct Standing(Arc<Mutex<Stand>>);

enum Stand {
    /// And why not.
    Without(String),
    Until(SystemTime),
}

impl Standing {
    pub(crate) fn new() -> Self {
        let why = "no certificate was asked for yet".to_owned();
        Self(Arc::new(Mutex::new(Stand::Without(why))))
    }

    fn set(&self, stand: Stand) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stand;
    }

    fn have(&self, credentials: &Credentials) {
        self.set(Stand::Until(credentials.not_after()));
    }

    fn lack(&self, why: impl Into<String>) {
        self.set(Stand::Without(why.into()));
    }

    /// Why this agent has no identity that others believe, if it has none.
    pub(crate) fn missing(&self, now: SystemTime) -> Option<String> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Stand::Without(why) => Some(format!("NotEnrolled: {why}")),
            Stand::Until(end) if *end <= now => {
                Some("CertificateExpired: it could not be renewed in time".to_owned())
            }
            Stand::Until(_) => None,
        }
    }
}

/// Tells of a certificate that is in use from now on.
fn renewed(credentials: &Credentials) {
    let certificate = credentials.fingerprint();
    let certificate = certificate.as_ref().map(Fingerprint::as_str);
    let name = credentials.name();
    tracing::info!(%name, certificate, "the identity was renewed");
}

/// What stands in the way of something that is tried each second: told once, not each time.
#[derive(Default)]
struct Obstacle(Option<String>);

impl Obstacle {
    fn met(&mut self, error: &Error, consequence: &str) {
        let why = error.to_string();
        if self.0.as_ref() != Some(&why) {
            tracing::warn!(%error, "{consequence}");
            self.0 = Some(why);
        }
    }

    fn gone(&mut self) {
        self.0 = None;
    }
}

fn unusable<E>(doing: String) -> impl FnOnce(E) -> Error
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    |error| Error::io(doing)(std::io::Error::other(error))
}
