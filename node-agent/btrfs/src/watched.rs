//! Reading what the kernel sends under the eyes of somebody who can break it off, also while the kernel
//! computes in silence. What is in the stream is the business of `stream`.

use std::io::{self, Read};
use std::ops::ControlFlow;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::Error;
use crate::send::SendStream;
use crate::stream::{Problem, StreamError};

/// How long the kernel may compute in silence before the watcher is asked again.
const SILENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Reads a stream, asking the watcher before each read and while there is nothing to read. It is
/// told how many bytes came so far.
#[derive(Debug)]
pub(crate) struct Watched<W> {
    stream: SendStream,
    bytes: u64,
    watch: W,
}

#[derive(Debug, thiserror::Error)]
#[error("broken off")]
struct BrokenOff;

impl<W: FnMut(u64) -> ControlFlow<()>> Watched<W> {
    pub(crate) fn new(stream: SendStream, watch: W) -> Self {
        Self {
            stream,
            bytes: 0,
            watch,
        }
    }
}

impl<W: FnMut(u64) -> ControlFlow<()>> Read for Watched<W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if (self.watch)(self.bytes).is_break() {
                return Err(io::Error::other(BrokenOff));
            }
            let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
            match poll(&mut fds, Some(&SILENCE)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        let count = self.stream.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}

/// Why a watched stream cannot be read on.
pub(crate) enum Failure {
    /// The watcher broke it off.
    BrokenOff,
    /// The kernel does not send this, or not all of it.
    Send(Error),
    /// What the kernel sends is not what it should be.
    Stream(StreamError),
}

impl Failure {
    /// Takes out what [`Watched`] and [`SendStream`] wrapped.
    pub(crate) fn of(error: StreamError) -> Self {
        let Problem::Read(source) = &error.problem else {
            return Self::Stream(error);
        };
        let inner = source.get_ref();
        if inner.is_some_and(|inner| inner.is::<BrokenOff>()) {
            return Self::BrokenOff;
        }
        match inner.and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => Self::Send(error.clone()),
            None => Self::Stream(error),
        }
    }
}
