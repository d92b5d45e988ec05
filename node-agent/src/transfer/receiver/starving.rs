//! For how long a receiver has had no block to work on, waits that still last included: on a slow line one
//! lasts longer than from one report to the next. Pure: time comes in through arguments.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(super) struct Starving(Mutex<Waits>);

#[derive(Debug, Default)]
struct Waits {
    over: Duration,
    lasting_since: Option<Instant>,
}

impl Starving {
    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is no block from now on.
    pub(super) fn begins(&self, now: Instant) {
        self.waits().lasting_since = Some(now);
    }

    /// There is one.
    pub(super) fn ends(&self, now: Instant) {
        let mut waits = self.waits();
        waits.over = waits.so_far(now);
        waits.lasting_since = None;
    }

    /// How long all waits were until now.
    pub(super) fn so_far(&self, now: Instant) -> Duration {
        self.waits().so_far(now)
    }
}

impl Waits {
    fn so_far(&self, now: Instant) -> Duration {
        let lasting = self
            .lasting_since
            .map(|since| now.saturating_duration_since(since));
        self.over + lasting.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_counts_while_it_lasts_and_once() {
        let (starving, begin) = (Starving::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let so_far = |seconds| starving.so_far(at(seconds)).as_secs();
        assert_eq!(so_far(1), 0);
        starving.begins(at(1));
        assert_eq!(so_far(3), 2);
        starving.ends(at(4));
        assert_eq!(so_far(4), 3);
        assert_eq!(so_far(9), 3);
        starving.begins(at(10));
        assert_eq!(so_far(11), 4);
    }
}
