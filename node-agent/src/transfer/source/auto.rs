//! Which codec gets most through, found out while a transfer runs: each is tried for a moment, the
//! best is kept, and the others are tried again now and then, for links and neighbours change. Pure:
//! time comes in through arguments.

use std::time::{Duration, Instant};

use icbd_wire::data::{Codec, CodecSet};

/// The codecs that are tried, the cheaper ones first. The first is where a transfer begins: at worst
/// it costs a little CPU.
pub(crate) const AUTO: [Codec; 3] = [Codec::Lz4, Codec::None, Codec::Zstd];

/// How long one codec is tried.
const TRY: Duration = Duration::from_millis(200);

/// How many times as long as a try the best one is kept, until the others are tried again.
const KEEP: u32 = 12;

/// How much better than the best another has to be to replace it, for rates are noisy.
const BETTER: f64 = 1.03;

/// An expensive codec is worth trying where the cheap one has gained this much on none: there the
/// link is what is slow.
const SLOW_LINK: f64 = 1.1;

/// Chooses codecs for the blocks of one pass.
pub(super) struct Auto {
    tried: Vec<Tried>,
    best: usize,
    current: usize,
    /// What is to be tried before the best is kept for a while.
    queue: Vec<usize>,
    /// When the first block in the current codec passed, and what has passed since.
    since: Option<Instant>,
    passed: u64,
}

struct Tried {
    codec: Codec,
    /// Raw bytes a second, when it was last used; 0: never.
    rate: f64,
}

impl Auto {
    /// Chooses from those that the receiver takes.
    pub(super) fn new(agreed: CodecSet) -> Self {
        let tried = AUTO
            .into_iter()
            .filter(|codec| *codec == Codec::None || agreed.contains(*codec));
        Self::of(tried)
    }

    /// Always the same.
    pub(super) fn always(codec: Codec) -> Self {
        Self::of([codec])
    }

    fn of(codecs: impl IntoIterator<Item = Codec>) -> Self {
        let codecs = codecs.into_iter();
        let tried: Vec<_> = codecs.map(|codec| Tried { codec, rate: 0.0 }).collect();
        Self {
            queue: (1..tried.len()).rev().collect(),
            tried,
            best: 0,
            current: 0,
            since: None,
            passed: 0,
        }
    }

    /// The codec for the next block.
    pub(super) fn codec(&self) -> Codec {
        let current = self.tried.get(self.current);
        current.map_or(Codec::None, |tried| tried.codec)
    }

    /// A block that was made in this codec has gone on its way.
    pub(super) fn passed(&mut self, codec: Codec, raw: u64, now: Instant) {
        if codec != self.codec() {
            return;
        }
        let Some(since) = self.since else {
            self.since = Some(now);
            return;
        };
        self.passed += raw;
        let took = now.saturating_duration_since(since);
        let keeping = self.current == self.best && self.queue.is_empty();
        if took < if keeping { TRY * KEEP } else { TRY } {
            return;
        }
        self.judge(self.passed as f64 / took.as_secs_f64());
        if keeping {
            self.queue = (0..self.tried.len()).rev().collect();
        }
        self.current = self.next();
        (self.since, self.passed) = (None, 0);
    }

    fn judge(&mut self, rate: f64) {
        let best = self.tried.get(self.best).map_or(0.0, |best| best.rate);
        if let Some(current) = self.tried.get_mut(self.current) {
            current.rate = rate;
        }
        if rate > best * BETTER {
            self.best = self.current;
        }
    }

    fn next(&mut self) -> usize {
        let rate = |codec| {
            let tried = self.tried.iter().find(|tried| tried.codec == codec);
            tried.map_or(0.0, |tried| tried.rate)
        };
        let link_is_slow = rate(Codec::Lz4) > rate(Codec::None) * SLOW_LINK;
        while let Some(next) = self.queue.pop() {
            let codec = self.tried.get(next).map(|tried| tried.codec);
            if next != self.best && (link_is_slow || codec != Some(Codec::Zstd)) {
                return next;
            }
        }
        self.best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 1 << 20;

    /// Sends for so many seconds where each codec gets so many raw MiB a second through; how many
    /// bytes that is of what the best would.
    fn share_of_best(rates: &mut dyn FnMut(f64) -> [(Codec, f64); 3], seconds: f64) -> f64 {
        let mut auto = Auto::new(CodecSet::ALL);
        let begin = Instant::now();
        let (mut at, mut moved, mut possible) = (0.0, 0.0, 0.0);
        while at < seconds {
            let rates = rates(at);
            let codec = auto.codec();
            let rate = rates.iter().find(|(of, _)| *of == codec).unwrap().1;
            let cheap = rates.iter().filter(|(of, _)| *of != Codec::Zstd);
            let best = cheap.map(|(_, rate)| *rate).fold(0.0, f64::max);
            at += 1.0 / rate;
            moved += 1.0;
            possible += best / rate;
            auto.passed(codec, BLOCK, begin + Duration::from_secs_f64(at));
        }
        moved / possible
    }

    #[test]
    fn it_is_never_slower_than_the_better_of_none_and_lz4_by_more_than_a_tenth() {
        for (none, lz4, zstd) in [
            (900.0, 500.0, 150.0),
            (900.0, 850.0, 300.0),
            (100.0, 180.0, 250.0),
            (100.0, 180.0, 90.0),
            (12.0, 12.0, 12.0),
            (12.0, 23.0, 30.0),
        ] {
            let rates = [(Codec::None, none), (Codec::Lz4, lz4), (Codec::Zstd, zstd)];
            let share = share_of_best(&mut |_| rates, 20.0);
            assert!(share > 0.9, "{rates:?}: {share}");
        }
    }

    #[test]
    fn where_the_link_is_slow_the_expensive_codec_is_found() {
        let rates = [
            (Codec::None, 50.0),
            (Codec::Lz4, 90.0),
            (Codec::Zstd, 130.0),
        ];
        let share = share_of_best(&mut |_| rates, 30.0);
        assert!(share > 1.25, "{share}");
    }

    #[test]
    fn a_link_that_changes_is_followed() {
        let fast = [
            (Codec::None, 900.0),
            (Codec::Lz4, 500.0),
            (Codec::Zstd, 150.0),
        ];
        let slow = [(Codec::None, 50.0), (Codec::Lz4, 90.0), (Codec::Zstd, 80.0)];
        let share = share_of_best(&mut |at| if at < 20.0 { fast } else { slow }, 60.0);
        assert!(share > 0.9, "{share}");
    }

    #[test]
    fn a_receiver_that_takes_no_codec_gets_none() {
        assert_eq!(Auto::new(CodecSet::of([])).codec(), Codec::None);
    }
}
