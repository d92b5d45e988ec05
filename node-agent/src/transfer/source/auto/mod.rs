//! Which codec gets most through, found out while a transfer runs. Pure: time comes in through
//! arguments.
//!
//! What is waited for says most. Where blocks never wait for the connection, making them is what takes
//! the time, and no codec makes that faster. Where they do, it is either a slow line, on which the codec
//! wins that leaves least, or a slow receiver, to whom compression is no help and may cost CPU that it
//! shares. These two are told apart by trying, as soon as a try is cheap beside what has passed.
//!
//! Rates count only where they can be believed: what waits behind other blocks goes at their pace, a
//! receiver pauses to write back, and sockets swallow the first megabytes of anything.

mod look;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use icbd_wire::data::{Codec, CodecSet};

pub(super) use self::look::Passed;
use self::look::{Line, Look, Window, median};

/// The codecs that are tried, the cheaper ones first.
pub(crate) const AUTO: [Codec; 3] = [Codec::None, Codec::Lz4, Codec::Zstd];

/// Where a transfer begins, until it is known whether the data gets smaller and the line is fast. On a
/// slow line seconds would be lost without it; on a fast one it costs milliseconds.
const FIRST: Codec = Codec::Lz4;

/// Data that gets smaller by less than this goes as fast uncompressed, to a tenth, whatever the line.
const SHRINKS: f64 = 1.1;

/// Up to this rate, in raw bytes a second, lz4 takes less than a tenth of one processor: what is
/// slow is something else.
const NO_EFFORT: f64 = 40e6;

/// More than passes on a line of a gigabit, in bytes a second. Where that much does, a line is less likely to be
/// what is slow.
const GIGABIT: f64 = 130e6;

/// What sockets swallow, about, before they show what the line is like.
const SWALLOWED: u64 = 6 << 20;

/// How many looks are taken at a codec on trial, unless two show that it is `CLEAR`ly better or worse
/// than the one before it. In the end it has to be `BETTER`.
const LOOKS: usize = 5;
const CLEAR: f64 = 1.4;
const BETTER: f64 = 1.03;

/// What was seen of a codec some time ago has to be so much better to be worth another try.
const WORTH: f64 = 1.15;

/// Blocks that a try takes, about, and the share of the time until then that it may cost, counting what
/// every transfer takes besides.
const TRY: f64 = 20.0;
const PRICE: f64 = 0.06;
const BESIDES: Duration = Duration::from_millis(100);

/// How long it is known that a codec is no better, at first and at most: twice as long each time.
const KNOWN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(20));

/// And how many times as long as it was tried.
const KNOWN_TIMES: u32 = 12;

/// And as long as it makes the data no smaller than then by more than this.
const OTHER_DATA: f64 = 1.2;

/// A line on which so many times as much passes as before, or as little, is another.
const OTHER_LINE: f64 = 3.0;

/// Over how many blocks it is taken how much smaller a codec makes them, and over how many samples: no image is
/// the same all over.
const MIXED: (u32, u32) = (32, 3);

/// One of so many blocks that go uncompressed is compressed, to see whether it gets smaller.
const SAMPLE: u32 = 24;

/// Chooses codecs for the blocks of one pass.
pub(super) struct Auto {
    tried: Vec<Tried>,
    current: usize,
    /// The codec that the current one is tried against, and since when.
    trial: Option<(usize, Instant)>,
    /// Blocks, and bytes on the wire, that still go at the pace of another codec's before them; and how many
    /// blocks that are after a change.
    behind: (u32, u64),
    ahead: u32,
    window: Window,
    /// Rates of the current codec, the last ones.
    rates: Vec<f64>,
    line: Option<Line>,
    /// Looks in a row that showed another line.
    other: u32,
    begun: Option<Instant>,
    last: Option<Instant>,
    /// Blocks that were asked about.
    asked: u32,
}

struct Tried {
    codec: Codec,
    /// What it has left of the last blocks.
    left: Option<f64>,
    blocks: u32,
    /// How fast it was when it was last used.
    known: Option<Known>,
    /// For how long it will be believed next time.
    believe: Duration,
}

/// A rate, and until when it is believed, unless much less is left of the blocks than then.
#[derive(Clone, Copy)]
struct Known {
    rate: f64,
    until: Instant,
    left: f64,
}

impl Auto {
    /// Chooses from those that the receiver takes, where `ahead` blocks find room before the connection.
    pub(super) fn new(agreed: CodecSet, ahead: usize) -> Self {
        let tried = AUTO
            .into_iter()
            .filter(|codec| *codec == Codec::None || agreed.contains(*codec));
        Self::of(tried, ahead)
    }

    /// Always the same.
    pub(super) fn always(codec: Codec) -> Self {
        Self::of([codec], 0)
    }

    fn of(codecs: impl IntoIterator<Item = Codec>, ahead: usize) -> Self {
        let tried: Vec<_> = codecs
            .into_iter()
            .map(|codec| Tried {
                codec,
                left: None,
                blocks: 0,
                known: None,
                believe: KNOWN.0,
            })
            .collect();
        let first = tried.iter().position(|tried| tried.codec == FIRST);
        Self {
            current: first.unwrap_or(0),
            tried,
            trial: None,
            behind: (0, SWALLOWED),
            // The connection has one in its hands.
            ahead: ahead as u32 + 1,
            window: Window::default(),
            rates: Vec::new(),
            line: None,
            other: 0,
            begun: None,
            last: None,
            asked: 0,
        }
    }

    /// The codec for the next block.
    pub(super) fn codec(&mut self) -> Codec {
        self.asked = self.asked.wrapping_add(1);
        let waits = self.line.is_some_and(|line| line.waits);
        match self.codec_of(self.current) {
            Codec::None if waits && self.asked.is_multiple_of(SAMPLE) => {
                self.find(Codec::Lz4).map_or(Codec::None, |_| Codec::Lz4)
            }
            codec => codec,
        }
    }

    /// A block has gone on its way.
    pub(super) fn passed(&mut self, passed: &Passed, now: Instant) {
        if self.tried.len() < 2 {
            return;
        }
        let begun = *self.begun.get_or_insert(now);
        let last = self.last.replace(now);
        let Some(of) = self.find(passed.codec) else {
            return;
        };
        let is_sample = of != self.current;
        if let Some(tried) = self.tried.get_mut(of) {
            tried.count(passed, is_sample);
        }
        if is_sample {
            return;
        }
        let is_slow = |line: Line| line.waits && line.wire < GIGABIT;
        if passed.codec != Codec::None && !self.line.is_some_and(is_slow) && !self.shrinks() {
            self.trial = None;
            return self.change_to(0);
        }
        let (blocks, bytes) = self.behind;
        let (Some(last), (0, 0)) = (last, self.behind) else {
            self.behind = (blocks.saturating_sub(1), bytes.saturating_sub(passed.wire));
            return;
        };
        self.window.add(passed, now.saturating_duration_since(last));
        if self.window.is_enough() {
            let look = std::mem::take(&mut self.window).look();
            self.look(&look, now.saturating_duration_since(begun), now);
        }
    }

    /// Looks at how fast the current codec is.
    fn look(&mut self, look: &Look, elapsed: Duration, now: Instant) {
        if look.mixed && self.line.is_some_and(|line| !line.waits) {
            // What it is like is to be seen in the next.
            self.line = Some(look.line);
            self.rates.clear();
            return;
        }
        self.see(look.line);
        if self.rates.len() >= LOOKS {
            self.rates.remove(0);
        }
        self.rates.push(look.rate);
        let rate = median(&self.rates);
        match self.trial {
            Some((before, since)) => self.judge(rate, look.line.waits, before, since, now),
            None => self.think(rate, look.line, elapsed, now),
        }
    }

    /// Whether another codec may be better than the current one, and is to be tried.
    fn think(&mut self, rate: f64, line: Line, elapsed: Duration, now: Instant) {
        let effort = rate >= NO_EFFORT;
        let is_cheap = |times: f64| {
            let cost = TRY * (1 << 20) as f64 / rate * times;
            cost <= PRICE * (elapsed + BESIDES).as_secs_f64()
        };
        let left = self.tried.get(self.current).map_or(1.0, Tried::left);
        // Which others may be better, and whether not knowing is reason enough to try.
        let (mut lz4, mut none, mut zstd) = (None, None, None);
        match (self.codec_of(self.current), line.waits) {
            // To make a block is what takes long, and that only takes longer.
            (Codec::None, false) => return,
            (Codec::None, true) if !self.shrinks() => return,
            (Codec::None, true) if !effort => {
                return self.change_to(self.find(Codec::Lz4).unwrap_or(self.current));
            }
            (Codec::None, true) | (Codec::Zstd, false) => lz4 = Some(true),
            (Codec::Zstd, true) => lz4 = effort.then_some(true),
            (_, waits) => {
                // On a line that passes no more than now.
                let cheap = is_cheap(1.0 / left.max(0.01) - 1.0);
                none = effort.then_some(cheap || line.wire >= GIGABIT);
                // First it is to be known that the line is what is slow.
                let is_slow = !effort || self.tried.first().is_some_and(Tried::was_tried);
                zstd = (waits && is_slow).then_some(is_cheap(1.0));
            }
        }
        let others = [(Codec::None, none), (Codec::Lz4, lz4), (Codec::Zstd, zstd)];
        let better = others.into_iter().find_map(|(codec, unknown)| {
            let (of, unknown) = (self.find(codec)?, unknown?);
            let known = self.tried.get(of)?.known(now);
            let worth = known.map_or(unknown, |known| known > rate * WORTH);
            worth.then_some(of)
        });
        if let Some(other) = better {
            if let Some(tried) = self.tried.get_mut(self.current) {
                tried.know(rate, now);
            }
            self.trial = Some((self.current, now));
            self.change_to(other);
        }
    }

    /// Ends a trial as soon as it is known which of the two is better.
    fn judge(&mut self, rate: f64, waits: bool, before: usize, since: Instant, now: Instant) {
        let known = self.tried.get(before).and_then(|tried| tried.known);
        let by = rate / known.map_or(rate, |known| known.rate);
        let clear = !(1.0 / CLEAR..CLEAR).contains(&by);
        // A single look may have seen a pause.
        if self.rates.len() < if clear { 2 } else { LOOKS } {
            return;
        }
        self.trial = None;
        let none_is_enough = !waits && self.codec_of(self.current) == Codec::None;
        let (winner, loser) = match by > BETTER || none_is_enough {
            true => (self.current, before),
            false => (before, self.current),
        };
        let took = now.saturating_duration_since(since);
        let rate = match (loser == before, known) {
            (true, Some(known)) => known.rate,
            _ => rate,
        };
        if let Some(loser) = self.tried.get_mut(loser) {
            loser.know(rate, now + loser.believe.max(took * KNOWN_TIMES));
            loser.believe = (loser.believe * 2).min(KNOWN.1);
        }
        if winner != self.current {
            self.change_to(winner);
        }
    }

    /// Takes note of what the line is like. On another one nothing is known.
    fn see(&mut self, now: Line) {
        let Some(before) = self.line else {
            self.line = Some(now);
            return;
        };
        let by = now.wire / before.wire;
        // Where it is not waited for, that less passes is not the line's doing.
        let slower = now.waits && before.waits && by < 1.0 / OTHER_LINE;
        let other = slower || by > OTHER_LINE;
        self.other = if other { self.other + 1 } else { 0 };
        if !other {
            self.line = Some(now);
        } else if self.other > 1 {
            self.other = 0;
            self.line = Some(now);
            for tried in &mut self.tried {
                (tried.known, tried.believe) = (None, KNOWN.0);
            }
        }
    }

    fn change_to(&mut self, codec: usize) {
        self.current = codec;
        self.behind = (self.ahead, SWALLOWED);
        self.window = Window::default();
        self.rates.clear();
        (self.line, self.other) = (None, 0);
    }

    /// Whether compression makes enough of a difference.
    fn shrinks(&self) -> bool {
        let compressed = self.tried.iter().filter(|tried| tried.codec != Codec::None);
        let left = compressed.filter_map(|tried| tried.left);
        left.fold(1.0, f64::min) * SHRINKS <= 1.0
    }

    fn find(&self, codec: Codec) -> Option<usize> {
        self.tried.iter().position(|tried| tried.codec == codec)
    }

    fn codec_of(&self, of: usize) -> Codec {
        self.tried.get(of).map_or(Codec::None, |tried| tried.codec)
    }
}

impl Tried {
    /// Counts a block in, or a sample among blocks in another codec.
    fn count(&mut self, passed: &Passed, is_sample: bool) {
        let left = passed.wire as f64 / passed.raw.max(1) as f64;
        self.blocks = self.blocks.saturating_add(1);
        let over = match is_sample {
            true => MIXED.1,
            false => self.blocks.min(MIXED.0),
        };
        let before = self.left.unwrap_or(left);
        self.left = Some(before + (left - before) / f64::from(over));
    }

    fn left(&self) -> f64 {
        self.left.unwrap_or(1.0)
    }

    fn was_tried(&self) -> bool {
        self.known.is_some()
    }

    fn know(&mut self, rate: f64, until: Instant) {
        let left = self.left();
        self.known = Some(Known { rate, until, left });
    }

    fn known(&self, now: Instant) -> Option<f64> {
        let known = self.known?;
        let same = known.until > now && self.left() * OTHER_DATA > known.left;
        same.then_some(known.rate)
    }
}
