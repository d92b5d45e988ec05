//! Real streams with something changed at random.

use fastrand::Rng;
use icbd_btrfs::stream::Version;
use icbd_btrfs::stream::encode::Encoder;

/// Bytes before the first command, and before each command's payload.
const STREAM_HEADER: usize = 17;
const HEADER: usize = 10;

/// What is done to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mutation {
    /// A byte is another one, and no checksum says so.
    Flip,
    /// It ends early.
    Cut,
    /// Bytes come or go, and no checksum says so.
    Shift,
    /// Bytes of a payload are others, and its checksum is right.
    Forge,
    /// Commands are left out, repeated, or in another order.
    Shuffle,
}

impl Mutation {
    pub const ALL: [Mutation; 5] = [
        Mutation::Flip,
        Mutation::Cut,
        Mutation::Shift,
        Mutation::Forge,
        Mutation::Shuffle,
    ];

    /// Whether the kernel's own stream cannot pass with it.
    pub fn is_seen_by_checksums(self) -> bool {
        matches!(self, Mutation::Flip | Mutation::Cut | Mutation::Shift)
    }

    /// Changes a stream that comes as its commands.
    pub fn apply(self, random: &mut Rng, commands: &mut Vec<Vec<u8>>) {
        match self {
            Mutation::Flip => flip(random, commands),
            Mutation::Cut => cut(random, commands),
            Mutation::Shift => shift(random, commands),
            Mutation::Forge => (0..random.usize(1..4)).for_each(|_| forge(random, commands)),
            Mutation::Shuffle => (0..random.usize(1..4)).for_each(|_| shuffle(random, commands)),
        }
    }
}

fn flip(random: &mut Rng, commands: &mut [Vec<u8>]) {
    let command = any(random, commands);
    // Of the stream's header, the version's bits make version 1 of 2, which is no damage.
    let first = if command == 0 { STREAM_HEADER } else { 0 };
    let at = random.usize(first..commands[command].len());
    commands[command][at] ^= random.u8(1..);
}

fn cut(random: &mut Rng, commands: &mut Vec<Vec<u8>>) {
    let command = any(random, commands);
    commands.truncate(command + 1);
    let length = random.usize(0..commands[command].len());
    commands[command].truncate(length);
}

/// Not in END: what comes after that is not read.
fn shift(random: &mut Rng, commands: &mut [Vec<u8>]) {
    let command = any(random, &commands[..commands.len() - 1]);
    let at = random.usize(..commands[command].len());
    let many = random.usize(1..8);
    match random.bool() {
        true => {
            let more: Vec<u8> = (0..many).map(|_| random.u8(..)).collect();
            commands[command].splice(at..at, more);
        }
        false => {
            let end = (at + many).min(commands[command].len());
            commands[command].drain(at..end);
        }
    }
}

fn forge(random: &mut Rng, commands: &mut [Vec<u8>]) {
    let command = any(random, commands);
    let header = if command == 0 { STREAM_HEADER } else { 0 };
    let (before, bytes) = commands[command].split_at(header);
    let number = u16::from_le_bytes([bytes[4], bytes[5]]);
    let mut payload = bytes[HEADER..].to_vec();
    if payload.is_empty() {
        return;
    }
    // Most of what matters is in front of the data.
    let reach = if random.bool() {
        payload.len()
    } else {
        payload.len().min(64)
    };
    for _ in 0..random.usize(1..4) {
        let at = random.usize(..reach);
        payload[at] = match random.u8(..4) {
            0 => *random.choice(b"./\0\xff").unwrap(),
            1 => payload[at] ^ (1 << random.u8(..8)),
            _ => random.u8(..),
        };
    }
    // The version is not in a command's header, so that any encoder writes it alike.
    let mut encoder = Encoder::new(Version::V2);
    let number = if random.u8(..8) == 0 {
        random.u16(..28)
    } else {
        number
    };
    encoder.raw(number, &payload);
    commands[command] = [before, &encoder.bytes()[STREAM_HEADER..]].concat();
}

/// The first and last command stay where they are, or little else would be reached.
fn shuffle(random: &mut Rng, commands: &mut Vec<Vec<u8>>) {
    let last = commands.len() - 1;
    if last < 3 {
        return;
    }
    let (one, other) = (random.usize(1..last), random.usize(1..last));
    match random.u8(..3) {
        0 => drop(commands.remove(one)),
        1 => commands.insert(other, commands[one].clone()),
        _ => commands.swap(one, other),
    }
}

fn any(random: &mut Rng, commands: &[Vec<u8>]) -> usize {
    random.usize(..commands.len())
}
