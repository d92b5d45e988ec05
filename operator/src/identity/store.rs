//! Where the authority is kept: a Secret, and the ConfigMap by which all know whom to believe. As
//! they stand in Kubernetes, and as decisions see them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt};
use icbd_crds::names;
use icbd_net::{Authority, Fingerprint, Trust};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use kube_runtime::{WatchStreamExt, watcher};

use super::plan::{Known, Published, Stored};

/// Keys in the Secret: what signs, and what is to sign next.
const SIGNING: [&str; 2] = ["tls.crt", "tls.key"];
const NEXT: [&str; 2] = ["next.crt", "next.key"];
/// Key in the ConfigMap.
const BUNDLE: &str = "ca.crt";

/// Both objects, in one namespace.
pub(super) struct Store {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    secret: String,
    config_map: String,
}

/// The Secret as it was seen.
#[derive(Clone)]
pub(super) struct SeenSecret {
    object: Option<Secret>,
    pub(super) stored: Stored,
    pub(super) authorities: Vec<Arc<Authority>>,
}

/// The ConfigMap as it was seen.
#[derive(Clone)]
pub(super) struct SeenBundle {
    object: Option<ConfigMap>,
    pub(super) published: Option<Published>,
    /// The certificates in it.
    pub(super) certificates: BTreeMap<Fingerprint, String>,
}

/// What is to sign, and what is to sign next.
pub(super) struct Keys<'a> {
    pub(super) signing: &'a Authority,
    pub(super) next: Option<&'a Authority>,
}

impl Known {
    pub(super) fn of(authority: &Authority) -> Known {
        let validity = authority.validity();
        let time = |at| Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH);
        Known {
            id: authority.fingerprint(),
            since: time(validity.not_before),
            until: time(validity.not_after),
        }
    }
}

impl Store {
    pub(super) fn new(client: Client, namespace: &str, secret: String, config_map: String) -> Self {
        Store {
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client, namespace),
            secret,
            config_map,
        }
    }

    /// The Secret, now and after each change. Where Kubernetes does not let it be read, it is there
    /// and of no use.
    pub(super) fn secrets(&self) -> BoxStream<'static, Result<SeenSecret, watcher::Error>> {
        watch(self.secrets.clone(), &self.secret)
            .map(|seen| match seen {
                Ok(secret) => Ok(SeenSecret::of(secret)),
                Err(error) if is_forbidden(&error) => Ok(SeenSecret {
                    object: None,
                    stored: Stored::Unusable(format!("it cannot be read: {error}")),
                    authorities: Vec::new(),
                }),
                Err(error) => Err(error),
            })
            .boxed()
    }

    /// The ConfigMap, now and after each change.
    pub(super) fn bundles(&self) -> BoxStream<'static, Result<SeenBundle, watcher::Error>> {
        let seen = watch(self.config_maps.clone(), &self.config_map);
        seen.map(|seen| seen.map(SeenBundle::of)).boxed()
    }

    /// Whether neither is there, as the API server knows and no copy.
    pub(super) async fn nothing_there(&self) -> kube::Result<bool> {
        let secret = self.secrets.get_opt(&self.secret).await?;
        let bundle = self.config_maps.get_opt(&self.config_map).await?;
        Ok(secret.is_none() && bundle.is_none())
    }

    /// Makes the Secret; one that is there is left alone, and that is an error.
    pub(super) async fn create(&self, keys: Keys<'_>) -> kube::Result<()> {
        let mut secret = Secret {
            metadata: metadata(&self.secret),
            type_: Some("kubernetes.io/tls".to_owned()),
            ..Secret::default()
        };
        keys.put(&mut secret);
        self.secrets.create(&PostParams::default(), &secret).await?;
        Ok(())
    }

    /// Writes the Secret that was seen; one that has changed since is left alone, and that is an
    /// error.
    pub(super) async fn write(&self, seen: &SeenSecret, keys: Keys<'_>) -> kube::Result<()> {
        let Some(mut secret) = seen.object.clone() else {
            return Ok(());
        };
        keys.put(&mut secret);
        let params = PostParams::default();
        self.secrets.replace(&self.secret, &params, &secret).await?;
        Ok(())
    }

    /// Makes the ConfigMap or writes the one that was seen; one that has changed since is left
    /// alone, and that is an error. What was written is what has been seen from then on.
    pub(super) async fn publish(
        &self,
        seen: &SeenBundle,
        bundle: &str,
        retire_at: Option<Timestamp>,
    ) -> kube::Result<SeenBundle> {
        let mut object = seen.object.clone().unwrap_or_else(|| ConfigMap {
            metadata: metadata(&self.config_map),
            ..ConfigMap::default()
        });
        let data = object.data.get_or_insert_default();
        data.insert(BUNDLE.to_owned(), bundle.to_owned());
        let annotations = object.annotations_mut();
        match retire_at {
            Some(at) => annotations.insert(names::RETIRE_AT.to_owned(), at.to_string()),
            None => annotations.remove(names::RETIRE_AT),
        };
        let params = PostParams::default();
        let written = match seen.object {
            Some(_) => {
                let name = &self.config_map;
                self.config_maps.replace(name, &params, &object).await?
            }
            None => self.config_maps.create(&params, &object).await?,
        };
        Ok(SeenBundle::of(Some(written)))
    }
}

fn watch<K>(
    api: Api<K>,
    name: &str,
) -> impl futures::Stream<Item = watcher::Result<Option<K>>> + use<K>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    // A list of one name needs no right to read the others.
    let one = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut there = None;
    let events = watcher(api, one).default_backoff();
    events.filter_map(move |event| {
        let seen = match event {
            Ok(watcher::Event::Init) => {
                there = None;
                None
            }
            Ok(watcher::Event::InitApply(object)) => {
                there = Some(object);
                None
            }
            Ok(watcher::Event::InitDone) => Some(Ok(there.take())),
            Ok(watcher::Event::Apply(object)) => Some(Ok(Some(object))),
            Ok(watcher::Event::Delete(_)) => Some(Ok(None)),
            Err(error) => Some(Err(error)),
        };
        futures::future::ready(seen)
    })
}

fn is_forbidden(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::InitialListFailed(kube::Error::Api(answer)) if answer.code == 403
    )
}

fn metadata(name: &str) -> ObjectMeta {
    let labels = [
        ("app.kubernetes.io/part-of", "icbd"),
        ("app.kubernetes.io/component", "operator"),
        ("app.kubernetes.io/managed-by", "icbd-operator"),
    ];
    let label = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some(labels.map(label).into()),
        ..ObjectMeta::default()
    }
}

impl Keys<'_> {
    fn put(&self, secret: &mut Secret) {
        let data = secret.data.get_or_insert_default();
        for key in NEXT {
            data.remove(key);
        }
        let mut put = |[certificate, key]: [&str; 2], authority: &Authority| {
            for (name, pem) in [
                (certificate, authority.certificate_pem()),
                (key, authority.key_pem()),
            ] {
                data.insert(name.to_owned(), ByteString(pem.as_bytes().to_vec()));
            }
        };
        put(SIGNING, self.signing);
        if let Some(next) = self.next {
            put(NEXT, next);
        }
    }
}

impl SeenSecret {
    pub(super) fn of(object: Option<Secret>) -> Self {
        let mut authorities = Vec::new();
        let stored = match &object {
            None => Stored::Absent,
            Some(secret) => match read(secret, &mut authorities) {
                Ok((signing, next)) => Stored::Whole { signing, next },
                Err(why) => {
                    authorities.clear();
                    Stored::Unusable(why)
                }
            },
        };
        SeenSecret {
            object,
            stored,
            authorities,
        }
    }
}

fn read(
    secret: &Secret,
    authorities: &mut Vec<Arc<Authority>>,
) -> Result<(Known, Option<Known>), String> {
    let empty = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&empty);
    let mut load = |[certificate, key]: [&str; 2]| {
        let part = |name: &str| {
            let found = data.get(name).filter(|part| !part.0.is_empty());
            found.ok_or_else(|| format!("it has no key {name}"))
        };
        let authority = Authority::load(&part(certificate)?.0, &part(key)?.0)
            .map_err(|error| format!("{certificate} and {key}: {error}"))?;
        let known = Known::of(&authority);
        authorities.push(Arc::new(authority));
        Ok::<_, String>(known)
    };
    let signing = load(SIGNING)?;
    let is_under_way = NEXT.iter().any(|key| data.contains_key(*key));
    let next = is_under_way.then(|| load(NEXT)).transpose()?;
    Ok((signing, next))
}

impl SeenBundle {
    pub(super) fn of(object: Option<ConfigMap>) -> Self {
        let mut certificates = BTreeMap::new();
        let published = object.as_ref().map(|object| {
            let bundle = object.data.as_ref().and_then(|data| data.get(BUNDLE));
            let trust = bundle.and_then(|bundle| Trust::from_pem(bundle.as_bytes()).ok());
            let at = object.annotations().get(names::RETIRE_AT);
            let mut published = Published {
                retire_at: at.and_then(|at| at.parse().ok()),
                ..Published::default()
            };
            if let Some(trust) = trust {
                published.authorities = trust.fingerprints();
                certificates.extend(trust.certificates());
            }
            published
        });
        SeenBundle {
            object,
            published,
            certificates,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use icbd_net::Validity;

    use super::*;

    fn authority() -> Authority {
        let validity = Validity::from(SystemTime::now(), Duration::from_secs(86_400));
        Authority::generate("vms.icbd", validity).unwrap()
    }

    fn secret(of: &[(&str, &str)]) -> SeenSecret {
        let data = of.iter().map(|(key, value)| {
            let value = ByteString(value.as_bytes().to_vec());
            ((*key).to_owned(), value)
        });
        SeenSecret::of(Some(Secret {
            data: Some(data.collect()),
            ..Secret::default()
        }))
    }

    #[test]
    fn an_authority_of_the_identity_is_read_back_as_it_was_put() {
        let (one, other) = (authority(), authority());
        let mut object = Secret::default();
        let keys = Keys {
            signing: &one,
            next: Some(&other),
        };
        keys.put(&mut object);
        let seen = SeenSecret::of(Some(object.clone()));
        let expected = Stored::Whole {
            signing: Known::of(&one),
            next: Some(Known::of(&other)),
        };
        assert_eq!(seen.stored, expected);
        let ids: Vec<_> = seen.authorities.iter().map(|it| it.fingerprint()).collect();
        assert_eq!(ids, [one.fingerprint(), other.fingerprint()]);
        let keys = Keys {
            signing: &other,
            next: None,
        };
        keys.put(&mut object);
        let expected = Stored::Whole {
            signing: Known::of(&other),
            next: None,
        };
        assert_eq!(SeenSecret::of(Some(object)).stored, expected);
    }

    #[test]
    fn what_is_wrong_with_a_secret_of_the_identity_is_named() {
        let (one, other) = (authority(), authority());
        let good = [
            ("tls.crt", one.certificate_pem()),
            ("tls.key", one.key_pem()),
        ];
        for (parts, why) in [
            (vec![], "no key tls.crt"),
            (vec![good[0]], "no key tls.key"),
            (
                vec![("tls.crt", "nothing"), good[1]],
                "certificate does not decode",
            ),
            (
                vec![good[0], ("tls.key", other.key_pem())],
                "not that of the certificate",
            ),
            (
                vec![good[0], good[1], ("next.crt", one.certificate_pem())],
                "no key next.key",
            ),
        ] {
            match secret(&parts).stored {
                Stored::Unusable(found) => assert!(found.contains(why), "{found}"),
                other => panic!("{other:?} for {parts:?}"),
            }
        }
    }

    #[test]
    fn a_bundle_of_the_identity_is_read_in_its_order_and_one_that_is_broken_as_empty() {
        let (one, other) = (authority(), authority());
        let bundle = format!("{}{}", one.certificate_pem(), other.certificate_pem());
        let object = |text: &str| ConfigMap {
            metadata: ObjectMeta {
                annotations: Some(
                    [(
                        names::RETIRE_AT.to_owned(),
                        "2030-01-02T03:04:05Z".to_owned(),
                    )]
                    .into(),
                ),
                ..ObjectMeta::default()
            },
            data: Some([("ca.crt".to_owned(), text.to_owned())].into()),
            ..ConfigMap::default()
        };
        let seen = SeenBundle::of(Some(object(&bundle)));
        let published = seen.published.unwrap();
        assert_eq!(
            published.authorities,
            [one.fingerprint(), other.fingerprint()]
        );
        assert_eq!(published.retire_at, "2030-01-02T03:04:05Z".parse().ok());
        assert_eq!(seen.certificates[&one.fingerprint()], one.certificate_pem());
        let broken = SeenBundle::of(Some(object("nothing"))).published.unwrap();
        assert!(broken.authorities.is_empty());
        assert!(SeenBundle::of(None).published.is_none());
    }
}
