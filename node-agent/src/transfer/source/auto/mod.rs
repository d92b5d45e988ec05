//! Which codec gets most through, found out while a transfer runs. Pure: time comes in through
//! arguments.
//!
//! Compression helps where the line is what is slow, and nowhere else. Whether it is, the two ends know
//! together: blocks wait here for the connection, and the receiver starves meanwhile. Where the source or
//! the receiver is what is slow, blocks go uncompressed; on a slow line lz4, on a very slow one zstd. What a
//! line carries is remembered, so that the codec which makes it fast enough is not taken for needless.

mod look;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use icbd_wire::data::{Codec, CodecSet};

pub(super) use self::look::Passed;
use self::look::{Look, Window};

/// The codecs that are chosen from, the lighter ones first.
pub(crate) const AUTO: [Codec; 3] = [Codec::None, Codec::Lz4, Codec::Zstd];

/// Where a transfer begins, until it is known what the line is like. On a slow line seconds would be lost
/// without it; on a fast one it costs some hundredths of a second.
const FIRST: usize = 1;

/// What is known of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Unknown,
    /// It is not what is slow, as far as anybody can tell.
    Fast,
}

/// Up to this rate on the line, in bytes a second, lz4 takes so little of a processor that it may be slow.
/// Beyond a gigabit it has to be certain that the receiver starves.
const GIGABIT: f64 = 130e6;

/// From here on a line is never slow: lz4 takes the time of a processor that encryption needs.
const FAST: f64 = 350e6;

/// On lines slower than this zstd keeps up with what it makes of them.
const VERY_SLOW: f64 = 60e6;

/// The share of the time, in per cent, for which a receiver starves whose line is slow.
const STARVES: u32 = 10;

/// One that starves for this share of the time, while nothing seems to wait, has not got yet what sockets have
/// swallowed, which is at most so many bytes.
const STILL_FILLING: (u32, u64) = (50, 24 << 20);

/// Data that gets smaller by less than this goes as fast uncompressed, to a tenth, whatever the line.
const SHRINKS: f64 = 1.1;

/// How many looks in a row have to show that another codec is better.
const AGREED: u32 = 2;

/// For how long it is believed what a line carries while it is not what is slow, at first and at most: twice as
/// long each time.
const BELIEVED: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(80));

/// One of so many blocks that go uncompressed on a slow line is compressed, to see whether it gets smaller.
const SAMPLE: u32 = 24;

/// Over how many blocks it is taken how much smaller a codec makes them, and how many say anything: no image is
/// the same all over.
const MIXED: u32 = 16;
const FEW: u32 = 4;

/// Chooses codecs for the blocks of one pass.
pub(super) struct Auto {
    choices: Vec<Choice>,
    current: usize,
    window: Window,
    /// Bytes a second that the line carried when it was last seen to be slow, and when that was.
    line: Option<(f64, Instant)>,
    believed: Duration,
    /// What the last looks have shown to be better, and how many in a row.
    better: (usize, u32),
    /// Whether blocks waited for a slow line when it was last looked at.
    is_slow: bool,
    /// Blocks that were asked about.
    asked: u32,
    /// Bytes on the wire.
    wire: u64,
    /// Blocks that find room before the connection.
    ahead: u32,
}

struct Choice {
    codec: Codec,
    /// What it has left of the last blocks, and of how many.
    left: f64,
    blocks: u32,
}

impl Auto {
    /// Chooses from those that the receiver takes, where `ahead` blocks find room before the connection.
    pub(super) fn new(agreed: CodecSet, line: Line, ahead: usize) -> Self {
        let agreed = AUTO
            .into_iter()
            .filter(|codec| *codec == Codec::None || agreed.contains(*codec));
        let mut auto = Self::of(agreed, ahead);
        if line == Line::Fast {
            auto.current = 0;
        }
        auto
    }

    /// Always the same.
    pub(super) fn always(codec: Codec) -> Self {
        Self::of([codec], 0)
    }

    fn of(codecs: impl IntoIterator<Item = Codec>, ahead: usize) -> Self {
        let codecs = codecs.into_iter();
        let choices: Vec<_> = codecs.map(Choice::new).collect();
        // The connection has one in its hands.
        let ahead = ahead as u32 + 1;
        Self {
            current: FIRST.min(choices.len().saturating_sub(1)),
            choices,
            window: Window::first(),
            line: None,
            believed: BELIEVED.0,
            better: (0, 0),
            is_slow: false,
            asked: 0,
            wire: 0,
            ahead,
        }
    }

    /// The codec for the next block.
    pub(super) fn codec(&mut self) -> Codec {
        self.asked = self.asked.wrapping_add(1);
        let is_sample = self.current == 0 && self.is_slow && self.asked.is_multiple_of(SAMPLE);
        let of = if is_sample { FIRST } else { self.current };
        let choice = self.choices.get(of).or(self.choices.first());
        choice.map_or(Codec::None, |choice| choice.codec)
    }

    /// A block has gone on its way; what the line is, should that have been seen by now.
    pub(super) fn passed(&mut self, passed: &Passed, now: Instant) -> Option<Line> {
        let of = self.find(passed.codec)?;
        if self.choices.len() < 2 {
            return None;
        }
        if let Some(choice) = self.choices.get_mut(of) {
            choice.count(passed);
        }
        self.wire += passed.wire;
        if of != self.current && self.current != 0 {
            return None;
        }
        if self.current != 0 && !self.shrinks() {
            self.change_to(0);
            return None;
        }
        let look = self.window.add(passed, now)?;
        self.look(&look, now)
    }

    /// Looks at how the last blocks went; what the line is, if they tell.
    fn look(&mut self, look: &Look, now: Instant) -> Option<Line> {
        let starves = look
            .starved
            .is_none_or(|percent| percent >= STILL_FILLING.0);
        // After a wait for a slow line sockets have room for a few at once.
        let burst = look.wire >= FAST && look.whole < GIGABIT;
        let waits = look.waits && !burst;
        if self.line.is_none() && !waits && starves && self.wire < STILL_FILLING.1 {
            return None;
        }
        let may_be_slow = |starved| match starved {
            Some(percent) => percent >= STARVES,
            None => look.wire < GIGABIT,
        };
        self.is_slow = look.waits && look.wire < FAST && may_be_slow(look.starved);
        if self.is_slow {
            self.line = Some((look.wire, now));
        } else if let Some((_, seen)) = self.line
            && now.saturating_duration_since(seen) >= self.believed
        {
            self.line = None;
            self.believed = (self.believed * 2).min(BELIEVED.1);
        }
        let seen = match self.line {
            Some(_) => Some(Line::Unknown),
            // That it carries what a codec leaves does not say that it carries all of it.
            None => (self.current == 0 && look.starved.is_some()).then_some(Line::Fast),
        };
        let better = self.better(look.raw);
        let times = match self.better {
            (last, times) if last == better => times + 1,
            _ => 1,
        };
        self.better = (better, times);
        // At the beginning nothing speaks for the codec that is there.
        if better != self.current && (times >= AGREED || self.line.is_none()) {
            self.change_to(better);
        }
        seen
    }

    fn change_to(&mut self, codec: usize) {
        self.current = codec;
        self.window = Window::after(self.ahead);
        self.better = (codec, 0);
    }

    /// The lightest codec with which the line carries what can be had, now that `raw` bytes a second are.
    fn better(&self, raw: f64) -> usize {
        let Some((line, _)) = self.line else {
            return 0;
        };
        let heaviest = match self.choices.len() - 1 {
            _ if !self.shrinks() => 0,
            last if line < VERY_SLOW => last,
            last => last.min(FIRST),
        };
        if self.is_slow {
            return heaviest;
        }
        let is_enough = |of: &usize| {
            let left = self.choices.get(*of).and_then(Choice::left);
            let left = if *of == 0 { Some(1.0) } else { left };
            left.is_some_and(|left| line >= raw * left)
        };
        (0..self.current)
            .find(is_enough)
            .unwrap_or(self.current)
            .min(heaviest)
    }

    /// Whether compression makes enough of a difference, as far as is known.
    fn shrinks(&self) -> bool {
        let compressed = self.choices.iter().skip(1);
        let left = compressed.filter_map(Choice::left);
        left.reduce(f64::min)
            .is_none_or(|left| left * SHRINKS <= 1.0)
    }

    fn find(&self, codec: Codec) -> Option<usize> {
        self.choices.iter().position(|choice| choice.codec == codec)
    }
}

impl Choice {
    fn new(codec: Codec) -> Self {
        Self {
            codec,
            left: 0.0,
            blocks: 0,
        }
    }

    /// Counts a block in.
    fn count(&mut self, passed: &Passed) {
        let left = passed.wire as f64 / passed.raw.max(1) as f64;
        self.blocks = (self.blocks + 1).min(MIXED);
        self.left += (left - self.left) / f64::from(self.blocks);
    }

    /// What it leaves, once there were a few blocks.
    fn left(&self) -> Option<f64> {
        (self.blocks >= FEW).then_some(self.left)
    }
}
