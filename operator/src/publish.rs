//! Publishing: status by server-side apply, and Events on what a person would want to know. What
//! has not changed is not written.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use icbd_crds::{Condition, ConditionType, Reason, condition};
use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use kube_runtime::events::{Event, EventType, Recorder, Reporter};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::Instant;
use tracing::warn;

/// The field manager of all that the operator writes.
pub(crate) const FIELD_MANAGER: &str = "icbd-operator";

/// Writes statuses and Events.
pub(crate) struct Publisher {
    client: Client,
    recorder: Recorder,
    pace: Mutex<Pace>,
}

/// An Event to record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) note: String,
}

impl Publisher {
    pub(crate) fn new(client: Client, instance: &str) -> Self {
        let reporter = Reporter {
            controller: FIELD_MANAGER.to_owned(),
            instance: Some(instance.to_owned()),
        };
        let recorder = Recorder::new(client.clone(), reporter);
        Publisher {
            client,
            recorder,
            pace: Mutex::default(),
        }
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Writes a status whole. The object's uid goes along, so that an object of the same name made
    /// anew does not get its predecessor's.
    ///
    /// # Errors
    /// Those of the API server; an object that is gone is none.
    pub(crate) async fn status<K>(
        &self,
        api: &Api<K>,
        object: &K,
        status: &impl Serialize,
    ) -> kube::Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let patch = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": { "name": object.name_any(), "uid": object.uid() },
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match api
            .patch_status(&object.name_any(), &params, &Patch::Apply(patch))
            .await
        {
            Ok(_) => Ok(()),
            // Gone, or another of the same name: the watch will say so.
            Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Records Events; one that cannot be written is logged and let go.
    pub(crate) async fn news<K: Resource<DynamicType = ()>>(&self, object: &K, news: Vec<News>) {
        for News {
            warning,
            reason,
            note,
        } in news
        {
            let event = Event {
                type_: if warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                },
                reason: reason.to_string(),
                note: Some(clip(note)),
                action: "Reconcile".to_owned(),
                secondary: None,
            };
            if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
                warn!(%error, reason = %reason, "cannot record an Event");
            }
        }
    }

    /// Sets or removes the finalizer, unless the object has changed since it was seen.
    ///
    /// # Errors
    /// Those of the API server, a conflict among them; and `NotFound`, where one was to be set on an
    /// object that is gone.
    pub(crate) async fn finalizer<K>(&self, object: &K, present: bool) -> kube::Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let finalizer = icbd_crds::names::FINALIZER;
        let mut finalizers: Vec<&str> = object
            .finalizers()
            .iter()
            .map(String::as_str)
            .filter(|f| *f != finalizer)
            .collect();
        if present {
            finalizers.push(finalizer);
        }
        let patch = json!({ "metadata": {
            "resourceVersion": object.resource_version(),
            "finalizers": finalizers,
        }});
        let namespace = object.namespace().unwrap_or_default();
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        match api
            .patch(
                &object.name_any(),
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await
        {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(answer)) if answer.code == 404 && !present => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether progress of this object may be written now; if not, when.
    pub(crate) fn pace(&self, uid: &str, decile: u64) -> Result<(), Duration> {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.admit(uid, decile, Instant::now())
    }
}

/// Progress is written at most every 2 s for an object, or at each tenth, and at most 20 times a
/// second in all.
#[derive(Default)]
struct Pace {
    last: HashMap<String, (Instant, u64)>,
    second: Option<(Instant, u32)>,
}

const BETWEEN: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);
const A_SECOND: u32 = 20;

impl Pace {
    fn admit(&mut self, uid: &str, decile: u64, now: Instant) -> Result<(), Duration> {
        self.last
            .retain(|_, (at, _)| now.duration_since(*at) < 60 * SECOND);
        if let Some((at, before)) = self.last.get(uid) {
            let since = now.duration_since(*at);
            if since < BETWEEN && *before == decile {
                return Err(BETWEEN - since);
            }
        }
        let (since, count) = match self.second {
            Some((since, count)) if now.duration_since(since) < SECOND => (since, count),
            _ => (now, 0),
        };
        if count >= A_SECOND {
            return Err(SECOND
                .saturating_sub(now.duration_since(since))
                .max(Duration::from_millis(50)));
        }
        self.second = Some((since, count + 1));
        self.last.insert(uid.to_owned(), (now, decile));
        Ok(())
    }
}

/// What is worth an Event between two statuses: that something good came true, and each reason for
/// which a person is needed.
pub(crate) fn news(before: &[Condition], after: &[Condition]) -> Vec<News> {
    use ConditionType::{Expired, Ready, Replicated, Stalled, Taken};
    let turned = |type_| {
        let now = condition(after, type_).filter(|now| now.status == "True")?;
        let was = condition(before, type_).filter(|was| was.status == "True");
        was.is_none_or(|was| was.reason != now.reason)
            .then_some(now)
    };
    let good = [Taken, Replicated, Ready].map(|type_| (type_, false));
    let bad = [Stalled, Expired].map(|type_| (type_, true));
    let mut news: Vec<News> = Vec::new();
    for (type_, warning) in good.into_iter().chain(bad) {
        let Some(now) = turned(type_) else { continue };
        let Some(reason) = Reason::from_name(&now.reason) else {
            continue;
        };
        let reason = reason.as_str();
        if news.iter().all(|other| other.reason != reason) {
            news.push(News {
                warning,
                reason,
                note: now.message.clone(),
            });
        }
    }
    news
}

/// Kubernetes takes 1024 bytes of note.
fn clip(note: String) -> String {
    let end = (0..=note.len().min(1000))
        .rev()
        .find(|&i| note.is_char_boundary(i));
    note[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_paced_for_each_object_and_in_all() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(pace.admit("a", 0, at(0)), Ok(()));
        assert_eq!(
            pace.admit("a", 0, at(500)),
            Err(Duration::from_millis(1500))
        );
        assert_eq!(pace.admit("a", 1, at(600)), Ok(()), "another tenth");
        assert_eq!(pace.admit("a", 1, at(2700)), Ok(()));
        let admitted = (0..100)
            .filter(|i| pace.admit(&format!("o{i}"), 0, at(9000)).is_ok())
            .count();
        assert_eq!(admitted, 20);
    }

    #[test]
    fn an_event_is_recorded_once_for_each_turn() {
        let say = |status: &str, reason: &str| Condition {
            type_: "Stalled".into(),
            status: status.into(),
            reason: reason.into(),
            message: "m".into(),
            observed_generation: None,
            last_transition_time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                jiff::Timestamp::UNIX_EPOCH,
            ),
        };
        let conflict = [say("True", "Conflict")];
        assert_eq!(news(&[], &conflict).len(), 1);
        assert!(news(&conflict, &conflict).is_empty());
        assert_eq!(news(&conflict, &[say("True", "LineageBroken")]).len(), 1);
        assert!(news(&conflict, &[]).is_empty());
    }
}
