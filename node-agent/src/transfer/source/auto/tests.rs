//! Auto on simulated lines: a source that makes blocks on a few threads, a line with a buffer before it, and a
//! receiver that takes them, and pauses now and then.
use std::collections::VecDeque;

use super::*;

const MIB: u64 = 1 << 20;

/// Blocks that wait for the connection, and for the receiver.
const AHEAD: usize = 4;

/// Seconds that a transfer takes besides its blocks: connecting, a place for it, making it durable.
const OVERHEAD: f64 = 0.1;

/// Seconds that finding out may cost in any case: what sockets swallow tells nothing.
const NOTHING: f64 = 0.05;

/// What it is like to be this transfer. Rates are in MiB a second, of the line in wire bytes.
#[derive(Clone, Copy, Debug)]
struct World {
    blocks: usize,
    line: f64,
    /// MiB that pass at once.
    buffer: f64,
    receiver: f64,
    /// Blocks from one of its pauses to the next, and how many seconds it pauses.
    pauses: Option<(usize, f64)>,
    /// How much smaller lz4 and zstd make the data.
    ratios: [f64; 2],
    /// After every so many blocks come as many that they do not make smaller.
    grain: usize,
    threads: usize,
    /// How many times slower than usual the processors are.
    slow: f64,
    /// What of a processor the receiver has to do without when it compresses.
    shared: f64,
    /// By how much times differ.
    noise: f64,
}

impl World {
    fn ratios(&self, block: usize) -> [f64; 2] {
        match (block / self.grain).is_multiple_of(2) {
            true => self.ratios,
            false => [1.0; 2],
        }
    }

    /// Seconds of a processor for a block.
    fn effort(&self, codec: Codec, block: usize) -> f64 {
        let [lz4, _] = self.ratios(block);
        let milliseconds = match codec {
            Codec::None => 0.7,
            // What hardly gets smaller, and what gets very small, is soon done.
            Codec::Lz4 if lz4 < 1.1 => 1.2,
            Codec::Lz4 if lz4 > 2.5 => 2.2,
            Codec::Lz4 => 2.7,
            _ if lz4 < 1.1 => 2.5,
            _ if lz4 > 2.5 => 4.5,
            _ => 6.5,
        };
        milliseconds / 1000.0 * self.slow
    }

    fn wire(&self, codec: Codec, block: usize) -> f64 {
        let [lz4, zstd] = self.ratios(block);
        match codec {
            Codec::None => 1.0,
            Codec::Lz4 => 1.0 / lz4,
            _ => 1.0 / zstd,
        }
    }

    /// How long the transfer takes, its blocks in each codec, and what the line was last seen to be.
    fn run(&self, mut auto: Auto, seed: u64) -> (f64, [usize; 3], Option<Line>) {
        let mut random = seed | 1;
        let mut noise = move || {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let unit = (random >> 33) as f64 / (1_u64 << 31) as f64;
            1.0 + self.noise * (2.0 * unit - 1.0)
        };
        let epoch = Instant::now();
        let mut free = vec![0.0_f64; self.threads];
        // When each block was handed on, taken by the writer, at the other end, and received.
        let (mut handed, mut taken, mut sent, mut arrived, mut received) =
            (vec![], vec![], vec![], vec![], vec![]);
        let mut news: VecDeque<(f64, Passed)> = VecDeque::new();
        // What the receiver says, and when: how much it starved since it spoke last.
        let mut told: VecDeque<(f64, u32)> = VecDeque::new();
        let (mut starved, mut spoke, mut heard, mut pause) = (0.0, 0.0, None, 0.05);
        let (mut written, mut through) = (0.0, vec![]);
        let (mut counts, mut seen) = ([0; 3], None);
        let at = |times: &Vec<f64>, index: Option<usize>| index.map_or(0.0, |index| times[index]);
        for block in 0..self.blocks {
            let thread = (0..self.threads)
                .min_by(|a, b| free[*a].total_cmp(&free[*b]))
                .unwrap();
            let room = at(&handed, block.checked_sub(2 * self.threads));
            let begin = free[thread].max(room);
            while news.front().is_some_and(|(when, _)| *when <= begin) {
                let (when, mut passed) = news.pop_front().unwrap();
                while told.front().is_some_and(|(at, _)| *at <= when) {
                    heard = told.pop_front().map(|(_, percent)| percent);
                }
                passed.starved = heard;
                let now = epoch + Duration::from_secs_f64(when);
                seen = auto.passed(&passed, now).or(seen);
            }
            let codec = auto.codec();
            counts[AUTO.iter().position(|known| *known == codec).unwrap()] += 1;
            let ready = begin + self.effort(codec, block) * noise();
            free[thread] = ready;
            let offered = ready.max(at(&handed, block.checked_sub(1)));
            let hand = offered.max(at(&taken, block.checked_sub(AHEAD)));
            handed.push(hand);
            let take = hand.max(at(&sent, block.checked_sub(1)));
            taken.push(take);
            let wire = self.wire(codec, block);
            written += wire;
            let arrive = take
                .max(at(&arrived, block.checked_sub(1)))
                .max(at(&received, block.checked_sub(2 * AHEAD)))
                + wire / self.line * noise();
            arrived.push(arrive);
            through.push(written);
            // It is out of the writer's hands when what is not through yet fits into the buffer.
            let gone = through.partition_point(|through| *through < written - self.buffer);
            sent.push(match written > self.buffer {
                true => take.max(arrived[gone]),
                false => take,
            });
            let mut take = arrive.max(at(&received, block.checked_sub(1)));
            starved += take - at(&received, block.checked_sub(1));
            if let Some((every, pause)) = self.pauses
                && block % every == every / 2
            {
                take += pause;
            }
            let took = 1.0 / self.receiver + self.shared * self.effort(codec, block);
            received.push(take + took * noise());
            if received[block] - spoke >= pause {
                pause = f64::min(pause * 2.0, 0.25);
                let percent = 100.0 * starved / (received[block] - spoke);
                told.push_back((received[block], percent as u32));
                (starved, spoke) = (0.0, received[block]);
            }
            let passed = Passed {
                codec,
                raw: MIB,
                wire: (wire * MIB as f64) as u64,
                waited: Duration::from_secs_f64(hand - offered),
                starved: None,
            };
            news.push_back((hand, passed));
        }
        (received[self.blocks - 1] + OVERHEAD, counts, seen)
    }

    fn auto(&self, line: Line, seed: u64) -> (f64, [usize; 3], Option<Line>) {
        self.run(Auto::new(CodecSet::ALL, line, AHEAD), seed)
    }

    fn fixed(&self, codec: Codec, seed: u64) -> f64 {
        self.run(Auto::always(codec), seed).0
    }

    /// How many times as long as the better of none and lz4 Auto takes, but for `NOTHING`, after so many
    /// transfers of the same.
    fn excess(&self, before: u32, seed: u64) -> f64 {
        let best = self
            .fixed(Codec::None, seed)
            .min(self.fixed(Codec::Lz4, seed));
        let line = (0..before).fold(Line::Unknown, |line, _| {
            self.auto(line, seed).2.unwrap_or(line)
        });
        (self.auto(line, seed).0 - NOTHING) / best
    }
}

const WORLD: World = World {
    blocks: 1024,
    line: 100.0,
    buffer: 1.0,
    receiver: 1000.0,
    pauses: None,
    ratios: [2.0, 2.6],
    grain: usize::MAX,
    threads: 2,
    slow: 1.0,
    shared: 0.0,
    noise: 0.2,
};

/// How much longer than the better of none and lz4 Auto takes in each of these worlds, after so many transfers.
fn excesses(worlds: impl IntoIterator<Item = World>, before: u32) -> Vec<(f64, World)> {
    let worlds = worlds.into_iter().zip(1..);
    worlds
        .map(|(world, seed)| (world.excess(before, seed), world))
        .collect()
}

/// Each of these worlds, with each of these changes.
fn with<T: Copy>(worlds: Vec<World>, all: &[T], change: impl Fn(&mut World, T)) -> Vec<World> {
    let changed = |world: World| {
        let change = &change;
        all.iter().map(move |one| {
            let mut world = world;
            change(&mut world, *one);
            world
        })
    };
    worlds.into_iter().flat_map(changed).collect()
}

/// From 64 MiB to 4 GiB, from 2 MiB a second to more than anybody can make: every fourth world of
/// a grid, in which each value meets each of every other's.
fn all_worlds() -> Vec<World> {
    let worlds = with(vec![WORLD], &[64, 256, 1024, 4096], |world, it| {
        world.blocks = it
    });
    let lines = [2.0, 10.0, 40.0, 112.0, 280.0, 1000.0, 5000.0];
    let worlds = with(worlds, &lines, |world, it| world.line = it);
    let ratios = [[1.0, 1.0], [1.05, 1.1], [1.3, 1.6], [2.0, 2.6], [3.0, 4.0]];
    let worlds = with(worlds, &ratios, |world, it| world.ratios = it);
    let receivers = [
        (1500.0, 0.0),
        (1500.0, 0.5),
        (500.0, 0.0),
        (700.0, 0.5),
        (150.0, 0.0),
    ];
    let worlds = with(worlds, &receivers, |world, it| {
        (world.receiver, world.shared) = it
    });
    let processors = [(2, 1.0), (4, 1.0), (2, 2.0)];
    let worlds = with(worlds, &processors, |world, it| {
        (world.threads, world.slow) = it
    });
    let pauses = [
        (0.25, None),
        (4.0, Some((200, 0.1))),
        (1.0, Some((900, 0.6))),
    ];
    let worlds = with(worlds, &pauses, |world, it| {
        (world.buffer, world.pauses) = it
    });
    worlds.into_iter().step_by(4).collect()
}

/// Within a tenth in all but one of so many worlds, and never off by half. Nobody could be in all: the first
/// blocks tell little, and a receiver says only now and then that it starves.
fn is_hardly_ever_slower(worlds: Vec<World>, before: u32, one_of: usize) {
    let count = worlds.len();
    let all = excesses(worlds, before);
    let over: Vec<_> = all.iter().filter(|(excess, _)| *excess > 1.1).collect();
    let worst = all.iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    assert!(
        over.len() * one_of < count,
        "{} of {count}: {over:?}",
        over.len()
    );
    assert!(worst.0 < 1.5, "{worst:?}");
}

#[test]
fn it_is_not_slower_than_the_better_of_none_and_lz4_by_more_than_a_tenth() {
    is_hardly_ever_slower(all_worlds(), 0, 50);
}

#[test]
fn nor_is_the_next_one_nor_the_one_after_that() {
    is_hardly_ever_slower(all_worlds(), 1, 50);
    is_hardly_ever_slower(all_worlds(), 2, 50);
}

#[test]
fn nor_where_the_data_changes() {
    let worlds = with(all_worlds(), &[200], |world, it| world.grain = it);
    is_hardly_ever_slower(worlds, 0, 30);
}

#[test]
fn on_slow_lines_it_is_never_slower_at_all() {
    let slow = |world: &World| world.line <= 40.0 && world.slow * world.shared < 1.0;
    for before in 0..3 {
        for (excess, world) in excesses(all_worlds().into_iter().filter(slow), before) {
            assert!(excess < 1.1, "{excess}: {world:?}");
        }
    }
}

/// The share of the blocks that went uncompressed.
fn uncompressed(world: World) -> f64 {
    let (_, [none, lz4, zstd], _) = world.auto(Line::Unknown, 1);
    none as f64 / (none + lz4 + zstd) as f64
}

#[test]
fn what_does_not_get_smaller_goes_uncompressed_on_any_line() {
    let worlds = all_worlds()
        .into_iter()
        .filter(|world| world.ratios[0] < 1.1);
    for world in worlds.filter(|world| world.blocks > 64) {
        assert!(uncompressed(world) > 0.9, "{world:?}");
    }
}

#[test]
fn where_making_blocks_takes_the_time_they_are_not_compressed() {
    for ratios in [[1.3, 1.6], [2.0, 2.6], [3.0, 4.0]] {
        let (blocks, line, receiver) = (4096, 5000.0, 3000.0);
        let world = World {
            blocks,
            line,
            receiver,
            ratios,
            ..WORLD
        };
        assert!(uncompressed(world) > 0.9, "{ratios:?}");
    }
}

#[test]
fn on_a_slow_line_the_codec_that_leaves_least_is_found() {
    for line in [2.0, 10.0, 40.0] {
        let world = World { line, ..WORLD };
        let (lz4, auto) = (world.fixed(Codec::Lz4, 1), world.auto(Line::Unknown, 1));
        assert!(auto.0 < lz4 * 0.9, "{line}: {auto:?}, {lz4} in lz4");
    }
}

#[test]
fn a_line_that_becomes_slow_is_followed() {
    let (mut auto, mut now) = (
        Auto::new(CodecSet::ALL, Line::Unknown, AHEAD),
        Instant::now(),
    );
    let mut pass = |auto: &mut Auto, line: f64| {
        let codec = auto.codec();
        let wire = WORLD.wire(codec, 0);
        let (sealed, sent) = (WORLD.effort(codec, 0) / 2.0, wire / line);
        let took = Duration::from_secs_f64(sealed.max(sent));
        now += took;
        let passed = Passed {
            codec,
            raw: MIB,
            wire: (wire * MIB as f64) as u64,
            waited: took.saturating_sub(Duration::from_secs_f64(sealed)),
            starved: Some(if sent > sealed { 50 } else { 0 }),
        };
        auto.passed(&passed, now);
        codec
    };
    let fast: Vec<_> = (0..2000).map(|_| pass(&mut auto, 5000.0)).collect();
    assert!(fast[200..].iter().all(|codec| *codec == Codec::None));
    let slow: Vec<_> = (0..500).map(|_| pass(&mut auto, 10.0)).collect();
    assert!(slow[100..].iter().all(|codec| *codec != Codec::None));
    let fast: Vec<_> = (0..5000).map(|_| pass(&mut auto, 5000.0)).collect();
    assert!(fast[4000..].iter().all(|codec| *codec == Codec::None));
}

#[test]
fn what_sockets_take_at_once_after_a_wait_is_not_taken_for_a_fast_line() {
    let (mut auto, mut now) = (
        Auto::new(CodecSet::ALL, Line::Unknown, AHEAD),
        Instant::now(),
    );
    let mut pass = |took: f64, waited: f64| {
        let codec = auto.codec();
        now += Duration::from_secs_f64(took);
        let passed = Passed {
            codec,
            raw: MIB,
            wire: (WORLD.wire(codec, 0) * MIB as f64) as u64,
            waited: Duration::from_secs_f64(waited),
            starved: Some(99),
        };
        auto.passed(&passed, now);
        codec
    };
    for burst in 0..4 {
        for block in 0..8 {
            let (took, waited) = match block {
                0 => (1.0, 1.0),
                _ => (0.0003, 0.0001),
            };
            assert_ne!(pass(took, waited), Codec::None, "{burst}");
        }
    }
}

#[test]
fn a_receiver_that_takes_no_codec_gets_none() {
    assert_eq!(
        Auto::new(CodecSet::of([]), Line::Unknown, AHEAD).codec(),
        Codec::None
    );
}

#[test]
fn on_a_line_that_is_known_to_be_fast_nothing_is_compressed_from_the_first_block_on() {
    let world = World {
        blocks: 64,
        line: 5000.0,
        ..WORLD
    };
    let (_, [none, ..], _) = world.auto(Line::Fast, 1);
    assert_eq!(none, world.blocks);
    // What turns out to be slow after all is found out.
    let world = World {
        line: 10.0,
        ..WORLD
    };
    let (_, [none, ..], _) = world.auto(Line::Fast, 1);
    assert!(none < world.blocks / 10, "{none}");
}

#[test]
fn a_line_that_carries_all_that_can_be_made_is_seen_to_be_fast_in_a_transfer_of_some_size() {
    for line in [Line::Unknown, Line::Fast] {
        for ratios in [[1.0, 1.0], [1.3, 1.6], [2.0, 2.6], [3.0, 4.0]] {
            let (blocks, receiver) = (256, 1000.0);
            let world = World {
                blocks,
                line: 5000.0,
                receiver,
                ratios,
                ..WORLD
            };
            let (.., seen) = world.auto(line, 1);
            assert_eq!(seen, Some(Line::Fast), "{ratios:?}");
        }
    }
}

#[test]
fn a_slow_line_is_never_seen_to_be_fast_and_one_that_was_fast_is_unlearnt() {
    let is_slow = |world: &World| world.line <= 40.0 && world.receiver >= 500.0;
    for (world, seed) in all_worlds().into_iter().filter(is_slow).zip(1..) {
        for line in [Line::Unknown, Line::Fast] {
            let (.., seen) = world.auto(line, seed);
            assert_ne!(seen, Some(Line::Fast), "{world:?}");
            assert!(seen.is_some() || world.blocks <= 64, "{world:?}");
        }
    }
}
