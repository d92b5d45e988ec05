//! Keeping snapshots from being deleted or made writable while their files are read: by a send that never
//! gets further than its beginning. What is read meanwhile is the holder's business.

use std::os::fd::OwnedFd;
use std::panic::resume_unwind;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::encoding::Encoding;
use crate::error::Error;
use crate::send::{FileData, KernelThread, SendRequest};

/// Snapshots as they are: until it is dropped, deleting one of them or making it writable fails with
/// EPERM, and so does deduplicating in it. It costs a thread and no work.
#[derive(Debug)]
pub struct Hold {
    /// Both there until dropping takes them.
    reader: Option<OwnedFd>,
    kernel: Option<KernelThread>,
}

impl SendRequest<'_> {
    /// Holds the source, the parent and the clone sources of this request.
    ///
    /// # Errors
    /// [`Error::Writable`] if one of them is not read-only; what else the kernel has against sending
    /// this request; no descriptor or thread to be had.
    pub fn hold(&self) -> Result<Hold, Error> {
        let failed = |doing| Error::system(doing, self.source.name());
        // Every write is a packet of its own in such a pipe, and there is room for one. The first, the
        // stream's header, tells that the kernel has begun; with the second it waits.
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::DIRECT)
            .map_err(failed("open a pipe for holding"))?;
        rustix::pipe::fcntl_setpipe_size(&writer, 1)
            .map_err(failed("shrink a pipe for holding"))?;
        let kernel = self.spawn(writer, FileData::Included(Encoding::Plain))?;

        let mut fds = [PollFd::new(&reader, PollFlags::IN)];
        while let Err(errno) = poll(&mut fds, None) {
            if errno != Errno::INTR {
                return Err(failed("wait for the holding of")(errno));
            }
        }
        let [fd] = fds;
        if !fd.revents().contains(PollFlags::IN) {
            let ended = kernel.join().unwrap_or_else(|panic| resume_unwind(panic));
            // It ended before it wrote anything, which is never a success.
            return Err(ended.err().unwrap_or_else(|| failed("hold")(Errno::NODATA)));
        }
        Ok(Hold {
            reader: Some(reader),
            kernel: Some(kernel),
        })
    }
}

impl Drop for Hold {
    /// Lets go of the snapshots before it returns.
    fn drop(&mut self) {
        // The kernel's second write fails now that there is nobody to read it.
        drop(self.reader.take());
        if let Some(kernel) = self.kernel.take() {
            let _ = kernel.join();
        }
    }
}
