//! When the next checkpoint of what arrives is worth what it costs. Pure: time comes in through
//! arguments.
//!
//! A checkpoint costs twice: the time until it is durable, and afterwards, for the file system's tree is
//! shared with it then, and each part is copied again when it next changes. Of an image that is little.
//! In a tree of very many small files nearly every command changes another part, and only after many
//! commands for each part there is does the copying become cheap.

use std::time::{Duration, Instant};

use icbd_btrfs::receive::Progress;

/// How many times longer than the last checkpoint took the work between two of them lasts.
const TIMES: u32 = 5;

/// So much of the stream is worth a checkpoint.
const WORTH: u64 = 64 << 20;

/// So is one command in so many of all.
const SHARE: u64 = 4;

/// The checkpoints of one arriving snapshot.
pub(super) struct Rhythm {
    least: Duration,
    /// How long to work until the next one.
    pause: Duration,
    /// When the last one was made, or the work begun.
    since: Instant,
    /// How far the stream was then.
    kept: Progress,
}

impl Rhythm {
    /// Work begins where an earlier attempt got. Checkpoints are at least `least` apart.
    pub(super) fn new(least: Duration, from: Progress, now: Instant) -> Self {
        Self {
            least,
            pause: least,
            since: now,
            kept: from,
        }
    }

    /// Whether it is time for a checkpoint.
    pub(super) fn is_due(&self, done: Progress, now: Instant) -> bool {
        let bytes = done.bytes - self.kept.bytes;
        let commands = done.commands - self.kept.commands;
        now - self.since >= self.pause && (bytes >= WORTH || commands >= done.commands / SHARE)
    }

    /// A checkpoint was made, which began at `begun`.
    pub(super) fn made(&mut self, done: Progress, begun: Instant, now: Instant) {
        self.kept = done;
        self.since = now;
        self.pause = self.least.max((now - begun) * TIMES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_secs(3);

    /// When checkpoints are made of a stream that moves so fast, each of which takes this long.
    fn checkpoints(seconds: u64, bytes: u64, commands: u64, took: Duration) -> Vec<f64> {
        let begin = Instant::now();
        let mut rhythm = Rhythm::new(
            LEAST,
            Progress {
                bytes: 0,
                commands: 0,
            },
            begin,
        );
        let (mut now, mut made) = (begin, Vec::new());
        let tick = Duration::from_millis(20);
        // Nothing moves while a checkpoint is made.
        let mut worked = Duration::ZERO;
        while now - begin < Duration::from_secs(seconds) {
            (now, worked) = (now + tick, worked + tick);
            let done = Progress {
                bytes: (worked.as_secs_f64() * bytes as f64) as u64,
                commands: (worked.as_secs_f64() * commands as f64) as u64,
            };
            if rhythm.is_due(done, now) {
                rhythm.made(done, now, now + took);
                now += took;
                made.push((now - begin).as_secs_f64());
            }
        }
        made
    }

    fn longest_pause(made: &[f64]) -> f64 {
        let pauses = made.windows(2).map(|pair| pair[1] - pair[0]);
        pauses.fold(made[0], f64::max)
    }

    #[test]
    fn an_image_is_kept_as_often_as_may_be() {
        // In blocks of 1 MiB, and in pieces of 4 KiB.
        for (bytes, commands) in [(500 << 20, 500), (100 << 20, 25_600)] {
            let made = checkpoints(600, bytes, commands, Duration::from_millis(100));
            assert!(longest_pause(&made) < 3.2, "{made:?}");
        }
    }

    #[test]
    fn at_most_so_much_is_lost_of_what_comes_slowly() {
        for rate in [1 << 20, 5 << 20, 20 << 20] {
            let made = checkpoints(3600, rate, rate >> 7, Duration::from_millis(100));
            let lost = longest_pause(&made) * rate as f64;
            assert!(lost < (WORTH + 4 * rate) as f64, "{lost} of {rate}");
        }
    }

    #[test]
    fn very_many_small_files_are_kept_seldom() {
        let made = checkpoints(500, 1_300_000, 17_000, Duration::from_millis(600));
        assert!((8..30).contains(&made.len()), "{made:?}");
    }

    #[test]
    fn what_takes_its_time_is_done_seldom() {
        let made = checkpoints(600, 500 << 20, 500, Duration::from_secs(2));
        assert!(made.len() <= 50, "{made:?}");
    }

    #[test]
    fn an_attempt_that_goes_on_is_kept_as_one_that_had_not_ended() {
        let begin = Instant::now();
        let from = Progress {
            bytes: 1 << 30,
            commands: 10_000_000,
        };
        let rhythm = Rhythm::new(LEAST, from, begin);
        let after = |seconds, bytes, commands| {
            let done = Progress {
                bytes: from.bytes + bytes,
                commands: from.commands + commands,
            };
            rhythm.is_due(done, begin + Duration::from_secs(seconds))
        };
        assert!(!after(2, WORTH, 5_000_000));
        assert!(!after(60, WORTH - 1, 1_000_000));
        assert!(after(60, WORTH, 1_000_000));
        assert!(after(60, WORTH - 1, 5_000_000));
    }
}
