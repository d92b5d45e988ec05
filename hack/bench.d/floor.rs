//! The floor of hack/bench: a bare copy of one file until it is durable, with nothing of a transfer but the data. One
//! thread reads, one writes, 1 MiB at a time through the page cache; write-back is started after each write, and one
//! fsync is at the end.
//!
//! `floor SOURCE TARGET` copies what of SOURCE is data; `floor SOURCE TARGET RANGES` what the file RANGES lists, an
//! offset and a length in bytes a line, into a TARGET that has the rest.

use std::ffi::{c_int, c_uint};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Error, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::{env, thread};

/// Bytes a read and a write.
const CHUNK: u64 = 1 << 20;
/// Chunks on their way from the reader to the writer.
const IN_FLIGHT: usize = 8;

/// lseek(2): to where data, or a hole, begins at or after an offset.
const SEEK_DATA: c_int = 3;
const SEEK_HOLE: c_int = 4;
/// sync_file_range(2): start to write, do not wait.
const SYNC_FILE_RANGE_WRITE: c_uint = 2;
const ENXIO: i32 = 6;

// SAFETY: the signatures are the C library's on 64-bit Linux. Neither function takes a pointer, and a descriptor that
// is not open is an error: any argument is safe.
unsafe extern "C" {
    safe fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64;
    safe fn sync_file_range(fd: c_int, offset: i64, length: i64, flags: c_uint) -> c_int;
}

/// A part of a file: offset and length in bytes.
type Range = (u64, u64);
/// The bytes at an offset.
type Chunk = (u64, Vec<u8>);

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (source, target, list) = match arguments.as_slice() {
        [source, target] => (source, target, None),
        [source, target, list] => (source, target, Some(list)),
        _ => return Err(invalid("usage: floor SOURCE TARGET [RANGES]")),
    };
    let source = File::open(source)?;
    let target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(target)?;
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let ranges = match list {
        Some(list) => listed(Path::new(list))?,
        None => data(&source, size)?,
    };
    copy(&source, &target, &ranges)?;
    target.sync_all()
}

fn listed(list: &Path) -> io::Result<Vec<Range>> {
    fs::read_to_string(list)?
        .lines()
        .map(|line| {
            let (offset, length) = line.split_once(' ')?;
            Some((offset.parse().ok()?, length.parse().ok()?))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| invalid("the list of ranges has a line that is not two numbers"))
}

/// Where the file is not a hole.
fn data(file: &File, size: u64) -> io::Result<Vec<Range>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let Some(start) = seek(file, at, SEEK_DATA)? else {
            break;
        };
        at = seek(file, start, SEEK_HOLE)?.unwrap_or(size);
        ranges.push((start, at - start));
    }
    Ok(ranges)
}

/// Nothing when there is no data from `from` on.
fn seek(file: &File, from: u64, whence: c_int) -> io::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(Error::other)?;
    match u64::try_from(lseek(file.as_raw_fd(), from, whence)) {
        Ok(found) => Ok(Some(found)),
        Err(_) if Error::last_os_error().raw_os_error() == Some(ENXIO) => Ok(None),
        Err(_) => Err(Error::last_os_error()),
    }
}

fn copy(source: &File, target: &File, ranges: &[Range]) -> io::Result<()> {
    let (full, filled) = sync_channel(IN_FLIGHT);
    let (empty, emptied) = sync_channel(IN_FLIGHT);
    for _ in 0..IN_FLIGHT {
        empty.send(Vec::new()).map_err(Error::other)?;
    }
    thread::scope(|scope| {
        let reader = scope.spawn(move || read(source, ranges, emptied, full));
        write(target, filled, empty)?;
        reader
            .join()
            .map_err(|_| Error::other("the reader panicked"))?
    })
}

/// Owns its ends of the channels, so that the writer ends when this does. Ends early, without an error of its own, when
/// the writer has ended with one.
fn read(
    source: &File,
    ranges: &[Range],
    emptied: Receiver<Vec<u8>>,
    full: SyncSender<Chunk>,
) -> io::Result<()> {
    for &(start, length) in ranges {
        let end = start + length;
        let mut at = start;
        while at < end {
            let Ok(mut buffer) = emptied.recv() else {
                return Ok(());
            };
            let count = CHUNK.min(end - at);
            buffer.resize(usize::try_from(count).map_err(Error::other)?, 0);
            source.read_exact_at(&mut buffer, at)?;
            if full.send((at, buffer)).is_err() {
                return Ok(());
            }
            at += count;
        }
    }
    Ok(())
}

/// Owns its ends of the channels, so that the reader ends when this ends with an error.
fn write(target: &File, filled: Receiver<Chunk>, empty: SyncSender<Vec<u8>>) -> io::Result<()> {
    while let Ok((offset, buffer)) = filled.recv() {
        target.write_all_at(&buffer, offset)?;
        start_write_back(target, offset, buffer.len())?;
        // Towards the end the reader has gone and needs no buffer.
        let _ = empty.send(buffer);
    }
    Ok(())
}

fn start_write_back(target: &File, offset: u64, length: usize) -> io::Result<()> {
    let offset = i64::try_from(offset).map_err(Error::other)?;
    let length = i64::try_from(length).map_err(Error::other)?;
    match sync_file_range(target.as_raw_fd(), offset, length, SYNC_FILE_RANGE_WRITE) {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, what)
}
