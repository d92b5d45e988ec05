//! How often is listened: token buckets, one for all and one for each address, so that whoever asks
//! without end costs Kubernetes little, and keeps off nobody who asks from elsewhere.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many may ask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// At once.
    pub(super) burst: u32,
    /// After that, one each.
    pub(super) every: Duration,
}

/// Counts who asks.
pub(super) struct Rate {
    all: Pace,
    each: Pace,
    /// Of how many addresses it is known when they asked.
    remembered: usize,
    buckets: Mutex<Buckets>,
}

struct Buckets {
    all: Bucket,
    each: HashMap<IpAddr, Bucket>,
}

/// A bucket by the instant at which it is full again: a date takes no refilling.
#[derive(Clone, Copy)]
struct Bucket {
    full_at: Instant,
}

impl Bucket {
    /// Takes one out, if there is one.
    fn take(&mut self, pace: Pace, now: Instant) -> bool {
        let after = self.full_at.max(now) + pace.every;
        let is_there = after.duration_since(now) <= pace.every * pace.burst;
        if is_there {
            self.full_at = after;
        }
        is_there
    }
}

impl Rate {
    pub(super) fn new(all: Pace, each: Pace, remembered: usize) -> Self {
        let all_full = Bucket {
            full_at: Instant::now(),
        };
        Rate {
            all,
            each,
            remembered,
            buckets: Mutex::new(Buckets {
                all: all_full,
                each: HashMap::new(),
            }),
        }
    }

    /// Whether somebody at this address is listened to now.
    pub(super) fn admits(&self, address: IpAddr, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Buckets { all, each } = &mut *buckets;
        let address = address.to_canonical();
        if !each.contains_key(&address) && each.len() >= self.remembered {
            each.retain(|_, bucket| bucket.full_at > now);
            if each.len() >= self.remembered {
                return false;
            }
        }
        let bucket = each.entry(address).or_insert(Bucket { full_at: now });
        bucket.take(self.each, now) && all.take(self.all, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate() -> Rate {
        let pace = |burst| Pace {
            burst,
            every: Duration::from_secs(1),
        };
        Rate::new(pace(5), pace(2), 3)
    }

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[test]
    fn who_asks_for_an_identity_too_often_keeps_off_nobody_else() {
        let (rate, start) = (rate(), Instant::now());
        let asked = (0..100).filter(|_| rate.admits(address(1), start)).count();
        assert_eq!(asked, 2);
        assert!(rate.admits(address(2), start));
        let mapped = IpAddr::from(std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped());
        assert!(!rate.admits(mapped, start), "the same address");
        let second = Duration::from_secs(1);
        assert!(rate.admits(address(1), start + second));
        assert!(!rate.admits(address(1), start + second));
    }

    #[test]
    fn all_who_ask_for_an_identity_share_a_pace_and_take_bounded_memory() {
        let (rate, start) = (rate(), Instant::now());
        let asked = (0..200).filter(|n| rate.admits(address(*n), start)).count();
        assert_eq!(asked, 3, "no more addresses are remembered");
        assert_eq!(rate.buckets.lock().unwrap().each.len(), 3);
        let later = start + Duration::from_secs(60);
        let asked = (100..103)
            .filter(|n| rate.admits(address(*n), later))
            .count();
        assert_eq!(asked, 3);
        let again = (100..103)
            .filter(|n| rate.admits(address(*n), later))
            .count();
        assert_eq!(again, 2, "five in all");
    }
}
