//! What is to be done about the certificate authority: from what the Secret and the ConfigMap hold,
//! what this process holds in memory and what the agents believe, to what this process signs with,
//! one write at most, and what a person has to be told. Pure; so is every crash between two writes,
//! since whoever comes next decides from what is there.
//!
//! In the ConfigMap the first authority is the one that the leader signs with; then come those that
//! are about to sign, then those that have. The Secret is always written first.

use std::collections::BTreeSet;

use icbd_net::Fingerprint;
use jiff::{SignedDuration, Timestamp};

#[cfg(test)]
mod tests;

/// An authority, as decisions see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) id: Fingerprint,
    pub(super) since: Timestamp,
    pub(super) until: Timestamp,
}

/// What the Secret holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stored {
    Absent,
    /// It is there and of no use, for this reason.
    Unusable(String),
    Whole {
        signing: Known,
        /// What is to sign next, while one authority replaces another.
        next: Option<Known>,
    },
}

/// What the ConfigMap holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Published {
    /// The first signs.
    pub(super) authorities: Vec<Fingerprint>,
    /// When those that neither sign nor are about to are dropped.
    pub(super) retire_at: Option<Timestamp>,
}

/// What this process holds in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) signing: Known,
    pub(super) next: Option<Known>,
}

/// What was seen.
#[derive(Debug)]
pub(super) struct Sight<'a> {
    pub(super) stored: &'a Stored,
    pub(super) published: Option<&'a Published>,
    pub(super) held: Option<&'a Held>,
    /// What each agent in touch believes; `None` while this process does not lead, or has not asked
    /// all of them yet.
    pub(super) told: Option<&'a [BTreeSet<Fingerprint>]>,
}

/// What does not change while the process lives.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// Name of the Secret.
    pub(super) secret: String,
    /// Somebody else writes it.
    pub(super) external: bool,
    /// Name of the ConfigMap.
    pub(super) config_map: String,
    /// How long certificates are valid.
    pub(super) certificate: SignedDuration,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Make an authority, and the Secret with it.
    Generate,
    /// Make the Secret anew with what is held.
    WriteBack,
    /// Make the authority that is to sign next, and put it into the Secret.
    AddNext,
    /// In the Secret, let the next one sign.
    Promote,
    /// Write the ConfigMap.
    Publish,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// What this process holds from now on.
    pub(super) held: Option<Held>,
    /// What the ConfigMap is to hold, now or after `action`.
    pub(super) publication: Published,
    /// What the leader is to write.
    pub(super) action: Option<Action>,
    /// What only a person can set right.
    pub(super) problem: Option<String>,
    /// What a replacement waits for.
    pub(super) waits: Option<String>,
    /// When to decide again though nothing happens.
    pub(super) look_again: Option<Timestamp>,
}

impl Known {
    /// When its successor is made: at two thirds of its life.
    fn two_thirds(&self) -> Timestamp {
        let life = self.until.duration_since(self.since);
        self.since
            .saturating_add(life / 3 * 2)
            .unwrap_or(self.until)
    }
}

impl Rules {
    /// For how long what an authority signed may be in use after it has stopped: the certificates'
    /// lifetime, and something for replicas that hear late of it.
    fn retirement(&self) -> SignedDuration {
        self.certificate + self.certificate / 10
    }
}

/// Decides.
pub(super) fn plan(sight: &Sight<'_>, rules: &Rules, now: Timestamp) -> Plan {
    let held = sight.held.and_then(|held| up_to_date(held, sight, now));
    match sight.stored {
        Stored::Absent => absent(in_force(held, sight), sight, rules, now),
        Stored::Unusable(why) => unusable(why, in_force(held, sight), sight, rules, now),
        Stored::Whole { signing, next } => {
            let next = next.as_ref().filter(|_| !rules.external);
            let next = next.filter(|next| next.until > now);
            match (signing.until > now, next) {
                (true, next) => whole(signing, next, held, sight, rules, now),
                (false, Some(next)) => overdue(next, sight, rules, now),
                (false, None) => {
                    let why = format!("its certificate expired at {}", signing.until);
                    unusable(&why, in_force(held, sight), sight, rules, now)
                }
            }
        }
    }
}

/// What is held and still valid; the next one signs where the leader already signs with it.
fn up_to_date(held: &Held, sight: &Sight<'_>, now: Timestamp) -> Option<Held> {
    let next = held.next.clone().filter(|next| next.until > now);
    let has_turned = next.as_ref().is_some_and(|next| signs(next, sight));
    if held.signing.until > now && !has_turned {
        let signing = held.signing.clone();
        return Some(Held { signing, next });
    }
    next.map(|signing| Held {
        signing,
        next: None,
    })
}

fn published<'a>(sight: &Sight<'a>) -> &'a [Fingerprint] {
    sight.published.map_or(&[][..], |it| &it.authorities)
}

/// Whether the leader signs with this one.
fn signs(authority: &Known, sight: &Sight<'_>) -> bool {
    published(sight).first() == Some(&authority.id)
}

/// Whether what is held is to be signed with: all sign with what stands first in the ConfigMap, and
/// with nothing else while there is one. A replica that holds something else has been overtaken.
pub(super) fn may_sign(held: &Held, published: Option<&Published>) -> bool {
    let first = published.and_then(|published| published.authorities.first());
    first.is_none_or(|first| *first == held.signing.id)
}

/// What is held, if it is more than a memory of former times, from which no Secret must be made.
fn in_force(held: Option<Held>, sight: &Sight<'_>) -> Option<Held> {
    held.filter(|held| may_sign(held, sight.published))
}

/// There is no Secret.
fn absent(held: Option<Held>, sight: &Sight<'_>, rules: &Rules, now: Timestamp) -> Plan {
    let Rules {
        secret, config_map, ..
    } = rules;
    match held {
        Some(held) if rules.external => {
            let problem = format!(
                "Secret {secret} with the certificate authority is gone; the operator signs with what it \
                 holds in memory until it restarts: create the Secret again"
            );
            go_on(held, Some(problem), sight, rules, now)
        }
        Some(held) => Plan {
            action: Some(Action::WriteBack),
            ..go_on(held, None, sight, rules, now)
        },
        None if rules.external => nothing(
            sight,
            format!(
                "Secret {secret} with the certificate authority (tls.crt, tls.key) is not there: create it"
            ),
        ),
        None if sight.published.is_none() => Plan {
            action: Some(Action::Generate),
            problem: None,
            ..nothing(sight, String::new())
        },
        None => nothing(
            sight,
            format!(
                "Secret {secret} is gone, and no replica that leads holds its certificate authority: no \
                 certificate is issued. Put the Secret back from a backup; or delete ConfigMap \
                 {config_map} too, then a new authority is made and every agent enrols again"
            ),
        ),
    }
}

/// The Secret is of no use.
fn unusable(
    why: &str,
    held: Option<Held>,
    sight: &Sight<'_>,
    rules: &Rules,
    now: Timestamp,
) -> Plan {
    let Rules {
        secret,
        config_map,
        external,
        ..
    } = rules;
    let found = format!("Secret {secret} holds no usable certificate authority: {why}");
    match (held, external) {
        (Some(held), external) => {
            let then = match external {
                true => "put a good one in",
                false => {
                    "delete the Secret to have that written back, or put it back from a backup"
                }
            };
            let problem =
                format!("{found}. The operator signs with what it holds in memory: {then}");
            go_on(held, Some(problem), sight, rules, now)
        }
        (None, true) => nothing(
            sight,
            format!("{found}. No certificate is issued: put a good one in"),
        ),
        (None, false) => nothing(
            sight,
            format!(
                "{found}. No certificate is issued: put the Secret back from a backup; or delete it and \
                 ConfigMap {config_map}, then a new authority is made and every agent enrols again"
            ),
        ),
    }
}

/// Nothing can be signed.
fn nothing(sight: &Sight<'_>, problem: String) -> Plan {
    Plan {
        held: None,
        publication: sight.published.cloned().unwrap_or_default(),
        action: None,
        problem: Some(problem),
        waits: None,
        look_again: None,
    }
}

/// What is held counts, whatever the Secret says.
fn go_on(
    held: Held,
    problem: Option<String>,
    sight: &Sight<'_>,
    rules: &Rules,
    now: Timestamp,
) -> Plan {
    let needed: Vec<&Known> = [Some(&held.signing), held.next.as_ref()]
        .into_iter()
        .flatten()
        .collect();
    let publication = publication(&needed, sight, rules, now);
    let ends = held.signing.until;
    Plan {
        action: is_new(&publication, sight).then_some(Action::Publish),
        look_again: earliest([publication.retire_at, Some(ends)]),
        publication,
        held: Some(held),
        problem,
        waits: None,
    }
}

/// The Secret holds an authority that is valid, and perhaps its successor.
fn whole(
    signing: &Known,
    next: Option<&Known>,
    held: Option<Held>,
    sight: &Sight<'_>,
    rules: &Rules,
    now: Timestamp,
) -> Plan {
    // Another one than is held: it was replaced. Who holds the old one goes on signing with it until
    // the leader signs with the new one, which it does when all agents believe it. Who does not hold
    // the old one has no choice but the new one.
    let goes_on = |old: &Known| {
        let is_believed = published(sight).is_empty() || published(sight).contains(&old.id);
        old.id != signing.id && is_believed && !signs(signing, sight)
    };
    let old = held.map(|held| held.signing).filter(goes_on);
    let turns = published(sight).contains(&signing.id) && believed_by_all(signing, sight);
    let first = old.as_ref().filter(|_| !turns);
    let needed: Vec<&Known> = [first, Some(signing), next].into_iter().flatten().collect();
    let publication = publication(&needed, sight, rules, now);
    let to_publish = is_new(&publication, sight);
    let mut waits = None;
    let action = if to_publish {
        Some(Action::Publish)
    } else if old.is_some() {
        waits = doubting(signing, sight);
        None
    } else if let Some(next) = next {
        waits = doubting(next, sight);
        believed_by_all(next, sight).then_some(Action::Promote)
    } else {
        let is_due = !rules.external && now >= signing.two_thirds();
        is_due.then_some(Action::AddNext)
    };
    let due = Some(signing.two_thirds()).filter(|due| *due > now);
    let held = match old {
        Some(old) => Held {
            signing: old,
            next: Some(signing.clone()),
        },
        None => Held {
            signing: signing.clone(),
            next: next.cloned(),
        },
    };
    Plan {
        look_again: earliest([publication.retire_at, due, Some(held.signing.until)]),
        held: Some(held),
        publication,
        action,
        problem: None,
        waits,
    }
}

/// The Secret's authority has expired before all believed its successor: what it signs is of no use
/// to anybody, so the successor signs.
fn overdue(next: &Known, sight: &Sight<'_>, rules: &Rules, now: Timestamp) -> Plan {
    let held = Held {
        signing: next.clone(),
        next: None,
    };
    Plan {
        action: Some(Action::Promote),
        ..go_on(held, None, sight, rules, now)
    }
}

fn believed_by_all(authority: &Known, sight: &Sight<'_>) -> bool {
    let believes = |agent: &BTreeSet<Fingerprint>| agent.contains(&authority.id);
    sight.told.is_some_and(|told| told.iter().all(believes))
}

fn doubting(authority: &Known, sight: &Sight<'_>) -> Option<String> {
    let told = sight.told?;
    let doubting = told.iter().filter(|agent| !agent.contains(&authority.id));
    let doubting = doubting.count();
    (doubting > 0).then(|| {
        let (all, id) = (told.len(), &authority.id);
        format!("{doubting} of {all} agents do not believe the authority {id} yet")
    })
}

/// What the ConfigMap is to hold: those needed, the one that signs first, and the others for as long
/// as what they signed may be in use.
fn publication(needed: &[&Known], sight: &Sight<'_>, rules: &Rules, now: Timestamp) -> Published {
    let mut authorities: Vec<Fingerprint> = needed.iter().map(|it| it.id.clone()).collect();
    let nobody = Published::default();
    let before = sight.published.unwrap_or(&nobody);
    let same_signs = before.authorities.first() == authorities.first();
    let kept = before.retire_at.filter(|_| same_signs);
    if kept.is_some_and(|at| at <= now) {
        return Published {
            authorities,
            retire_at: None,
        };
    }
    let needed = authorities.len();
    for old in &before.authorities {
        if !authorities.contains(old) {
            authorities.push(old.clone());
        }
    }
    // Whole seconds are what the annotation keeps.
    let later = || {
        let at = now.saturating_add(rules.retirement()).ok()?;
        Timestamp::from_second(at.as_second() + 1).ok()
    };
    Published {
        retire_at: (authorities.len() > needed)
            .then(|| kept.or_else(later))
            .flatten(),
        authorities,
    }
}

fn is_new(publication: &Published, sight: &Sight<'_>) -> bool {
    sight.published != Some(publication)
}

fn earliest<const N: usize>(instants: [Option<Timestamp>; N]) -> Option<Timestamp> {
    instants.into_iter().flatten().min()
}
