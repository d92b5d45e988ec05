//! How many are in, and from where. Each address has its share; and where all shares together are
//! more than there is room for, whoever comes takes the place of the one who has waited longest at
//! the address that holds most. So a friend, who is through with its handshake in no time, gets in
//! however many the flood comes from.

use std::collections::{HashMap, VecDeque, hash_map};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::{Limits, Share};
use crate::refusal::Refusal;

/// Those who are in. Its memory is bounded by how many are let in.
pub(super) struct Entries {
    limits: Limits,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// The number of the next.
    next: u64,
    greeting: usize,
    connected: usize,
    each: HashMap<IpAddr, Here>,
}

/// Those of one address.
#[derive(Default)]
struct Here {
    /// The longest waiting first.
    greeting: VecDeque<Greeting>,
    connected: usize,
}

struct Greeting {
    number: u64,
    displaced: CancellationToken,
}

impl Here {
    fn oldest(&self) -> u64 {
        self.greeting.front().map_or(u64::MAX, |it| it.number)
    }

    fn is_empty(&self) -> bool {
        self.greeting.is_empty() && self.connected == 0
    }
}

impl Counts {
    /// Makes room for one more.
    fn displace(&mut self) {
        let most = |(_, here): &(&IpAddr, &mut Here)| {
            (here.greeting.len(), std::cmp::Reverse(here.oldest()))
        };
        let Some((address, here)) = self.each.iter_mut().max_by_key(most) else {
            return;
        };
        let address = *address;
        if let Some(longest) = here.greeting.pop_front() {
            longest.displaced.cancel();
            self.greeting -= 1;
        }
        self.forget(address);
    }

    /// Forgets an address that nobody is in from.
    fn forget(&mut self, address: IpAddr) {
        if let hash_map::Entry::Occupied(here) = self.each.entry(address)
            && here.get().is_empty()
        {
            here.remove();
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

    /// Lets somebody in who has not said yet who it is.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Entry, Refusal> {
        let address = address.to_canonical();
        let Share { all, each } = self.limits.greeting;
        let mut counts = self.counts();
        let waiting = counts.each.get(&address).map_or(0, |it| it.greeting.len());
        if waiting >= each {
            let why = format!("{waiting} from this address have not said who they are");
            return Err(Refusal::new("TooMany", why));
        }
        if counts.greeting >= all {
            counts.displace();
        }
        let (number, displaced) = (counts.next, CancellationToken::new());
        counts.next += 1;
        counts.greeting += 1;
        let here = counts.each.entry(address).or_default();
        here.greeting.push_back(Greeting {
            number,
            displaced: displaced.clone(),
        });
        Ok(Entry {
            entries: Arc::clone(self),
            address,
            stage: Stage::Greeting { number, displaced },
        })
    }
}

enum Stage {
    Greeting {
        number: u64,
        displaced: CancellationToken,
    },
    Connected,
}

/// Somebody who is in, until it is dropped.
pub struct Entry {
    entries: Arc<Entries>,
    address: IpAddr,
    stage: Stage,
}

impl Entry {
    /// Cancelled when somebody else needs its place.
    pub(super) fn displaced(&self) -> CancellationToken {
        match &self.stage {
            Stage::Greeting { displaced, .. } => displaced.clone(),
            Stage::Connected => CancellationToken::new(),
        }
    }

    /// It has said who it is, and stays.
    ///
    /// # Errors
    /// There are too many already.
    pub fn admit(self) -> Result<Self, Refusal> {
        let Share { all, each } = self.entries.limits.connected;
        {
            let mut counts = self.entries.counts();
            let whole = counts.connected;
            let here = counts.each.entry(self.address).or_default();
            if whole >= all || here.connected >= each {
                let why = format!(
                    "{} from this address and {whole} in all are connected",
                    here.connected
                );
                return Err(Refusal::new("TooMany", why));
            }
            here.connected += 1;
            counts.connected += 1;
        }
        Ok(Self {
            entries: Arc::clone(&self.entries),
            address: self.address,
            stage: Stage::Connected,
        })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut counts = self.entries.counts();
        let Some(here) = counts.each.get_mut(&self.address) else {
            return;
        };
        match self.stage {
            Stage::Greeting { number, .. } => {
                let before = here.greeting.len();
                here.greeting.retain(|it| it.number != number);
                // Whoever was displaced is not counted any more.
                counts.greeting -= before - here.greeting.len();
            }
            Stage::Connected => {
                here.connected -= 1;
                counts.connected -= 1;
            }
        }
        counts.forget(self.address);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn entries() -> Arc<Entries> {
        Arc::new(Entries::new(Limits {
            greeting: Share { all: 3, each: 2 },
            connected: Share { all: 2, each: 1 },
            within: Duration::ZERO,
            lasting: None,
        }))
    }

    fn nobody_is_left(entries: &Entries) {
        let counts = entries.counts();
        assert_eq!((counts.greeting, counts.connected), (0, 0));
        assert!(counts.each.is_empty());
    }

    #[test]
    fn one_address_takes_its_share_and_all_take_the_whole_and_all_is_given_back() {
        let entries = entries();
        let a = entries.enter(address(1)).unwrap();
        let b = entries.enter(address(1)).unwrap();
        assert_eq!(entries.enter(address(1)).err().unwrap().reason, "TooMany");
        // The same address in another spelling.
        let mapped = IpAddr::from(std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped());
        assert!(entries.enter(mapped).is_err());
        let c = entries.enter(address(2)).unwrap();

        let a = a.admit().unwrap();
        assert!(b.admit().is_err(), "one connection from an address");
        let c = c.admit().unwrap();
        let d = entries.enter(address(3)).unwrap();
        assert!(d.admit().is_err(), "two connections in all");
        drop((a, c));
        nobody_is_left(&entries);
    }

    #[test]
    fn whoever_comes_takes_the_place_of_the_longest_waiting_of_those_who_hold_most() {
        let entries = entries();
        let friend = entries.enter(address(9)).unwrap();
        let first = entries.enter(address(1)).unwrap();
        let second = entries.enter(address(1)).unwrap();
        let third = entries.enter(address(2)).unwrap();
        let displaced = |of: [&Entry; 4]| of.map(|entry| entry.displaced().is_cancelled());
        assert_eq!(
            displaced([&friend, &first, &second, &third]),
            [false, true, false, false]
        );
        // Who was displaced goes, whenever that is, and takes no place with it.
        let fourth = entries.enter(address(3)).unwrap();
        assert_eq!(
            displaced([&friend, &first, &second, &third]),
            [true, true, false, false],
            "of equals the longest waiting"
        );
        drop((first, friend));
        assert_eq!(entries.counts().greeting, 3);
        drop((second, third, fourth));
        nobody_is_left(&entries);
    }
}
