//! Changes a disk image as its VM would: overwrites pieces of 64 KiB, scattered over all of it, with real content from
//! elsewhere in the image.
//!
//! `scatter IMAGE COUNT SEED` does so COUNT times, the same for the same image and SEED, and prints the ranges that it
//! changed in order: an offset and a length in bytes a line.

use std::collections::BTreeSet;
use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, Error, ErrorKind, Write};
use std::os::unix::fs::FileExt;

/// Bytes a piece; the image is seen as a row of them.
const PIECE: u64 = 64 << 10;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [image, count, seed] = arguments.as_slice() else {
        return Err(invalid("usage: scatter IMAGE COUNT SEED"));
    };
    let count: usize = number(count)?;
    let mut random = Random(number(seed)?);
    let image = OpenOptions::new().read(true).write(true).open(image)?;
    let pieces = image.metadata()?.len() / PIECE;
    if pieces < 2 * count as u64 {
        return Err(invalid("the image is too small for so many pieces"));
    }
    let mut changed = BTreeSet::new();
    while changed.len() < count {
        let piece = random.below(pieces);
        if changed.insert(piece) {
            image.write_all_at(&content(&image, pieces, &mut random)?, piece * PIECE)?;
        }
    }
    let mut out = io::stdout().lock();
    for piece in changed {
        writeln!(out, "{} {PIECE}", piece * PIECE)?;
    }
    image.sync_all()
}

/// A piece of the image that is not all zeros.
fn content(image: &File, pieces: u64, random: &mut Random) -> io::Result<Vec<u8>> {
    let mut piece = vec![0; PIECE as usize];
    while piece.iter().all(|&byte| byte == 0) {
        image.read_exact_at(&mut piece, random.below(pieces) * PIECE)?;
    }
    Ok(piece)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse()
        .map_err(|_| invalid(&format!("'{text}' is not a number")))
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, what)
}
