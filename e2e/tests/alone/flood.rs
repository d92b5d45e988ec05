//! Thousands of connections that want nothing get in nobody's way for long.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use icbd_crds::names::{CONTROL_PORT, DATA_PORT, ENROLMENT_PORT, HEALTH_PORT};
use icbd_crds::{ReplicaState, Snapshot};
use icbd_e2e::stranger::{Flood, Flooded, Stranger};
use icbd_e2e::{
    Cluster, Outcome, SYSTEM_NAMESPACE, Scenario, address_of, node_of, replica, restarts,
    selecting, within,
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use serde_json::json;

use crate::alone;

const MIB: u64 = 1 << 20;

/// How much memory of its own a process may take for a flood, KiB.
const GROWTH: u64 = 64 * 1024;

/// How soon after a flood everything is as before.
const BACK: Duration = Duration::from_secs(10);

/// How many connections of each kind go to a port.
const CONNECTIONS: usize = 2000;

/// The content of the image that is sent at full speed.
const FREE: u64 = 512 * MIB;

/// How long the other transfer takes, s: the flood is to fall within it.
const LASTS: u64 = 45;

/// What that one may need of a pool at most.
const FLOODED: u64 = 6144 * MIB;

const AGENTS: &[u16] = &[CONTROL_PORT, DATA_PORT, HEALTH_PORT];
const OPERATORS: &[u16] = &[ENROLMENT_PORT, HEALTH_PORT];

/// How far a transfer is.
#[derive(Clone, Copy)]
struct Progress {
    at: Instant,
    done: u64,
    state: Option<ReplicaState>,
}

async fn progress(s: &Scenario, snapshot: &str) -> Outcome<Progress> {
    let snapshot = s.snapshots().get(snapshot).await?;
    let row = replica(&snapshot, "node-2");
    Ok(Progress {
        at: Instant::now(),
        done: row.map_or(0, |row| row.bytes_done),
        state: row.map(|row| row.state),
    })
}

/// Bytes a second between the two.
fn rate(from: Progress, to: Progress) -> u64 {
    let seconds = to.at.duration_since(from.at).as_secs_f64().max(0.001);
    (to.done.saturating_sub(from.done) as f64 / seconds) as u64
}

fn moving(snapshot: &Snapshot) -> bool {
    replica(snapshot, "node-2").is_some_and(|row| row.bytes_done > 8 * MIB)
}

async fn image(s: &Scenario, name: &str, bytes: u64) -> Outcome {
    let fill = format!("head -c {bytes} /dev/urandom > disk.img");
    s.write_live("node-1", name, &fill).await?;
    s.image(name, "node-1", json!({"compression": "None"}))
        .await
}

/// What a transfer to node-2 takes when nothing limits it, bytes a second.
async fn free_rate(s: &Scenario) -> Outcome<u64> {
    image(s, "free", FREE).await?;
    s.target(json!({"nodes": selecting(&["node-2"])})).await?;
    let begun = Instant::now();
    s.snapshot("free", json!({"image": "free"})).await?;
    s.replicated("free").await?;
    Ok((FREE as f64 / begun.elapsed().as_secs_f64()) as u64)
}

/// The product's pods that the flood is at, each with its ports.
struct Flooding {
    pods: Vec<(Pod, &'static [u16])>,
}

impl Flooding {
    async fn of(cluster: &Cluster) -> Outcome<Self> {
        let mut pods = Vec::new();
        for node in ["node-1", "node-2"] {
            pods.push((cluster.agent(node).await?, AGENTS));
        }
        pods.push((cluster.leader().await?, OPERATORS));
        Ok(Self { pods })
    }

    fn addresses(&self) -> Outcome<Vec<SocketAddr>> {
        let of = |(pod, ports): &(Pod, &'static [u16])| {
            let ports = ports.iter();
            ports.map(|port| address_of(pod, *port)).collect::<Vec<_>>()
        };
        self.pods.iter().flat_map(of).collect()
    }

    /// Own memory of each, KiB.
    async fn memory(&self, cluster: &Cluster) -> Outcome<Vec<u64>> {
        let mut memory = Vec::new();
        for (pod, _) in &self.pods {
            memory.push(cluster.rss_anon(pod).await?);
        }
        Ok(memory)
    }
}

/// Floods every port at once; meanwhile the most memory that each process was seen to have.
async fn flood(
    cluster: &Cluster,
    stranger: &Stranger<'_>,
    flooding: &Flooding,
) -> Outcome<(Vec<Flooded>, Vec<u64>)> {
    let flood = stranger.floods(Flood {
        at: flooding.addresses()?,
        half_open: CONNECTIONS,
        garbage: CONNECTIONS,
        seconds: 3,
    });
    let mut flood = std::pin::pin!(flood);
    let mut most = flooding.memory(cluster).await?;
    loop {
        tokio::select! {
            biased;
            flooded = &mut flood => return Ok((flooded?, most)),
            now = flooding.memory(cluster) => {
                for (most, now) in most.iter_mut().zip(now?) {
                    *most = now.max(*most);
                }
            }
        }
    }
}

/// Whether a pod says that it is ready, and to whoever asks it.
async fn is_ready(cluster: &Cluster, pod: &Pod) -> Outcome<Result<(), String>> {
    let at = address_of(pod, HEALTH_PORT)?;
    let ask = format!(
        "exec 3<>/dev/tcp/{}/{} && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && head -1 <&3",
        at.ip(),
        at.port()
    );
    let node = node_of(pod).unwrap_or_default();
    let answer = cluster.node(node).sh(&ask).await;
    Ok(match answer {
        Ok(line) if line.contains(" 200 ") => Ok(()),
        Ok(line) => Err(line),
        Err(error) => Err(error.to_string()),
    })
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
#[allow(clippy::print_stdout)] // of a test, for people
async fn a_flood_on_every_port_leaves_the_running_transfer_and_bounded_memory() -> Outcome {
    alone("flood", async |s| {
        let free = free_rate(s).await?;
        let limit = (free / 2).min(FLOODED / LASTS);
        image(s, "disk", limit * LASTS).await?;
        let target = json!({"nodes": selecting(&["node-2"]), "bandwidth": limit.to_string()});
        s.target(target).await?;
        let stranger = s.stranger("node-3").await?;
        let flooding = Flooding::of(&s.cluster).await?;
        s.snapshot("flooded", json!({"image": "disk"})).await?;
        s.until(&s.snapshots(), "flooded", "moving", moving).await?;

        let begun = progress(s, "flooded").await?;
        let further = |snapshot: &Snapshot| {
            replica(snapshot, "node-2").is_some_and(|row| row.bytes_done > begun.done + 5 * limit)
        };
        s.until(&s.snapshots(), "flooded", "moving on", further)
            .await?;
        let calm = flooding.memory(&s.cluster).await?;
        let before = progress(s, "flooded").await?;
        let (flooded, most) = flood(&s.cluster, &stranger, &flooding).await?;
        let after = progress(s, "flooded").await?;
        let over = Instant::now();

        println!(
            "throughput: {} MiB/s free; limited to {}: {} before, {} during the flood of {:.0} s",
            free / MIB,
            limit / MIB,
            rate(begun, before) / MIB,
            rate(before, after) / MIB,
            after.at.duration_since(before.at).as_secs_f64(),
        );
        for Flooded {
            at,
            connected,
            sent_away,
        } in &flooded
        {
            println!("{at}: {connected} connected, {sent_away} of them sent away");
        }
        for (((pod, _), calm), most) in flooding.pods.iter().zip(&calm).zip(&most) {
            println!("{}: {calm} KiB before, at most {most} KiB", pod.name_any());
        }
        for ((pod, _), (calm, most)) in flooding.pods.iter().zip(calm.iter().zip(&most)) {
            assert!(*most < calm + GROWTH, "{}", pod.name_any());
        }
        for at in &flooded {
            assert!(at.connected > 0, "nobody was there: {at:?}");
        }
        assert_ne!(
            after.state,
            Some(ReplicaState::Complete),
            "the transfer was over before the flood: raise LASTS"
        );

        // Everything is back: new connections are let in everywhere, and a new transfer begins.
        for (pod, _) in &flooding.pods {
            within(
                BACK,
                &format!("{} to be ready", pod.name_any()),
                async || is_ready(&s.cluster, pod).await,
            )
            .await?;
        }
        image(s, "small", MIB).await?;
        s.snapshot("small", json!({"image": "small"})).await?;
        s.replicated("small").await?;
        println!("back after {:.1} s", over.elapsed().as_secs_f64());

        // The transfer was not disturbed: it is the first attempt that ends well.
        let patience = Duration::from_secs(300);
        within(patience, "the transfer to end", async || {
            let now = progress(s, "flooded").await?;
            let ended = now.state == Some(ReplicaState::Complete);
            Ok(if ended {
                Ok(())
            } else {
                Err(format!("{} bytes", now.done))
            })
        })
        .await?;
        let ended = s.replicated("flooded").await?;
        let attempts = replica(&ended, "node-2").map(|row| row.attempts);
        assert_eq!(attempts, Some(1));
        let pods: Api<Pod> = Api::namespaced(s.cluster.client.clone(), SYSTEM_NAMESPACE);
        for (pod, _) in &flooding.pods {
            let name = pod.name_any();
            let now = pods.get(&name).await?;
            assert_eq!(restarts(&now), restarts(pod), "{name} was restarted");
        }
        s.same_content("disk", 1, &["node-1", "node-2"])
            .await
            .map(drop)
    })
    .await
}
