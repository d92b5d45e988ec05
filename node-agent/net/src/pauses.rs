//! How long whoever failed waits before it tries again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// Growing pauses between attempts. Each is twice the one before, up to the longest, and up to as
/// much again by chance: those that failed together do not come back together.
#[derive(Debug)]
pub struct Pauses {
    bounds: ExponentialBuilder,
    longest: Duration,
    coming: <ExponentialBuilder as BackoffBuilder>::Backoff,
}

impl Pauses {
    /// Pauses that begin with `first` and grow to `longest`.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        let bounds = ExponentialBuilder::new()
            .with_min_delay(first)
            .with_max_delay(longest)
            .without_max_times()
            .with_jitter();
        Self {
            bounds,
            longest,
            coming: bounds.build(),
        }
    }

    /// The pause after one more failure.
    pub fn after_failure(&mut self) -> Duration {
        self.coming.next().unwrap_or(self.longest)
    }

    /// It went well: the next failure is a first one.
    pub fn start_over(&mut self) {
        self.coming = self.bounds.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_success_starts_over() {
        let [first, longest] = [Duration::from_millis(500), Duration::from_secs(60)];
        let mut pauses = Pauses::new(first, longest);
        let taken: Vec<_> = (0..40).map(|_| pauses.after_failure()).collect();
        assert!(taken[0] >= first && taken[0] < 2 * first, "{:?}", taken[0]);
        assert!(taken[39] >= longest && taken[39] < 2 * longest);
        pauses.start_over();
        assert!(pauses.after_failure() < 2 * first);
    }
}
