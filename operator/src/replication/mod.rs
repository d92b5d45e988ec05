//! Replication: over all images, which transfers to start now. One task decides, so that limits
//! hold over all of them; Snapshots say how far each is.

mod apply;
mod fetch;

use std::sync::Arc;
use std::time::Duration;

use icbd_planner::replication::{ClusterLimits, Plan, extraneous, plan};
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::control::Context;

/// Changes come in bursts; one look is enough for a burst.
const SETTLE: Duration = Duration::from_millis(10);
/// Without any change, for what has no event: an answer that got lost, a clock that was set.
const AT_LEAST_EVERY: Duration = Duration::from_secs(60);

pub(crate) async fn run(context: Arc<Context>, wake: Arc<Notify>, limits: ClusterLimits) {
    loop {
        let seen = fetch::fetch(&context.sight);
        let now = Timestamp::now();
        let Plan { starts, wake_at } = plan(&seen.jobs, limits, now);
        apply::start(&context, &wake, &seen, starts);
        for (image, inventories) in &seen.inventories {
            let observed = inventories
                .iter()
                .map(|(node, inventory)| (node, inventory.as_ref()));
            apply::remove(&context, extraneous(image, observed)).await;
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
