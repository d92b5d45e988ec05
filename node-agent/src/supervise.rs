//! Looks at the pool again and again, so that a disk that comes, goes or is swapped is noticed
//! within a second: published, its transfers ended, its images forgotten or read.

use std::sync::Arc;
use std::time::Duration;

use icbd_wire::control::{PoolState, PoolStatus, Reason};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::error::blocking;
use crate::image::Images;
use crate::metrics::Metrics;
use crate::pool::{Pool, reason_for};
use crate::transfer::Transfers;
use crate::watch::Facts;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Changes of free space smaller than this part of the pool are not worth telling.
const WORTH_TELLING: u64 = 100;

pub(crate) struct Supervisor {
    pub(crate) pool: Arc<Pool>,
    pub(crate) images: Images,
    pub(crate) transfers: Transfers,
    pub(crate) facts: Facts,
    pub(crate) metrics: Arc<Metrics>,
    /// Somebody knows that the pool has changed.
    pub(crate) look: Arc<Notify>,
}

impl Supervisor {
    /// Looks until `closing`.
    pub(crate) async fn run(self, closing: CancellationToken) {
        // Nothing is known at the start: the first look always finds something new.
        let mut known = PoolStatus::default();
        loop {
            let pool = Arc::clone(&self.pool);
            match blocking(move || Ok(pool.status())).await {
                Ok(status) => known = self.see(known, status).await,
                Err(error) => tracing::error!(%error, "cannot look at the pool"),
            }
            tokio::select! {
                () = closing.cancelled() => return,
                () = self.look.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Acts on what was seen; what is known after it.
    async fn see(&self, known: PoolStatus, status: PoolStatus) -> PoolStatus {
        self.metrics.set_pool(&status);
        if !differs(&known, &status) {
            return known;
        }
        let ready = status.state() == PoolState::Ready;
        let same = same_pool(&known, &status);
        if !same || known.state() != status.state() {
            tracing::info!(
                state = status.state().as_str_name(),
                fsid = status.fsid,
                message = status.message,
                "the pool",
            );
            self.images.unsettle();
            if !ready {
                // Told at once: on a disk that hangs, transfers take their time to end.
                self.facts.set_pool(status.clone());
            }
            let (reason, message) = match status.state() {
                PoolState::Ready => (Reason::PoolUnavailable, "the pool was swapped"),
                state => (reason_for(state), status.message.as_str()),
            };
            self.transfers.end_all(reason, message).await;
            if ready && let Err(error) = self.transfers.settle().await {
                tracing::error!(%error, "cannot clean up after earlier transfers");
                // Looked at again, it is as new as now.
                return known;
            }
        }
        // Whoever hears that the pool is ready knows already what is in it.
        match ready {
            true => self.images.rescan().await,
            false => self.images.forget(),
        }
        self.facts.set_pool(status.clone());
        status
    }
}

fn same_pool(a: &PoolStatus, b: &PoolStatus) -> bool {
    (&a.fsid, &a.subvolume_uuid) == (&b.fsid, &b.subvolume_uuid)
}

/// Whether the operator should hear of it.
fn differs(known: &PoolStatus, status: &PoolStatus) -> bool {
    let step = status.capacity / WORTH_TELLING;
    let rest = PoolStatus {
        free: known.free,
        ..status.clone()
    };
    known.free.abs_diff(status.free) > step || *known != rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_changes_of_free_space_are_not_told_and_all_others_are() {
        let known = PoolStatus {
            capacity: 1000,
            free: 500,
            ..PoolStatus::default()
        };
        assert!(!differs(
            &known,
            &PoolStatus {
                free: 495,
                ..known.clone()
            }
        ));
        assert!(differs(
            &known,
            &PoolStatus {
                free: 480,
                ..known.clone()
            }
        ));
        assert!(differs(
            &known,
            &PoolStatus {
                empty: true,
                ..known.clone()
            }
        ));
        assert!(differs(
            &known,
            &PoolStatus {
                fsid: "other".into(),
                ..known.clone()
            }
        ));
    }
}
