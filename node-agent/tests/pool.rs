//! The pool's rules: whose it is, who may speak, and disks that come, go and are swapped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs;

use icbd_wire::control::*;
use support::operator::*;
use support::{INSTALLATION, Node, Pool, SOON, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn an_agent_without_a_pool_is_not_ready_and_says_why_until_it_is_mounted() {
    let pool = Pool::new();
    let mut node = Node::bare("node");
    node.start();
    let operator = node.operator().await;
    let status = operator.wait_pool(PoolState::NotMounted).await;
    assert!(
        status.message.contains(node.pool().to_str().unwrap()),
        "{}",
        status.message
    );
    let (line, body) = node.health("/readyz");
    assert!(
        line.contains("503") && body.starts_with("PoolNotMounted: "),
        "{line} {body}"
    );
    assert!(node.health("/healthz").0.contains("200"));
    refused(
        operator.call_take(operator.take_request("one")).await,
        Reason::PoolNotMounted,
    );
    assert_eq!(
        fs::read_dir(node.pool()).unwrap().count(),
        0,
        "nothing is written beside the pool"
    );

    node.mount(&pool);
    operator.wait_pool(PoolState::NotInitialised).await;
    refused(
        operator.call_take(operator.take_request("one")).await,
        Reason::PoolNotInitialised,
    );
    operator.init_pool().await;
    assert!(node.health("/readyz").0.contains("200"));
    assert!(node.health("/metrics").1.contains("icbd_pool_ready 1"));
    node.make_live();
    assert_eq!(operator.take("one").await.number, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn an_idle_pool_can_be_unmounted_and_another_put_in_its_place() {
    let (first, second) = (Pool::new(), Pool::new());
    let (node, operator) = Node::ready("node", &first).await;
    node.make_live();
    operator.take("one").await;
    operator
        .wait("the snapshot", |seen| seen.numbers() == [1])
        .await;

    unmount_when_idle(&node);
    let seen = operator
        .wait("nothing", |seen| seen.images.is_empty())
        .await;
    assert_eq!(seen.pool.state(), PoolState::NotMounted);
    refused(
        operator.call_take(operator.take_request("two")).await,
        Reason::PoolNotMounted,
    );

    node.mount(&second);
    operator.init_pool().await;
    assert!(operator.seen().images.is_empty());
    assert_eq!(
        fs::read_dir(second.path()).unwrap().count(),
        1,
        "only the marker"
    );

    unmount_when_idle(&node);
    node.mount(&first);
    operator
        .wait("the first again", |seen| seen.numbers() == [1])
        .await;
    assert_eq!(operator.take("one").await.number, 1);
}

/// The agent has the pool open for an instant now and then; in between it can be unmounted.
fn unmount_when_idle(node: &Node) {
    let start = std::time::Instant::now();
    while !std::process::Command::new("umount")
        .arg(node.pool())
        .status()
        .unwrap()
        .success()
    {
        assert!(start.elapsed() < SOON, "the pool stays busy");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_is_no_pool_is_refused_with_what_it_is() {
    let mut node = Node::bare("node");
    run(
        "mount",
        [
            "-t".as_ref(),
            "tmpfs".as_ref(),
            "none".as_ref(),
            node.pool().as_os_str(),
        ],
    );
    node.start();
    let operator = node.operator().await;
    operator.wait_pool(PoolState::NotBtrfs).await;
    assert!(node.health("/readyz").1.starts_with("PoolNotBtrfs: "));
    node.unmount();
    // A plain directory of a btrfs file system: a disk that is not mounted must not fill the root.
    let pool = Pool::new();
    fs::create_dir(pool.path().join("plain")).unwrap();
    let plain = pool.path().join("plain");
    run(
        "mount",
        [
            "--bind".as_ref(),
            plain.as_os_str(),
            node.pool().as_os_str(),
        ],
    );
    operator.wait_pool(PoolState::NotMounted).await;
    node.unmount();
    // A subvolume of one is a pool.
    icbd_btrfs::create(pool.dir(), "subvolume").unwrap();
    let subvolume = pool.path().join("subvolume");
    run(
        "mount",
        [
            "--bind".as_ref(),
            subvolume.as_os_str(),
            node.pool().as_os_str(),
        ],
    );
    operator.wait_pool(PoolState::NotInitialised).await;
    operator.init_pool().await;
    // One that is read-only cannot be used.
    run(
        "mount",
        [
            "-o".as_ref(),
            "remount,bind,ro".as_ref(),
            node.pool().as_os_str(),
        ],
    );
    operator.wait_pool(PoolState::Unavailable).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_used_or_foreign_pool_is_taken_only_with_consent() {
    let pool = Pool::new();
    fs::create_dir(pool.path().join("data")).unwrap();
    let mut node = Node::bare("node");
    node.mount(&pool);
    node.start();
    let operator = node.operator().await;
    assert!(!operator.wait_pool(PoolState::NotInitialised).await.empty);
    refused(operator.init(|_| {}).await, Reason::PoolNotInitialised);
    let other = |request: &mut InitPoolRequest| {
        request.fsid = uuid::Uuid::new_v4().to_string();
        request.allow_non_empty = true;
    };
    refused(operator.init(other).await, Reason::PoolUnavailable);
    let consent = |request: &mut InitPoolRequest| request.allow_non_empty = true;
    assert_eq!(
        operator.init(consent).await.unwrap().state(),
        PoolState::Ready
    );
    assert_eq!(
        operator.init(|_| {}).await.unwrap().state(),
        PoolState::Ready,
        "idempotent"
    );

    let stranger = node.stranger("another").await;
    let status = stranger.wait_pool(PoolState::Foreign).await;
    assert_eq!(status.installation, INSTALLATION);
    refused(
        stranger.call_take(stranger.take_request("one")).await,
        Reason::PoolForeign,
    );
    refused(stranger.init(consent).await, Reason::PoolForeign);
    refused(
        stranger.init(|it| it.take_over_from = "wrong".into()).await,
        Reason::PoolForeign,
    );
    stranger
        .init(|it| it.take_over_from = INSTALLATION.into())
        .await
        .unwrap();
    stranger.wait_pool(PoolState::Ready).await;
    refused(
        operator.call_take(operator.take_request("one")).await,
        Reason::PoolForeign,
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn an_older_leader_is_fenced_also_after_a_restart() {
    let pool = Pool::new();
    let (mut node, mut operator) = Node::ready("node", &pool).await;
    node.make_live();
    operator.fence.lease_transitions = 7;
    operator.take("one").await;
    operator.fence.lease_transitions = 6;
    let message = refused(
        operator.call_take(operator.take_request("two")).await,
        Reason::Fenced,
    );
    assert!(message.contains('7') && message.contains('6'), "{message}");
    let mut operator = node.restart().await;
    operator.fence.lease_transitions = 6;
    refused(
        operator.call_take(operator.take_request("two")).await,
        Reason::Fenced,
    );
    refused(operator.delete_image().await, Reason::Fenced);
    refused(operator.init(|_| {}).await, Reason::Fenced);
    // A Lease that was deleted and made anew starts counting from nothing.
    operator.fence.lease_created += 1;
    operator.fence.lease_transitions = 0;
    assert_eq!(operator.take("two").await.number, 2);
    assert_eq!(node.entries(), ["1", "2", "live"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_second_agent_is_kept_out_until_the_first_has_gone() {
    let pool = Pool::new();
    let (mut first, operator) = Node::ready("first", &pool).await;
    let mut second = Node::bare("second");
    // The lock stands beside the pool: both see the same directory, as two pods on a node do.
    second.share(&first);
    second.start();
    let other = second.operator().await;
    other.wait_pool(PoolState::Locked).await;
    assert!(second.health("/readyz").1.starts_with("PoolLocked: "));
    refused(
        other.call_take(other.take_request("one")).await,
        Reason::PoolLocked,
    );
    assert_eq!(operator.seen().pool.state(), PoolState::Ready);
    assert_eq!(first.terminate(), Some(0));
    other.wait_pool(PoolState::Ready).await;
}
