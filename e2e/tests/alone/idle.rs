//! With nothing to do, nothing is written.

use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use icbd_e2e::{Component, Failure, Outcome, SYSTEM_NAMESPACE, Scenario, selecting, within};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{NODES, alone};

/// The API server's audit log, from where it was last read.
struct AuditLog {
    file: std::fs::File,
}

impl AuditLog {
    async fn open(s: &Scenario) -> Outcome<AuditLog> {
        let path = s.cluster.state().await?.join("control-plane/audit.log");
        let mut file = std::fs::File::open(&path)
            .map_err(|error| Failure::Unexpected(format!("{}: {error}", path.display())))?;
        file.seek(SeekFrom::End(0))
            .map_err(|error| Failure::Unexpected(error.to_string()))?;
        Ok(AuditLog { file })
    }

    /// What the product wrote since, its Leases apart.
    fn product_writes(&mut self) -> Outcome<Vec<String>> {
        let mut text = String::new();
        self.file
            .read_to_string(&mut text)
            .map_err(|error| Failure::Unexpected(format!("reading the audit log: {error}")))?;
        let ours = [Component::Operator, Component::Agent]
            .map(|part| format!("system:serviceaccount:{SYSTEM_NAMESPACE}:{}", part.name()));
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|event| {
                ours.iter()
                    .any(|name| event["user"]["username"] == name.as_str())
            })
            .filter(|event| event["objectRef"]["resource"] != "leases")
            .map(|event| format!("{} {}", event["verb"], event["requestURI"]))
            .collect())
    }
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn an_idle_minute_with_three_images_sees_no_write_but_leases() -> Outcome {
    alone("idle", async |s| {
        let mut log = AuditLog::open(s).await?;
        s.target(json!({"nodes": selecting(&NODES)})).await?;
        for primary in NODES {
            let image = format!("on-{primary}");
            s.write_live(primary, &image, "head -c 200000 /dev/urandom > disk.img")
                .await?;
            s.image(&image, primary, json!({})).await?;
            s.snapshot(&image, json!({"image": image})).await?;
        }
        for primary in NODES {
            s.replicated(&format!("on-{primary}")).await?;
        }
        assert!(
            !log.product_writes()?.is_empty(),
            "the log does not show the product's writes"
        );
        let mut quiet_since = Instant::now();
        within(Duration::from_secs(120), "ten quiet seconds", async || {
            let writes = log.product_writes()?;
            if !writes.is_empty() {
                quiet_since = Instant::now();
            }
            let quiet = quiet_since.elapsed();
            Ok(if quiet.as_secs() >= 10 {
                Ok(())
            } else {
                Err(format!("{writes:?}"))
            })
        })
        .await?;
        // The minute is what is measured.
        sleep(Duration::from_secs(60)).await;
        let writes = log.product_writes()?;
        assert!(
            writes.is_empty(),
            "{} writes in an idle minute: {writes:#?}",
            writes.len()
        );
        Ok(())
    })
    .await
}
