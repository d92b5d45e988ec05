//! Tests that disturb the whole cluster: they kill the product, cut nodes' power, pull disks. They
//! run one after the other, and each finds the cluster whole.

mod agents;
mod authority;
mod enrolment;
mod flood;
mod helm;
mod idle;
mod kills;
mod kinds;
mod lost_primary;
mod node_away;
mod pool;
mod restarts;
mod rotation;

use icbd_e2e::{Cluster, Outcome, POOL, Scenario};

/// All nodes of the cluster.
const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];

/// Mends what a failed test before may have left broken, and runs a scenario.
async fn alone(story: &str, test: impl AsyncFnOnce(&Scenario) -> Outcome) -> Outcome {
    let cluster = Cluster::connect().await?;
    let lend = ["label", "node", "--all", "--overwrite", "icbd.io/pool=true"];
    cluster.kubectl(&lend).await?;
    for node in NODES {
        cluster.start(node).await?;
        mount_own_disk(&cluster, node).await?;
    }
    Scenario::run(story, test).await
}

/// Mounts a node's own disk as its pool, if nothing is mounted there.
async fn mount_own_disk(cluster: &Cluster, node: &str) -> Outcome {
    let disk = cluster.state().await?.join(node).join("pool.img");
    let mount = format!(
        "mountpoint -q {POOL} || mount -o loop {} {POOL}",
        disk.display()
    );
    cluster.node(node).sh(&mount).await.map(drop)
}
