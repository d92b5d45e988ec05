//! Measures each codec on the blocks of a file, in this thread: how fast it seals and opens
//! (hash included), and what is left. `cargo run --release -p icbd-wire --example codecs -- FILE`

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use icbd_wire::data::{Codec, Compressor, Decompressor, MAX_BLOCK};

/// How much of the file is read.
const SAMPLE: u64 = 256 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: codecs FILE")?;
    let mut content = Vec::new();
    std::fs::File::open(path)?
        .take(SAMPLE)
        .read_to_end(&mut content)?;
    let mut compressor = Compressor::new();
    let mut decompressor = Decompressor::new();
    let mut out = io::stdout().lock();
    writeln!(out, "codec   seal MiB/s  open MiB/s  left")?;
    for codec in Codec::ALL {
        let (mut sealing, mut opening, mut left) = (Duration::ZERO, Duration::ZERO, 0);
        for raw in content.chunks(MAX_BLOCK) {
            let start = Instant::now();
            let data = compressor.seal(codec, raw)?;
            let sealed = Instant::now();
            decompressor.open(&data)?;
            sealing += sealed - start;
            opening += sealed.elapsed();
            left += data.payload.len();
        }
        let mib = content.len() as f64 / f64::from(1 << 20);
        writeln!(
            out,
            "{codec:7} {:10.0} {:11.0} {:5.1}%",
            mib / sealing.as_secs_f64(),
            mib / opening.as_secs_f64(),
            100.0 * left as f64 / content.len() as f64,
        )?;
    }
    Ok(())
}
