//! What becomes known of those who were refused: every one is counted, and each kind of refusal of one
//! address is logged once a minute, so that a flood does not flood the log.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::refusal::Refusal;

/// How often the same is logged again.
const AGAIN: Duration = Duration::from_secs(60);

/// Of how many addresses and reasons it is remembered that they were logged. More are only counted.
const REMEMBERED: usize = 1024;

type Count = dyn Fn(&'static str, &'static str) + Send + Sync;

/// Tells of refused connections.
pub struct Refused {
    count: Box<Count>,
    told: Mutex<HashMap<(IpAddr, &'static str, &'static str), Told>>,
}

struct Told {
    at: Instant,
    /// How many have come since.
    since: u64,
}

impl Refused {
    /// `count` is called for each, with the port's name and the reason.
    pub fn new(count: impl Fn(&'static str, &'static str) + Send + Sync + 'static) -> Self {
        Self {
            count: Box::new(count),
            told: Mutex::default(),
        }
    }

    /// Tells of one; whether it is news, and was logged.
    pub fn tell(&self, port: &'static str, peer: SocketAddr, refusal: &Refusal) -> bool {
        let Refusal { reason, why } = refusal;
        (self.count)(port, reason);
        let key = (peer.ip().to_canonical(), port, *reason);
        let Some(unsaid) = self.news(key, Instant::now()) else {
            return false;
        };
        tracing::warn!(%peer, port, reason, why, unsaid, "refused a connection");
        true
    }

    /// How many of the kind went unsaid since it was last told, if it is to be told now.
    fn news(&self, key: (IpAddr, &'static str, &'static str), now: Instant) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_old = |told: &Told| now.duration_since(told.at) >= AGAIN;
        match told.get_mut(&key) {
            Some(told) if is_old(told) => {
                let unsaid = told.since;
                *told = Told { at: now, since: 0 };
                return Some(unsaid);
            }
            Some(told) => {
                told.since += 1;
                return None;
            }
            None => {}
        }
        if told.len() >= REMEMBERED {
            told.retain(|_, told| !is_old(told));
        }
        if told.len() >= REMEMBERED {
            return None;
        }
        told.insert(key, Told { at: now, since: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_a_minute_and_no_flood_of_addresses_takes_memory() {
        let refused = Refused::new(|_, _| {});
        let key = |n: u32| (IpAddr::from(n.to_be_bytes()), "data", "NotTls");
        let start = Instant::now();
        assert_eq!(refused.news(key(0), start), Some(0));
        assert_eq!(refused.news(key(0), start), None);
        assert_eq!(refused.news(key(0), start + AGAIN / 2), None);
        assert_eq!(refused.news(key(0), start + AGAIN), Some(2));
        let told = (1..5000).filter(|n| refused.news(key(*n), start + AGAIN).is_some());
        assert_eq!(told.count(), REMEMBERED - 1);
        assert_eq!(refused.news(key(9999), start + AGAIN * 2), Some(0));
        assert_eq!(refused.told.lock().unwrap().len(), 1);
    }
}
