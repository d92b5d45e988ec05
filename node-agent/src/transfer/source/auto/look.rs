//! How fast the blocks of one codec go, and what the connection is like meanwhile.

use std::time::Duration;

use icbd_wire::data::Codec;

/// The share of the time for which blocks wait for the connection where it is what is slow.
const WAITS: f64 = 0.1;

/// Blocks that say how fast a codec is: enough of them, or fewer if they took some time.
const LOOK: (u32, u32, Duration) = (20, 6, Duration::from_millis(100));

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
}

/// What the connection is like.
#[derive(Clone, Copy)]
pub(super) struct Line {
    /// Whether it is what is slow.
    pub(super) waits: bool,
    /// Bytes a second.
    pub(super) wire: f64,
}

/// Blocks in one codec.
#[derive(Default)]
pub(super) struct Window {
    blocks: u32,
    raw: u64,
    wire: u64,
    took: Duration,
    waited: Duration,
    /// What took longest, which does not count: it may have been a pause.
    longest: (Duration, Duration),
}

/// How fast a codec is.
pub(super) struct Look {
    /// Raw bytes a second.
    pub(super) rate: f64,
    pub(super) line: Line,
    /// The connection began to be waited for in the middle of it.
    pub(super) mixed: bool,
}

impl Window {
    pub(super) fn add(&mut self, passed: &Passed, took: Duration) {
        let waited = passed.waited.min(took);
        self.blocks += 1;
        self.raw += passed.raw;
        self.wire += passed.wire;
        self.took += took;
        self.waited += waited;
        self.longest = self.longest.max((took, waited));
    }

    pub(super) fn is_enough(&self) -> bool {
        let (many, some, time) = LOOK;
        self.blocks >= many || (self.blocks >= some && self.took >= time)
    }

    pub(super) fn look(self) -> Look {
        // One block less, and the time that one took.
        let blocks = f64::from(self.blocks);
        let share = (blocks - 1.0).max(1.0) / blocks.max(1.0);
        let took = (self.took - self.longest.0).as_secs_f64().max(1e-6);
        let waited = (self.waited - self.longest.1).as_secs_f64() / took;
        Look {
            rate: self.raw as f64 * share / took,
            line: Line {
                waits: waited >= WAITS,
                wire: self.wire as f64 * share / took,
            },
            mixed: (WAITS..0.6).contains(&waited),
        }
    }
}

pub(super) fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}
