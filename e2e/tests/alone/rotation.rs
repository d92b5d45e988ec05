//! Certificates and their authority are replaced while data moves.

use std::time::Duration;

use icbd_crds::Snapshot;
use icbd_e2e::{Outcome, Scenario, replica, selecting, within};
use icbd_net::Fingerprint;
use serde_json::json;

use crate::alone;

/// The lifetimes of the test, and long enough for an authority to be replaced in full: published,
/// believed by all, signing, and the old one dropped.
const SHORT: [&str; 4] = [
    "--set",
    "identity.certificateLifetime=60s",
    "--set",
    "identity.caLifetime=4m",
];
const REPLACED: Duration = Duration::from_secs(10 * 60);

/// How the transfer stands: which attempt it is, since when, and how far.
fn transfer(snapshot: &Snapshot) -> Option<(u32, String, u64)> {
    let row = replica(snapshot, "node-2")?;
    let started = row.started_at.as_ref().map(|at| format!("{at:?}"));
    Some((row.attempts, started.unwrap_or_default(), row.bytes_done))
}

/// Waits until the authority `old` is believed no more.
async fn dropped(s: &Scenario, old: &Fingerprint) -> Outcome<Vec<Fingerprint>> {
    within(REPLACED, &format!("{old} to be dropped"), async || {
        let trusted = s.cluster.trusted().await?;
        Ok(if trusted.contains(old) || trusted.is_empty() {
            Err(format!("{trusted:?}"))
        } else {
            Ok(trusted)
        })
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn certificates_and_their_authority_are_replaced_during_a_transfer() -> Outcome {
    alone("rotation", async |s| {
        s.cluster.installed_anew(&SHORT).await?;
        let result = replaced_during_a_transfer(s).await;
        let long = [
            "--set",
            "identity.certificateLifetime=24h",
            "--set",
            "identity.caLifetime=8760h",
        ];
        s.cluster.installed_anew(&long).await?;
        result
    })
    .await
}

#[allow(clippy::print_stdout)] // of a test, for people
async fn replaced_during_a_transfer(s: &Scenario) -> Outcome {
    s.write_live("node-1", "disk", "head -c 44M /dev/urandom > disk.img")
        .await?;
    // Slow enough to last beyond the lives of several certificates and one authority.
    s.target(json!({"nodes": selecting(&["node-2"]), "bandwidth": "160Ki"}))
        .await?;
    s.image("disk", "node-1", json!({"compression": "None"}))
        .await?;
    s.snapshot("first", json!({"image": "disk"})).await?;
    let moving = |snapshot: &Snapshot| {
        transfer(snapshot).is_some_and(|(_, _, bytes_done)| bytes_done > 1 << 20)
    };
    let started = s.until(&s.snapshots(), "first", "moving", moving).await?;
    let (attempt, since, _) = transfer(&started).unwrap_or_default();

    let before = s.cluster.trusted().await?;
    let old = s.cluster.installation().await?.authority.fingerprint();
    assert!(
        before.contains(&old),
        "{old} signs, believed are {before:?}"
    );
    let after = dropped(s, &old).await?;
    let new = s.cluster.installation().await?.authority.fingerprint();
    println!("signing: {old}, then {new}; believed: {before:?}, then {after:?}");
    assert_ne!(old, new);
    assert!(after.contains(&new));

    // The connection of the transfer has outlived all that it was made with.
    let now = s.snapshots().get("first").await?;
    let (attempt_now, since_now, done) = transfer(&now).unwrap_or_default();
    println!("the transfer of attempt {attempt_now}, since {since_now}, has done {done} bytes");
    assert_eq!((attempt_now, &since_now), (attempt, &since));
    assert!(!icbd_e2e::is_true(
        icbd_e2e::Observed::conditions(&now),
        icbd_crds::ConditionType::Replicated
    ));
    // And every other connection is made with what is new.
    s.write_live("node-2", "other", "head -c 100000 /dev/urandom > disk.img")
        .await?;
    s.image("other", "node-2", json!({"targets": []})).await?;
    s.snapshot("other", json!({"image": "other"})).await?;
    s.snapshot_is("other", icbd_crds::ConditionType::Taken)
        .await?;

    within(REPLACED, "the transfer to end", async || {
        let now = s.snapshots().get("first").await?;
        let ended = replica(&now, "node-2").is_some_and(|row| row.completed_at.is_some());
        Ok(if ended {
            Ok(())
        } else {
            Err(format!("{:?}", transfer(&now)))
        })
    })
    .await?;
    let ended = s.replicated("first").await?;
    let (attempt_now, since_now, _) = transfer(&ended).unwrap_or_default();
    assert_eq!((attempt_now, since_now), (attempt, since));
    s.same_content("disk", 1, &["node-1", "node-2"])
        .await
        .map(drop)
}
