//! The operator's own certificate: made by each replica itself with the authority that it holds, and
//! used to dial agents and on the enrolment port.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use icbd_net::{
    Authority, AuthorityError, Credentials, CredentialsError, Fingerprint, Identity, Key, Name,
    NoPublicKey, Pem, Validity, renewal_at,
};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::keeper::Standing;

/// How long after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// The certificate in use, once there is one.
#[derive(Clone)]
pub(crate) struct Own(watch::Receiver<Option<Identity>>);

impl Own {
    /// The certificate in use; waits for the first one for a while.
    pub(crate) async fn identity(&self, within: Duration) -> Option<Identity> {
        let mut own = self.0.clone();
        let there = timeout(within, own.wait_for(Option::is_some)).await;
        let there = there.ok()?.ok()?;
        (*there).clone()
    }
}

/// Makes the certificate and keeps it valid.
pub(super) struct OwnKeeper {
    pub(super) name: Name,
    /// How long a certificate lives.
    pub(super) lifetime: Duration,
    pub(super) standing: watch::Receiver<Standing>,
    own: watch::Sender<Option<Identity>>,
}

#[derive(Debug, Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Key(#[from] NoPublicKey),
}

/// What was made last.
struct Made {
    by: Fingerprint,
    pem: Pem,
    renew_at: SystemTime,
}

impl OwnKeeper {
    pub(super) fn new(
        name: Name,
        lifetime: Duration,
        standing: watch::Receiver<Standing>,
    ) -> (Self, Own) {
        let (own, seen) = watch::channel(None);
        let keeper = OwnKeeper {
            name,
            lifetime,
            standing,
            own,
        };
        (keeper, Own(seen))
    }

    /// Keeps it until the process ends.
    pub(super) async fn run(mut self) {
        let mut made: Option<Made> = None;
        loop {
            let standing = self.standing.borrow_and_update().clone();
            let mut pause = AGAIN;
            if let Some(signer) = &standing.signer {
                match self.keep(made.take(), signer, &standing.bundle) {
                    Ok(now) => {
                        let left = now.renew_at.duration_since(SystemTime::now());
                        // Clocks jump: looked at again before long.
                        pause = left
                            .unwrap_or_default()
                            .clamp(Duration::from_secs(1), 12 * AGAIN);
                        made = Some(now);
                    }
                    Err(error) => warn!(%error, "the operator has no certificate of its own"),
                }
            }
            tokio::select! {
                Ok(()) = self.standing.changed() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// The certificate that is to be used from now on: the one that is, or a new one.
    fn keep(
        &self,
        made: Option<Made>,
        signer: &Authority,
        bundle: &Arc<str>,
    ) -> Result<Made, Failure> {
        let now = SystemTime::now();
        let believed = bundle.as_bytes();
        let by = signer.fingerprint();
        match made {
            Some(made) if made.by == by && now < made.renew_at => {
                if made.pem.authorities == believed {
                    return Ok(made);
                }
                let pem = Pem {
                    authorities: believed.to_vec(),
                    ..made.pem
                };
                self.take_into_use(pem.clone())?;
                Ok(Made { pem, ..made })
            }
            _ => {
                let key = Key::generate().map_err(AuthorityError::from)?;
                let validity = within(signer, Validity::from(now, self.lifetime));
                let pem = Pem {
                    chain: signer
                        .issue(&self.name, &key.public()?, validity)?
                        .into_bytes(),
                    key: key.pem().into_bytes(),
                    authorities: believed.to_vec(),
                };
                self.take_into_use(pem.clone())?;
                info!(authority = %by, "made the operator's own certificate");
                let renew_at = renewal_at(now, validity.not_after, fastrand::f64());
                Ok(Made { by, pem, renew_at })
            }
        }
    }

    fn take_into_use(&self, pem: Pem) -> Result<(), Failure> {
        let credentials = Credentials::new(pem)?;
        self.own.send_if_modified(|own| match own {
            Some(identity) => {
                identity.replace(credentials);
                false
            }
            None => {
                *own = Some(Identity::new(credentials));
                true
            }
        });
        Ok(())
    }
}

/// No certificate outlives the authority that vouches for it.
pub(super) fn within(signer: &Authority, validity: Validity) -> Validity {
    Validity {
        not_after: validity.not_after.min(signer.validity().not_after),
        ..validity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn authority(lifetime: Duration) -> Arc<Authority> {
        let validity = Validity::from(SystemTime::now(), lifetime);
        Arc::new(Authority::generate("vms.icbd", validity).unwrap())
    }

    fn standing(signer: &Arc<Authority>, bundle: &[&Arc<Authority>]) -> Standing {
        let bundle: String = bundle.iter().map(|it| it.certificate_pem()).collect();
        Standing {
            signer: Some(Arc::clone(signer)),
            bundle: bundle.into(),
            problem: None,
        }
    }

    #[tokio::test]
    async fn the_identity_of_the_operator_is_made_anew_when_another_authority_signs() {
        let (one, other) = (authority(24 * HOUR), authority(HOUR));
        let (sender, seen) = watch::channel(Standing::default());
        let (keeper, own) = OwnKeeper::new(Name::operator("vms.icbd"), 4 * HOUR, seen);
        assert!(own.identity(Duration::ZERO).await.is_none());
        let running = tokio::spawn(keeper.run());
        sender.send_replace(standing(&one, &[&one]));
        let identity = own.identity(HOUR).await.unwrap();
        let first = identity.current();
        assert_eq!(first.name(), &Name::operator("vms.icbd"));
        assert_eq!(first.trust().fingerprints(), [one.fingerprint()]);

        let mut changes = identity.follow();
        sender.send_replace(standing(&one, &[&one, &other]));
        changes.changed().await.unwrap();
        let second = changes.borrow_and_update().clone();
        assert_eq!(
            second.fingerprint(),
            first.fingerprint(),
            "the same certificate"
        );
        assert_eq!(second.trust().fingerprints().len(), 2);

        sender.send_replace(standing(&other, &[&other, &one]));
        changes.changed().await.unwrap();
        let third = changes.borrow_and_update().clone();
        assert_ne!(third.fingerprint(), first.fingerprint());
        assert!(third.stands(SystemTime::now()));
        assert!(third.not_after() <= other.validity().not_after);
        running.abort();
    }
}
