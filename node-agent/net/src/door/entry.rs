//! How many are in, and from where.

use std::collections::HashMap;
use std::collections::hash_map;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Limits, Share};
use crate::refusal::Refusal;

/// Those who are in. Its memory is bounded by how many are let in.
pub(super) struct Entries {
    limits: Limits,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    all: Count,
    each: HashMap<IpAddr, Count>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    greeting: usize,
    connected: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting,
    Connected,
}

impl Count {
    fn of(&mut self, stage: Stage) -> &mut usize {
        match stage {
            Stage::Greeting => &mut self.greeting,
            Stage::Connected => &mut self.connected,
        }
    }
}

impl Entries {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            counts: Mutex::default(),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn share(&self, stage: Stage) -> Share {
        match stage {
            Stage::Greeting => self.limits.greeting,
            Stage::Connected => self.limits.connected,
        }
    }

    /// Lets somebody in who has not said yet who it is.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Entry, Refusal> {
        let address = address.to_canonical();
        self.add(address, Stage::Greeting)?;
        Ok(Entry {
            entries: Arc::clone(self),
            address,
            stage: Stage::Greeting,
        })
    }

    fn add(&self, address: IpAddr, stage: Stage) -> Result<(), Refusal> {
        let share = self.share(stage);
        let mut counts = self.counts();
        let here = counts.each.get(&address).copied().unwrap_or_default();
        let (all, each) = (*counts.all.of(stage), *here.clone().of(stage));
        if all >= share.all || each >= share.each {
            let what = match stage {
                Stage::Greeting => "have not said who they are",
                Stage::Connected => "are connected",
            };
            let why = format!("{each} from this address and {all} in all {what}");
            return Err(Refusal::new("TooMany", why));
        }
        *counts.all.of(stage) += 1;
        *counts.each.entry(address).or_default().of(stage) += 1;
        Ok(())
    }

    fn remove(&self, address: IpAddr, stage: Stage) {
        let mut counts = self.counts();
        *counts.all.of(stage) -= 1;
        if let hash_map::Entry::Occupied(mut here) = counts.each.entry(address) {
            *here.get_mut().of(stage) -= 1;
            if *here.get() == Count::default() {
                here.remove();
            }
        }
    }
}

/// Somebody who is in, until it is dropped.
pub struct Entry {
    entries: Arc<Entries>,
    address: IpAddr,
    stage: Stage,
}

impl Entry {
    /// It has said who it is, and stays.
    ///
    /// # Errors
    /// There are too many already.
    pub fn admit(self) -> Result<Self, Refusal> {
        self.entries.add(self.address, Stage::Connected)?;
        Ok(Self {
            entries: Arc::clone(&self.entries),
            address: self.address,
            stage: Stage::Connected,
        })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.entries.remove(self.address, self.stage);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_address_takes_its_share_and_all_take_the_whole_and_all_is_given_back() {
        let entries = Arc::new(Entries::new(Limits {
            greeting: Share { all: 3, each: 2 },
            connected: Share { all: 2, each: 1 },
            within: Duration::ZERO,
            lasting: None,
        }));
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let a = entries.enter(address(1)).unwrap();
        let b = entries.enter(address(1)).unwrap();
        assert_eq!(entries.enter(address(1)).err().unwrap().reason, "TooMany");
        // The same address in another spelling.
        let mapped = IpAddr::from(std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped());
        assert!(entries.enter(mapped).is_err());
        let c = entries.enter(address(2)).unwrap();
        assert!(entries.enter(address(3)).is_err());

        let a = a.admit().unwrap();
        assert!(b.admit().is_err(), "one connection from an address");
        let c = c.admit().unwrap();
        let d = entries.enter(address(3)).unwrap();
        assert!(d.admit().is_err(), "two connections in all");
        drop((a, c));
        let counts = entries.counts();
        assert_eq!(counts.all, Count::default());
        assert!(counts.each.is_empty());
    }
}
