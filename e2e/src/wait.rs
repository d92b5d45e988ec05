//! Waiting for a condition, with a bound.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{Failure, Outcome};

/// What a look found: what was waited for, or what there is instead.
pub type Seen<T> = Result<T, String>;

/// Looks until it finds what it looks for, at most for `limit`.
///
/// # Errors
/// When the time is over; the failure says what was seen last. A look that fails ends the waiting.
pub async fn within<T>(
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Outcome<Seen<T>>,
) -> Outcome<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look().await? {
            Ok(found) => return Ok(found),
            Err(seen) if Instant::now() >= deadline => {
                return Err(Failure::Waited {
                    what: what.to_owned(),
                    limit,
                    seen,
                });
            }
            Err(_) => sleep(Duration::from_millis(200)).await,
        }
    }
}
