//! How blocks go, and what the connection is like meanwhile.

use std::time::{Duration, Instant};

use icbd_wire::data::Codec;

/// The share of the time for which blocks wait for the connection where it is what is slow.
const WAITS: f64 = 0.1;

/// Blocks that are worth a look: enough of them, or fewer if they took some time.
const LOOK: (u32, u32, Duration) = (8, 4, Duration::from_millis(100));

/// Bytes that sockets and the receiver swallow, about, before they show what the line is like; and how many of
/// those still go at the pace of what was before, after a change.
const SWALLOWED: (u64, u64) = (8 << 20, 4 << 20);

/// A block that the connection has taken.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Passed {
    /// In what it was to be compressed.
    pub(in super::super) codec: Codec,
    /// Its bytes, and what is left of them on the wire.
    pub(in super::super) raw: u64,
    pub(in super::super) wire: u64,
    /// How long it was ready before the connection took it.
    pub(in super::super) waited: Duration,
    /// What the receiver said last of how much it starves, in per cent of the time.
    pub(in super::super) starved: Option<u32>,
}

/// Blocks that go one after the other.
pub(super) struct Window {
    /// Blocks, and bytes on the wire, that still go at the pace of those before a change.
    behind: (u32, u64),
    last: Option<Instant>,
    blocks: u32,
    raw: u64,
    wire: u64,
    took: Duration,
    waited: Duration,
    /// What took longest, which does not count: it may have been a pause.
    longest: (Duration, Duration),
    starved: Option<u32>,
}

/// How they went.
pub(super) struct Look {
    /// Raw bytes a second, and bytes a second on the line.
    pub(super) raw: f64,
    pub(super) wire: f64,
    /// The same with what took longest.
    pub(super) whole: f64,
    /// Whether they waited for the connection.
    pub(super) waits: bool,
    /// How much the receiver starved, in per cent of the time, if it has said so.
    pub(super) starved: Option<u32>,
}

impl Window {
    /// Begins with the transfer.
    pub(super) fn first() -> Self {
        Self::behind(0, SWALLOWED.0)
    }

    /// Begins after a change, when `ahead` blocks are still on their way.
    pub(super) fn after(ahead: u32) -> Self {
        Self::behind(ahead, SWALLOWED.1)
    }

    fn behind(blocks: u32, bytes: u64) -> Self {
        Self {
            behind: (blocks, bytes),
            last: None,
            blocks: 0,
            raw: 0,
            wire: 0,
            took: Duration::ZERO,
            waited: Duration::ZERO,
            longest: (Duration::ZERO, Duration::ZERO),
            starved: None,
        }
    }

    /// Adds a block; how they went if that was enough, and a new one begins.
    pub(super) fn add(&mut self, passed: &Passed, now: Instant) -> Option<Look> {
        let last = self.last.replace(now);
        let (blocks, bytes) = self.behind;
        let (Some(last), (0, 0)) = (last, self.behind) else {
            self.behind = (blocks.saturating_sub(1), bytes.saturating_sub(passed.wire));
            return None;
        };
        let took = now.saturating_duration_since(last);
        let waited = passed.waited.min(took);
        self.blocks += 1;
        self.raw += passed.raw;
        self.wire += passed.wire;
        self.took += took;
        self.waited += waited;
        self.longest = self.longest.max((took, waited));
        self.starved = passed.starved;
        let (many, some, time) = LOOK;
        let is_enough = self.blocks >= many || (self.blocks >= some && self.took >= time);
        is_enough.then(|| {
            let look = self.look();
            *self = Self {
                last: Some(now),
                ..Self::behind(0, 0)
            };
            look
        })
    }

    fn look(&self) -> Look {
        // One block less, and the time that one took.
        let blocks = f64::from(self.blocks);
        let share = (blocks - 1.0).max(1.0) / blocks.max(1.0);
        let took = (self.took - self.longest.0).as_secs_f64().max(1e-6);
        let waited = (self.waited - self.longest.1).as_secs_f64() / took;
        Look {
            raw: self.raw as f64 * share / took,
            wire: self.wire as f64 * share / took,
            whole: self.wire as f64 / self.took.as_secs_f64().max(1e-6),
            waits: waited >= WAITS,
            starved: self.starved,
        }
    }
}
