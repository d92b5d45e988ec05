//! A node's own view: what is on its pool, and what runs on it.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::cluster::checkout;
use crate::{Cluster, Failure, Outcome};

/// Where each node has its pool.
pub const POOL: &str = "/var/lib/icbd/pool";

/// One node of the cluster.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    pub(crate) cluster: &'a Cluster,
    /// Its name.
    pub name: &'a str,
}

impl Node<'_> {
    /// Runs a bash script on the node, as root, and returns what it printed.
    ///
    /// # Errors
    /// When a command of it fails.
    pub async fn sh(&self, script: &str) -> Outcome<String> {
        let script = format!("set -euo pipefail\n{script}");
        self.cluster
            .hack(&["exec", self.name, "--", "bash", "-c", &script])
            .await
    }

    /// The digest of the whole tree of a subvolume: content and metadata, the same on any host.
    ///
    /// # Errors
    /// When there is no such subvolume.
    pub async fn digest(&self, path: &str) -> Outcome<String> {
        let answer = self
            .cluster
            .hack(&["exec", self.name, "--", &agent_program(), "digest", path])
            .await?;
        Ok(answer.trim().to_owned())
    }

    /// The numbers of the snapshots in an image directory, ascending; none if it does not exist.
    ///
    /// # Errors
    /// When the node does not run.
    pub async fn numbers(&self, dir: &str) -> Outcome<Vec<u64>> {
        // Names alone, not what they are: what is there may be gone a moment later.
        let list = format!("ls -A {dir} 2>/dev/null || [ ! -d {dir} ]");
        let names = self.sh(&list).await?;
        let mut numbers: Vec<u64> = names.lines().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The uuid of a subvolume, as btrfs-progs shows it.
    ///
    /// # Errors
    /// When there is no such subvolume.
    pub async fn uuid(&self, path: &str) -> Outcome<String> {
        let shown = self.sh(&format!("btrfs subvolume show {path}")).await?;
        shown
            .lines()
            .find_map(|line| line.trim().strip_prefix("UUID:"))
            .map(|uuid| uuid.trim().to_owned())
            .ok_or_else(|| Failure::Unexpected(format!("no uuid in\n{shown}")))
    }

    /// Removes everything of a namespace from the node's pool, as an administrator would.
    ///
    /// # Errors
    /// When something is still in use.
    pub async fn purge(&self, namespace: &str) -> Outcome {
        // 256 is the inode of a subvolume's root.
        let script = format!(
            "cd {POOL} && [ -d {namespace} ] || exit 0
             find {namespace} -ignore_readdir_race -mindepth 2 -maxdepth 2 -inum 256 -print0 |
                 xargs -0r btrfs subvolume delete --commit-after >/dev/null
             rm -rf {namespace}"
        );
        self.sh(&script).await.map(drop)
    }

    /// Looks all the time at the entry `path`, and tells the digest of everything that is ever
    /// seen there.
    ///
    /// # Errors
    /// When the node does not run.
    pub async fn watch_entry(&self, path: &str) -> Outcome<PoolWatcher> {
        // `read` fails with more than 128 when its time is over, and with 1 when the input ends.
        let script = format!(
            "seen=
             echo watching
             while read -r -t 0.01; [ $? -gt 128 ]; do
                 now=$(stat -c %d:%i:%W {path} 2>/dev/null) && [ \"$now\" != \"$seen\" ] || continue
                 seen=$now
                 {agent} digest {path} || echo unreadable
             done",
            agent = agent_program(),
        );
        let mut command = self.cluster.hack_command();
        command.args(["exec", self.name, "--", "bash", "-c", &script]);
        let failed = |source| Failure::Start {
            command: format!("watching {path}"),
            source,
        };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let piped = || Failure::Unexpected("a pipe that was asked for is missing".to_owned());
        let input = child.stdin.take().ok_or_else(piped)?;
        let mut lines = BufReader::new(child.stdout.take().ok_or_else(piped)?).lines();
        lines.next_line().await.map_err(failed)?;
        Ok(PoolWatcher {
            child,
            input,
            lines,
            path: path.to_owned(),
        })
    }
}

/// Watches one entry of a pool; ends when it is asked for what it saw, or dropped.
pub struct PoolWatcher {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    path: String,
}

impl PoolWatcher {
    /// Ends the watch: the digests of what was seen, in order.
    ///
    /// # Errors
    /// When the watcher could not be heard.
    pub async fn seen(mut self) -> Outcome<Vec<String>> {
        drop(self.input);
        let failed = |source| Failure::Start {
            command: format!("watching {}", self.path),
            source,
        };
        let mut seen = Vec::new();
        while let Some(line) = self.lines.next_line().await.map_err(failed)? {
            seen.push(line);
        }
        self.child.wait().await.map_err(failed)?;
        Ok(seen)
    }
}

/// The agent's program as this checkout built it; nodes share this machine's file system.
fn agent_program() -> String {
    let target = std::env::var("CARGO_TARGET_DIR")
        .unwrap_or_else(|_| checkout().join("target").to_string_lossy().into_owned());
    format!("{target}/release/icbd-agent")
}
