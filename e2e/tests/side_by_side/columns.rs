//! What people see with kubectl, and wait for with it.

use std::time::Duration;

use icbd_e2e::{Outcome, Scenario, selecting, within};
use serde_json::json;

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn kubectl_wait_returns_when_a_snapshot_is_replicated() -> Outcome {
    Scenario::run("wait", async |s| {
        s.disk_on_node_1(&["node-2", "node-3"]).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        for condition in ["Taken", "Replicated", "Ready"] {
            let wait = format!("--for=condition={condition}");
            let wait = [
                "wait",
                &wait,
                "isnap/first",
                "-n",
                &s.namespace,
                "--timeout=120s",
            ];
            s.cluster.kubectl(&wait).await?;
        }
        s.same_content("disk", 1, &["node-1", "node-2", "node-3"])
            .await?;
        let wait = [
            "wait",
            "--for=condition=UpToDate",
            "vimg/disk",
            "-n",
            &s.namespace,
        ];
        s.cluster
            .kubectl(&[&wait[..], &["--timeout=120s"]].concat())
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn kubectl_get_shows_replicas_and_lag() -> Outcome {
    Scenario::run("columns", async |s| {
        s.disk_on_node_1(&["node-2", "node-3"]).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        s.replicated("first").await?;
        let snapshot = Row::of(s, "isnap", "first").await?;
        assert_eq!(snapshot.cell("IMAGE"), "disk");
        assert_eq!(snapshot.cell("NUMBER"), "1");
        assert_eq!(snapshot.cell("REPLICATED"), "2/2");
        assert_eq!(snapshot.cell("READY"), "True");

        s.image_says(
            "disk",
            icbd_crds::ConditionType::UpToDate,
            icbd_crds::Reason::UpToDate,
        )
        .await?;
        let image = Row::of(s, "vimg", "disk").await?;
        assert_eq!(image.cell("PRIMARY"), "node-1");
        assert_eq!(image.cell("LATEST"), "1");
        assert_eq!(image.cell("REPLICAS"), "2/2");
        assert_eq!(image.cell("READY"), "True");
        // The lag is an age, which kubectl computes: 7s, 1m20s.
        let lag = image.cell("SYNCED");
        assert!(
            lag.ends_with(['s', 'm']) && lag.starts_with(|c: char| c.is_ascii_digit()),
            "{lag}"
        );

        let target = Row::of(s, "rtgt", &s.namespace).await?;
        assert_eq!(target.cell("NODES"), "2/2");
        assert_eq!(target.cell("READY"), "True");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn kubectl_get_shows_percent_rate_and_remaining_time_of_a_transfer() -> Outcome {
    Scenario::run("progress", async |s| {
        s.write_live("node-1", "disk", "head -c 12M /dev/urandom > disk.img")
            .await?;
        s.target(json!({"nodes": selecting(&["node-2"]), "bandwidth": "1Mi"}))
            .await?;
        s.image("disk", "node-1", json!({"compression": "None"}))
            .await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        within(Duration::from_secs(60), "progress to show", async || {
            let row = Row::of(s, "isnap", "first").await?;
            let percent = row
                .cell("PROGRESS")
                .strip_suffix('%')
                .and_then(|p| p.parse::<u32>().ok());
            let moving = percent.is_some_and(|p| (1..100).contains(&p))
                && row.cell("RATE").ends_with("/s")
                && row.cell("REMAINING").ends_with('s');
            Ok(if moving { Ok(()) } else { Err(row.text) })
        })
        .await?;
        s.replicated("first").await?;
        // What is over is no longer moving.
        let row = Row::of(s, "isnap", "first").await?;
        for column in ["RATE", "REMAINING"] {
            assert_eq!(row.cell(column), "", "{}", row.text);
        }
        Ok(())
    })
    .await
}

/// One row of `kubectl get`, read by its header: cells may be empty, and hold single blanks.
struct Row {
    text: String,
}

impl Row {
    async fn of(s: &Scenario, kind: &str, name: &str) -> Outcome<Row> {
        let text = s
            .cluster
            .kubectl(&["get", kind, name, "-n", &s.namespace])
            .await?;
        Ok(Row { text })
    }

    fn cell(&self, column: &str) -> &str {
        let (header, row) = self.text.split_once('\n').unwrap_or(("", ""));
        let begins =
            |&(at, c): &(usize, char)| c != ' ' && (at == 0 || header[..at].ends_with("  "));
        let starts: Vec<usize> = header
            .char_indices()
            .filter(begins)
            .map(|(at, _)| at)
            .collect();
        let ends = starts.iter().skip(1).copied().chain([row.len()]);
        starts
            .iter()
            .zip(ends)
            .find(|&(&start, end)| header[start..end.min(header.len())].trim() == column)
            .and_then(|(&start, end)| row.get(start..end.min(row.len())))
            .map_or("", str::trim)
    }
}
