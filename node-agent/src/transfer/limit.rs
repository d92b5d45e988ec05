//! The bandwidth limit: one bucket for each target, shared by the transfers that go there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use icbd_wire::control::Limit;
use tokio::time::Instant;

/// Bytes that pass at once are at most what the rate allows in this time.
const BURST: Duration = Duration::from_millis(100);

/// The smallest and the largest piece that is written at once.
const PIECE: (u64, u64) = (1 << 10, 256 << 10);

/// A rate that all who share it keep together.
pub(crate) struct Bucket {
    bytes_per_second: AtomicU64,
    /// When all that was let through will have been paid for.
    paid: Mutex<Instant>,
}

impl Bucket {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: AtomicU64::new(bytes_per_second),
            paid: Mutex::new(Instant::now()),
        }
    }

    /// How many bytes to write at once, so that no pause between two pieces gets long.
    pub(crate) fn piece(&self) -> usize {
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        (rate / 10).clamp(PIECE.0, PIECE.1) as usize
    }

    /// Waits until this many bytes may pass; first come, first served.
    pub(crate) async fn pass(&self, bytes: usize) {
        let at = self.book(bytes, Instant::now());
        tokio::time::sleep_until(at).await;
    }

    /// Books bytes; when they may pass.
    fn book(&self, bytes: usize, now: Instant) -> Instant {
        let rate = self.bytes_per_second.load(Ordering::Relaxed).max(1);
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        *paid = (*paid).max(earliest) + cost;
        *paid
    }
}

/// The buckets of the targets that have a limit.
#[derive(Default)]
pub(crate) struct Limits {
    buckets: Mutex<HashMap<String, Arc<Bucket>>>,
}

impl Limits {
    /// The bucket for a limit; the rate that was given last holds for all that share it.
    pub(crate) fn bucket(&self, limit: &Limit) -> Arc<Bucket> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.retain(|_, bucket| Arc::strong_count(bucket) > 1);
        let new = || Arc::new(Bucket::new(limit.bytes_per_second));
        let bucket = buckets.entry(limit.target.clone()).or_insert_with(new);
        bucket
            .bytes_per_second
            .store(limit.bytes_per_second, Ordering::Relaxed);
        Arc::clone(bucket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_in_a_time_is_the_rate_and_one_burst() {
        let bucket = Bucket::new(1_000_000);
        let start = Instant::now();
        let mut passed = 0_u64;
        while bucket.book(10_000, start) <= start + Duration::from_secs(10) {
            passed += 10_000;
        }
        let burst = (1_000_000.0 * BURST.as_secs_f64()) as u64;
        assert!(
            (10_000_000..=10_000_000 + burst).contains(&passed),
            "{passed}"
        );
    }

    #[test]
    fn two_transfers_to_one_target_share_its_rate() {
        let limits = Limits::default();
        let limit = Limit {
            target: "edge".into(),
            bytes_per_second: 1000,
        };
        let (one, two) = (limits.bucket(&limit), limits.bucket(&limit));
        let start = Instant::now();
        assert!(one.book(1000, start) < two.book(1000, start));
        assert!(!Arc::ptr_eq(
            &one,
            &limits.bucket(&Limit {
                target: "other".into(),
                ..limit
            })
        ));
    }
}
