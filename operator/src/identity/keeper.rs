//! Keeps the authority: sees what is there, decides, takes into use, and writes if this replica leads.
//! Every replica holds the authority in memory, so that a Secret that is lost while one of them
//! lives can be written back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use icbd_net::{Authority, AuthorityError, Fingerprint, Validity};
use jiff::{SignedDuration, Timestamp};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use super::plan::{Action, Held, Known, Plan, Published, Rules, Sight, plan};
use super::store::{Keys, SeenBundle, SeenSecret, Store};

/// How long after a write or a failure it is looked again though nothing was seen to change; and
/// otherwise, against what a clock that jumps may do.
const AGAIN: Duration = Duration::from_secs(2);
const NOW_AND_THEN: Duration = Duration::from_secs(60);

/// What this replica has of the authority.
#[derive(Clone, Default)]
pub(crate) struct Standing {
    /// What signs.
    pub(crate) signer: Option<Arc<Authority>>,
    /// PEM of those who are believed.
    pub(crate) bundle: Arc<str>,
    /// What only a person can set right: the authority is lost, or will be.
    pub(crate) problem: Option<Arc<str>>,
}

/// Whether this replica leads, and if so, what the agents in touch believe; not known before all
/// have been asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Role {
    #[default]
    Follows,
    Leads(Option<Vec<BTreeSet<Fingerprint>>>),
}

/// Keeps the authority.
pub(super) struct Keeper {
    pub(super) store: Store,
    pub(super) rules: Rules,
    pub(super) trust_domain: String,
    /// How long an authority lives.
    pub(super) lifetime: Duration,
    pub(super) standing: Arc<watch::Sender<Standing>>,
    pub(super) role: watch::Receiver<Role>,
}

/// What is in memory.
#[derive(Default)]
struct Memory {
    held: Option<Held>,
    authorities: BTreeMap<Fingerprint, Arc<Authority>>,
    waits: Option<String>,
}

#[derive(Debug, Error)]
enum Failure {
    #[error("the API server: {0}")]
    Kubernetes(#[from] kube::Error),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl Keeper {
    /// Keeps it until the process ends.
    pub(super) async fn run(mut self) {
        let (mut secrets, mut bundles) = (self.store.secrets(), self.store.bundles());
        let (mut secret, mut bundle) = (None, None);
        let mut memory = Memory::default();
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                Some(seen) = secrets.next() => match seen {
                    Ok(seen) => secret = Some(seen),
                    Err(error) => warn!(%error, secret = self.rules.secret, "cannot watch the Secret"),
                },
                Some(seen) = bundles.next() => match seen {
                    Ok(seen) => bundle = Some(seen),
                    Err(error) => warn!(%error, config_map = self.rules.config_map, "cannot watch the ConfigMap"),
                },
                Ok(()) = self.role.changed() => {}
                () = sleep(pause), if !pause.is_zero() => {}
            }
            pause = match (&secret, &mut bundle) {
                (Some(secret), Some(bundle)) => self.step(secret, bundle, &mut memory).await,
                _ => NOW_AND_THEN,
            };
        }
    }

    /// Decides once and does it; says how long to wait at most.
    async fn step(
        &self,
        secret: &SeenSecret,
        bundle: &mut SeenBundle,
        memory: &mut Memory,
    ) -> Duration {
        let role = self.role.borrow().clone();
        let told = match &role {
            Role::Leads(told) => told.as_deref(),
            Role::Follows => None,
        };
        let sight = Sight {
            stored: &secret.stored,
            published: bundle.published.as_ref(),
            held: memory.held.as_ref(),
            told,
        };
        let now = Timestamp::now();
        let plan = plan(&sight, &self.rules, now);
        memory.take_in(secret, &plan);
        self.take_into_use(&plan, bundle, memory);
        let leads = role != Role::Follows;
        if let Some(action) = plan.action.as_ref().filter(|_| leads) {
            match self.act(action, &plan, secret, bundle, memory).await {
                Ok(()) => {}
                // Somebody was faster, or this has not been seen yet: the watch will say.
                Err(Failure::Kubernetes(kube::Error::Api(answer))) if answer.code == 409 => {
                    debug!(?action, "written by somebody else meanwhile");
                }
                Err(error) => warn!(%error, ?action, "cannot keep the certificate authority"),
            }
            return AGAIN;
        }
        let until = plan.look_again.map(|at| at.duration_since(now));
        let until = until.and_then(|until| Duration::try_from(until).ok());
        until
            .map_or(NOW_AND_THEN, |until| until + Duration::from_secs(1))
            .min(NOW_AND_THEN)
    }

    async fn act(
        &self,
        action: &Action,
        plan: &Plan,
        secret: &SeenSecret,
        bundle: &mut SeenBundle,
        memory: &Memory,
    ) -> Result<(), Failure> {
        let held = plan.held.as_ref();
        let signing = held.and_then(|held| memory.find(&held.signing));
        let next = held.and_then(|held| memory.find(held.next.as_ref()?));
        match action {
            Action::Generate => {
                if !self.store.nothing_there().await? {
                    return Ok(());
                }
                let made = self.generate()?;
                let keys = Keys {
                    signing: &made,
                    next: None,
                };
                self.store.create(keys).await?;
                info!(authority = %made.fingerprint(), "made a certificate authority");
            }
            Action::WriteBack => {
                let Some(signing) = signing else {
                    return Ok(());
                };
                let id = signing.fingerprint();
                let next = next.as_deref();
                let keys = Keys {
                    signing: &signing,
                    next,
                };
                self.store.create(keys).await?;
                warn!(authority = %id, secret = self.rules.secret, "the Secret was gone and is written back");
            }
            Action::AddNext => {
                let Some(signing) = signing else {
                    return Ok(());
                };
                let made = self.generate()?;
                let keys = Keys {
                    signing: &signing,
                    next: Some(&made),
                };
                self.store.write(secret, keys).await?;
                info!(next = %made.fingerprint(), "made the next certificate authority");
            }
            Action::Promote => {
                // Of an overdue one the next already signs.
                let Some(signing) = next.or(signing) else {
                    return Ok(());
                };
                let id = signing.fingerprint();
                let keys = Keys {
                    signing: &signing,
                    next: None,
                };
                self.store.write(secret, keys).await?;
                info!(authority = %id, "the next certificate authority takes over");
            }
            Action::Publish => {
                let text = text(&plan.publication, bundle, memory);
                let retire_at = plan.publication.retire_at;
                // Seen at once: the next decision must not be made from what it was before.
                *bundle = self.store.publish(bundle, &text, retire_at).await?;
                let authorities = plan.publication.authorities.len();
                info!(authorities, retire_at = ?retire_at.map(|at| at.to_string()), "published who is believed");
            }
        }
        Ok(())
    }

    fn generate(&self) -> Result<Authority, AuthorityError> {
        let validity = Validity::from(SystemTime::now(), self.lifetime);
        Authority::generate(&self.trust_domain, validity)
    }

    fn take_into_use(&self, plan: &Plan, bundle: &SeenBundle, memory: &mut Memory) {
        if memory.waits != plan.waits {
            if let Some(waits) = &plan.waits {
                info!(waits, "a certificate authority is about to be replaced");
            }
            memory.waits.clone_from(&plan.waits);
        }
        let signer = plan
            .held
            .as_ref()
            .and_then(|held| memory.find(&held.signing));
        let text = text(&plan.publication, bundle, memory);
        self.standing.send_if_modified(|standing| {
            let id = |signer: &Option<Arc<Authority>>| signer.as_ref().map(|it| it.fingerprint());
            let news = standing.problem.as_deref() != plan.problem.as_deref();
            if news {
                match &plan.problem {
                    Some(problem) => error!(
                        reason = "CALost",
                        problem, "the certificate authority is lost"
                    ),
                    None => info!("the certificate authority is there again"),
                }
            }
            let changed = news || *standing.bundle != *text || id(&standing.signer) != id(&signer);
            if changed {
                *standing = Standing {
                    signer,
                    bundle: text.into(),
                    problem: plan.problem.as_deref().map(Arc::from),
                };
            }
            changed
        });
    }
}

impl Memory {
    /// Holds what the plan says, and no more.
    fn take_in(&mut self, secret: &SeenSecret, plan: &Plan) {
        let Self {
            held, authorities, ..
        } = self;
        for authority in &secret.authorities {
            authorities.insert(authority.fingerprint(), Arc::clone(authority));
        }
        held.clone_from(&plan.held);
        let keep: BTreeSet<&Fingerprint> = held
            .iter()
            .flat_map(|held| [Some(&held.signing), held.next.as_ref()])
            .flatten()
            .map(|known| &known.id)
            .chain(&plan.publication.authorities)
            .collect();
        authorities.retain(|id, _| keep.contains(id));
    }

    fn find(&self, known: &Known) -> Option<Arc<Authority>> {
        self.authorities.get(&known.id).cloned()
    }
}

/// The certificates of a publication, one after the other.
fn text(publication: &Published, bundle: &SeenBundle, memory: &Memory) -> String {
    let pem = |id: &Fingerprint| {
        let held = memory.authorities.get(id).map(|it| it.certificate_pem());
        held.or_else(|| bundle.certificates.get(id).map(String::as_str))
    };
    publication.authorities.iter().filter_map(pem).collect()
}

/// A duration that was checked to be positive.
pub(super) fn lasting(duration: SignedDuration) -> Duration {
    Duration::try_from(duration).unwrap_or_default()
}
