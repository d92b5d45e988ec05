//! Replication: over all images, which transfers to start now. One task decides, so that limits
//! hold over all of them; Snapshots say how far each is.

mod apply;
mod fetch;

use std::sync::Arc;
use std::time::Duration;

use icbd_planner::replication::{ClusterLimits, Plan, plan};
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::control::Context;

/// Changes come in bursts; one look is enough for a burst.
const SETTLE: Duration = Duration::from_millis(10);
/// Without any change, for what has no event: an answer that got lost, a clock that was set.
const AT_LEAST_EVERY: Duration = Duration::from_secs(60);

pub(crate) async fn run(context: Arc<Context>, wake: Arc<Notify>, limits: ClusterLimits) {
    // One round of removals at a time, beside everything else: an agent may be slow to answer.
    let mut removal: Option<JoinHandle<()>> = None;
    loop {
        let seen = fetch::fetch(&context.sight);
        let now = Timestamp::now();
        let Plan { starts, wake_at } = plan(&seen.jobs, &seen.running, limits, now);
        apply::start(&context, &wake, &seen, starts);
        if removal.as_ref().is_none_or(JoinHandle::is_finished) {
            let found = seen.extraneous();
            let context = context.clone();
            removal = (!found.is_empty())
                .then(|| tokio::spawn(async move { apply::remove(&context, found).await }));
        }
        let pause = wake_at.map_or(AT_LEAST_EVERY, |at| {
            Duration::try_from(at.duration_since(now))
                .unwrap_or(SETTLE)
                .clamp(SETTLE, AT_LEAST_EVERY)
        });
        let _ = timeout(pause, wake.notified()).await;
        sleep(SETTLE).await;
    }
}
