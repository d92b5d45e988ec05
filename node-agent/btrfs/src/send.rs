//! The kernel's send: a read-only subvolume, whole or as an increment on a parent, as a stream of bytes.
//! What is in the stream is the business of `stream`; how long it will be, of `measure`; cutting it into
//! blocks, of `blocks`.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::thread::JoinHandle;

use linux_raw_sys::btrfs::{
    BTRFS_SEND_FLAG_COMPRESSED, BTRFS_SEND_FLAG_NO_FILE_DATA, BTRFS_SEND_FLAG_VERSION,
};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::encoding::Encoding;
use crate::error::Error;
use crate::subvolume::{Subvolume, escape, file_system_id};
use crate::sys;

/// The protocol that is always asked for (kernel 6.0 and newer know it). In version 1 a hole
/// costs as many zeros, and the length of a large one is cut to 32 bits.
const VERSION: u32 = 2;

/// Room in the pipe between kernel and reader: seven of the kernel's writes of 144 KiB.
const PIPE_BYTES: usize = 1 << 20;

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct SendRequest<'a> {
    /// The read-only subvolume whose content the stream carries.
    pub source: &'a Subvolume,
    /// A read-only subvolume that the receiver has too: the stream then carries what changed since.
    pub parent: Option<&'a Subvolume>,
    /// More read-only subvolumes that the receiver has, from which it can clone extents rather than
    /// be sent them. The parent is one already.
    pub clone_sources: &'a [&'a Subvolume],
}

/// The thread that the kernel sends on, and how it ended.
pub(crate) type KernelThread = JoinHandle<Result<(), Error>>;

/// Whether the stream carries what is in the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileData {
    Included(Encoding),
    /// An UPDATE_EXTENT command stands for each range of data.
    Omitted,
}

impl SendRequest<'_> {
    /// Writes the whole stream into `out`, a pipe; returns when the kernel is done. While it runs,
    /// source, parent and clone sources can neither be deleted nor made writable.
    ///
    /// # Errors
    /// [`Error::Writable`] if a subvolume is not read-only; EPIPE if the pipe's reader has gone;
    /// EINVAL or EOPNOTSUPP from a kernel older than 6.0; EIO if the source cannot be read.
    pub fn send_to(&self, out: impl AsFd) -> Result<(), Error> {
        self.write(out.as_fd(), FileData::Included(Encoding::Plain))
    }

    /// Starts sending on a thread of its own; the stream is read from the answer.
    ///
    /// # Errors
    /// No descriptor or thread to be had. What the kernel has against sending it, reading tells.
    pub fn start(&self) -> Result<SendStream, Error> {
        self.start_with(FileData::Included(Encoding::Plain))
    }

    pub(crate) fn start_with(&self, data: FileData) -> Result<SendStream, Error> {
        let failed = |doing| Error::system(doing, self.source.name());
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
            .map_err(failed("open a pipe for sending"))?;
        // Best effort: the administrator's limit on pipes may be lower.
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES);

        let kernel = self.spawn(writer, data)?;
        Ok(SendStream {
            pipe: reader.into(),
            kernel: Some(kernel),
            verdict: Ok(()),
        })
    }

    /// Has the kernel write the stream into `out`, a pipe, on a thread of its own. `out` is closed
    /// when the kernel is done, after which the pipe's reader sees the end.
    pub(crate) fn spawn(&self, out: OwnedFd, data: FileData) -> Result<KernelThread, Error> {
        let source = self.source.try_clone()?;
        let parent = self.parent.map(Subvolume::try_clone).transpose()?;
        let clone_sources = self
            .clone_sources
            .iter()
            .map(|sub| sub.try_clone())
            .collect::<Result<Vec<_>, _>>()?;
        std::thread::Builder::new()
            .name("btrfs-send".into())
            .spawn(move || {
                let clone_sources: Vec<_> = clone_sources.iter().collect();
                let request = SendRequest {
                    source: &source,
                    parent: parent.as_ref(),
                    clone_sources: &clone_sources,
                };
                request.write(out.as_fd(), data)
            })
            .map_err(|error| {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
                Error::system("start a thread for sending", self.source.name())(errno)
            })
    }

    /// Ids are all that the kernel is given, and on another file system they mean other subvolumes.
    fn refuse_other_file_systems(&self) -> Result<(), Error> {
        let here = file_system_id(self.source)?;
        for subvolume in self.parent.iter().chain(self.clone_sources) {
            if file_system_id(subvolume)? != here {
                return Err(Error::OtherFileSystem {
                    name: escape(subvolume.name()),
                });
            }
        }
        Ok(())
    }

    fn write(&self, out: BorrowedFd<'_>, data: FileData) -> Result<(), Error> {
        read_only_id(self.source)?;
        self.refuse_other_file_systems()?;
        let parent = self.parent.map(read_only_id).transpose()?;
        // The kernel clones from the parent only if it is named among the clone sources as well.
        let mut clone_sources = parent
            .map(Ok)
            .into_iter()
            .chain(self.clone_sources.iter().map(|sub| read_only_id(sub)))
            .collect::<Result<Vec<u64>, _>>()?;
        let data_flag = match data {
            FileData::Included(Encoding::Plain) => 0,
            FileData::Included(Encoding::AsStored) => BTRFS_SEND_FLAG_COMPRESSED,
            FileData::Omitted => BTRFS_SEND_FLAG_NO_FILE_DATA,
        };
        let what = sys::SendArgs {
            parent: parent.unwrap_or(0),
            clone_sources: &mut clone_sources,
            flags: u64::from(BTRFS_SEND_FLAG_VERSION | data_flag),
            version: VERSION,
        };
        sys::send(self.source.as_fd(), out, what).map_err(|errno| match self.parent {
            None => Error::system("send", self.source.name())(errno),
            Some(parent) => Error::System {
                doing: "send",
                what: format!(
                    "\"{}\" on \"{}\"",
                    escape(self.source.name()),
                    escape(parent.name())
                ),
                errno,
            },
        })
    }
}

/// A stream while the kernel makes it. Its end is seen only if the kernel sent all there is: a send
/// that fails makes reading fail, with an [`Error`] inside, so a cut stream is never taken for a
/// whole one.
///
/// Dropped early, the kernel stops at its next write and lets go of the subvolumes then.
#[derive(Debug)]
pub struct SendStream {
    pipe: File,
    kernel: Option<KernelThread>,
    /// How the kernel ended; success for as long as it has not.
    verdict: Result<(), Error>,
}

impl Read for SendStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.pipe.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            if let Some(kernel) = self.kernel.take() {
                self.verdict = kernel.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
            self.verdict.clone().map_err(io::Error::other)?;
        }
        Ok(count)
    }
}

/// To poll for something to read.
impl AsFd for SendStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// The id of a subvolume that the kernel will take part of in a send.
fn read_only_id(subvolume: &Subvolume) -> Result<u64, Error> {
    let info = subvolume.info()?;
    if info.read_only {
        Ok(info.id)
    } else {
        Err(Error::Writable {
            name: escape(subvolume.name()),
        })
    }
}
