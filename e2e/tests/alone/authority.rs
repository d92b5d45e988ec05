//! The certificate authority: it is not lost by accident, and never made anew behind anybody's back.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use icbd_crds::{ConditionType, Reason};
use icbd_e2e::{CA_SECRET, Component, Failure, Outcome, SYSTEM_NAMESPACE, Scenario, TRUST, within};
use icbd_net::Fingerprint;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Event, Secret};
use kube::api::{Api, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::json;

use crate::{NODES, alone};

/// Long enough for an operator to start, to find that something is wrong, and to look again.
const NOTICED: Duration = Duration::from_secs(120);

/// Runs so many operators from now on, and waits until it is so.
async fn operators(s: &Scenario, count: usize) -> Outcome {
    let replicas = format!("--replicas={count}");
    let scale = [
        "scale",
        "deployment/icbd-operator",
        "-n",
        SYSTEM_NAMESPACE,
        &replicas,
    ];
    s.cluster.kubectl(&scale).await?;
    within(NOTICED, &format!("{count} operators"), async || {
        let there = s.cluster.pods(Component::Operator).await?.len();
        Ok(if there == count {
            Ok(())
        } else {
            Err(format!("{there}"))
        })
    })
    .await
}

/// Waits until the operators say that the authority is lost: in their log, in an Event on their
/// Deployment, and on the scenario's target, where it says what to do.
async fn ca_lost(s: &Scenario, after: SystemTime) -> Outcome<String> {
    let events: Api<Event> = Api::namespaced(s.cluster.client.clone(), SYSTEM_NAMESPACE);
    let about = "involvedObject.kind=Deployment,involvedObject.name=icbd-operator,reason=CALost";
    let since = after
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs() as i64;
    within(NOTICED, "an Event CALost", async || {
        let found = events.list(&ListParams::default().fields(about)).await?;
        let is_new = found
            .items
            .iter()
            .any(|event| said_at(event) >= Some(since));
        Ok(is_new.then_some(()).ok_or_else(|| format!("{found:?}")))
    })
    .await?;
    within(NOTICED, "CALost in the log", async || {
        let mut logs = String::new();
        for pod in s.cluster.pods(Component::Operator).await? {
            let name = pod.metadata.name.unwrap_or_default();
            let log = ["logs", "-n", SYSTEM_NAMESPACE, &name, "--tail=50"];
            logs.push_str(&s.cluster.kubectl(&log).await.unwrap_or_default());
        }
        Ok(if logs.contains("CALost") {
            Ok(())
        } else {
            Err(logs)
        })
    })
    .await?;
    s.target_says(ConditionType::Stalled, Reason::CALost).await
}

/// When an Event was last told, Unix seconds.
fn said_at(event: &Event) -> Option<i64> {
    let series = event.series.as_ref();
    let last = series.and_then(|series| series.last_observed_time.as_ref());
    let micro = last.or(event.event_time.as_ref());
    micro
        .map(|time| time.0.as_second())
        .or(event.last_timestamp.as_ref().map(|time| time.0.as_second()))
}

/// Waits until an authority signs that is not `other`.
async fn signing(s: &Scenario, other: Option<&Fingerprint>) -> Outcome<Fingerprint> {
    within(NOTICED, "an authority that signs", async || {
        let found = s.cluster.signing().await?;
        Ok(match found {
            Some(found) if Some(&found) != other => Ok(found),
            found => Err(format!("{found:?}")),
        })
    })
    .await
}

async fn delete_trust(s: &Scenario) -> Outcome {
    s.delete(&s.cluster.config_maps(), TRUST).await
}

async fn delete_authority(s: &Scenario) -> Outcome {
    s.delete(&s.cluster.secrets(), CA_SECRET).await
}

/// All works: a snapshot of `disk` is taken and replicated.
async fn a_snapshot_is_replicated(s: &Scenario, name: &str) -> Outcome {
    s.cluster.product_is_ready().await?;
    s.snapshot(name, json!({"image": "disk"})).await?;
    s.replicated(name).await.map(drop)
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn a_deleted_secret_is_written_back_by_the_leader_that_holds_the_authority() -> Outcome {
    alone("ca-deleted", async |s| {
        let before = signing(s, None).await?;
        let trusted = s.cluster.trusted().await?;
        delete_authority(s).await?;
        assert_eq!(signing(s, None).await?, before);
        assert_eq!(s.cluster.trusted().await?, trusted);
        s.disk_on_node_1(&["node-2"]).await?;
        a_snapshot_is_replicated(s, "first").await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn a_lost_or_broken_authority_is_never_made_anew_before_trust_is_deleted_too() -> Outcome {
    alone("ca-lost", async |s| {
        s.disk_on_node_1(&["node-2", "node-3"]).await?;
        a_snapshot_is_replicated(s, "first").await?;
        let before = signing(s, None).await?;
        let trusted = s.cluster.trusted().await?;
        let secrets = s.cluster.secrets();
        let kept = secrets.get(CA_SECRET).await?;

        // Broken: what is in it is left for whoever can mend it, and mended it is taken up again.
        operators(s, 0).await?;
        let garbage = json!({"stringData": {"tls.crt": "garbage"}});
        let broken_at = SystemTime::now();
        secrets
            .patch(CA_SECRET, &PatchParams::default(), &Patch::Merge(garbage))
            .await?;
        operators(s, 2).await?;
        let says = ca_lost(s, broken_at).await?;
        assert!(says.contains(CA_SECRET) && says.contains(TRUST), "{says}");
        let still = secrets.get(CA_SECRET).await?.data.unwrap_or_default();
        assert_eq!(still["tls.crt"], ByteString(b"garbage".to_vec()));
        assert_eq!(s.cluster.trusted().await?, trusted);
        let mended = json!({"data": kept.data});
        secrets
            .patch(CA_SECRET, &PatchParams::default(), &Patch::Merge(mended))
            .await?;
        a_snapshot_is_replicated(s, "mended").await?;
        assert_eq!(signing(s, None).await?, before);

        // Lost, and nobody has it.
        operators(s, 0).await?;
        delete_authority(s).await?;
        let lost_at = SystemTime::now();
        operators(s, 2).await?;
        let says = ca_lost(s, lost_at).await?;
        assert!(says.contains(TRUST), "it does not say what to do: {says}");
        assert_eq!(s.cluster.signing().await?, None, "made anew unasked");
        assert_eq!(s.cluster.trusted().await?, trusted);

        delete_trust(s).await?;
        let after = signing(s, Some(&before)).await?;
        a_snapshot_is_replicated(s, "anew").await?;
        assert_eq!(s.cluster.trusted().await?, [after]);
        s.same_content("disk", 3, &NODES).await.map(drop)
    })
    .await
}

/// A Secret as cert-manager fills it for a Certificate with isCA.
fn secret_from_elsewhere(name: &str) -> Outcome<Secret> {
    let unusable = |error| Failure::Unexpected(format!("an authority: {error}"));
    let key = KeyPair::generate().map_err(unusable)?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "icbd by somebody else");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::KeyCertSign,
    ];
    let certificate = params.self_signed(&key).map_err(unusable)?.pem();
    let data = [
        ("ca.crt", certificate.clone()),
        ("tls.crt", certificate),
        ("tls.key", key.serialize_pem()),
    ];
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(BTreeMap::from(data.map(|(key, text)| {
            (key.to_owned(), ByteString(text.into_bytes()))
        }))),
        ..Secret::default()
    })
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn an_authority_from_elsewhere_is_used_and_left_alone() -> Outcome {
    alone("ca-from-elsewhere", async |s| {
        s.disk_on_node_1(&["node-2"]).await?;
        a_snapshot_is_replicated(s, "first").await?;
        let name = format!("{}-ca", s.namespace);
        let secrets = s.cluster.secrets();
        let filled = secrets
            .create(&PostParams::default(), &secret_from_elsewhere(&name)?)
            .await?;
        let value = format!("identity.caSecret={name}");
        s.cluster.installed_anew(&["--set", &value]).await?;
        a_snapshot_is_replicated(s, "second").await?;
        assert_eq!(
            s.cluster.signing().await?,
            None,
            "another authority was made"
        );
        assert_eq!(s.cluster.trusted().await?.len(), 1);
        let after = secrets.get(&name).await?;
        assert_eq!(
            after.metadata.resource_version,
            filled.metadata.resource_version
        );

        s.cluster
            .installed_anew(&["--set", "identity.caSecret="])
            .await?;
        a_snapshot_is_replicated(s, "third").await?;
        s.delete(&secrets, &name).await?;
        s.numbers_become("disk", &["node-1", "node-2"], &[1, 2, 3])
            .await
    })
    .await
}
