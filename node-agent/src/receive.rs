//! `icbd-agent receive`: the send streams on standard input, each as a snapshot under its own name
//! in one directory. How a stream is carried out is icbd-btrfs' business.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use icbd_btrfs::receive::{Base, Receiver};
use icbd_btrfs::stream::{Command, Reader, StreamError};
use icbd_wire::control::Reason;
use rustix::event::{PollFd, PollFlags};
use rustix::pipe::PipeFlags;
use uuid::Uuid;

use crate::directory::{self, Snapshot};
use crate::error::{Error, Result, blocking};
use crate::serve::asked_to_end;

/// How much is read at once, and may wait in a pipe. A stream's commands have up to 256 KiB.
const BUFFER: usize = 1 << 20;

/// Receives until standard input ends, or the process is asked to end.
pub(crate) fn run(dir: PathBuf) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io("start threads"))?;
    let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let (asked, ask) = pipe.map_err(Error::io("open a pipe"))?;
    runtime.block_on(async {
        let receiving = blocking(move || receive_all(&dir, Input::new(asked)));
        tokio::pin!(receiving);
        tokio::select! {
            received = &mut receiving => received,
            signals = asked_to_end() => {
                signals?;
                drop(ask);
                // What had arrived is removed first.
                receiving.await
            }
        }
    })
}

fn receive_all(dir: &Path, input: Input) -> Result<()> {
    let opened = File::open(dir).map_err(Error::io(format!("open {}", dir.display())))?;
    let mut folder = Folder {
        snapshots: Snapshot::all_in(dir)?,
        path: dir,
        opened,
    };
    let mut input = BufReader::with_capacity(BUFFER, input);
    let mut streams = 0_u64;
    while !at_end(&mut input)? {
        folder.receive(&mut input)?;
        streams += 1;
    }
    if streams == 0 {
        let message = "there is no stream on standard input";
        return Err(Error::refused(Reason::StreamInvalid, message));
    }
    Ok(())
}

fn at_end(input: &mut impl BufRead) -> Result<bool> {
    let next = input.fill_buf();
    next.map(<[u8]>::is_empty)
        .map_err(Error::io("read standard input"))
}

/// Where the streams go.
struct Folder<'a> {
    path: &'a Path,
    opened: File,
    /// What a stream may build on.
    snapshots: Vec<Snapshot>,
}

impl Folder<'_> {
    /// Receives one stream.
    fn receive(&mut self, input: &mut impl Read) -> Result<()> {
        let (name, begun) = self.begin(&mut *input)?;
        let at = directory::entry(self.path, &name).display().to_string();
        if let Some(what) = directory::in_the_way(self.path, &name)? {
            let message = format!("{at} is there already, and is a {what}");
            return Err(Error::refused(Reason::Conflict, message));
        }
        let bases: Vec<_> = self
            .snapshots
            .iter()
            .map(|snapshot| Base {
                identity: snapshot.content,
                subvolume: &snapshot.subvolume,
            })
            .collect();
        // Not the stream's name: one that a killed process has left is in nobody's way.
        let partial = format!(".partial-{}", Uuid::new_v4());
        let stream = Cursor::new(begun).chain(input);
        let received = Receiver::new(self.opened.as_fd(), partial.as_bytes(), &bases)
            .run(stream, |_| ControlFlow::Continue(()))
            .map_err(Error::receive(&at))?;
        let (bytes, parent) = (received.bytes(), received.content().parent);
        let snapshot = received.finish(&name).map_err(Error::receive(&at))?;
        self.snapshots.extend(Snapshot::of(snapshot)?);
        let how = parent.map_or("in full", |_| "as an increment");
        let _ = writeln!(io::stderr(), "{at}: received {how}, {bytes} bytes");
        Ok(())
    }

    /// Reads a stream's first command, which names it; what was read belongs before the rest.
    fn begin(&self, input: impl Read) -> Result<(Vec<u8>, Vec<u8>)> {
        let failed = |error: StreamError| {
            let at = format!("into {}", self.path.display());
            Error::receive(at)(error.into())
        };
        let mut input = Recorded {
            input,
            bytes: Vec::new(),
        };
        let mut name = None;
        if let Some(mut stream) = Reader::begin(&mut input).map_err(failed)?
            && let Some(Command::Subvol { name: of, .. } | Command::Snapshot { name: of, .. }) =
                stream.next_command().map_err(failed)?
        {
            name = Some(of.as_bytes().to_vec());
        }
        let name = name.ok_or_else(|| {
            let message = "the stream does not begin with SUBVOL or SNAPSHOT";
            Error::refused(Reason::StreamInvalid, message)
        })?;
        Ok((name, input.bytes))
    }
}

/// What is read, and once more.
struct Recorded<R> {
    input: R,
    bytes: Vec<u8>,
}

impl<R: Read> Read for Recorded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.bytes
            .extend_from_slice(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// Standard input, which fails once the process is asked to end: a read that waits for more would
/// go on waiting.
struct Input {
    stdin: io::Stdin,
    /// Closed at its other end when the process is asked to end.
    asked: OwnedFd,
}

impl Input {
    fn new(asked: OwnedFd) -> Self {
        let stdin = io::stdin();
        // Best effort: it may be no pipe, and the administrator's limit may be lower.
        let _ = rustix::pipe::fcntl_setpipe_size(&stdin, BUFFER);
        Self { stdin, asked }
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut ready = [
            PollFd::new(&self.asked, PollFlags::IN),
            PollFd::new(&self.stdin, PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut ready, None))?;
        let [asked, _] = ready;
        if !asked.revents().is_empty() {
            return Err(io::Error::other("asked to end"));
        }
        Ok(rustix::io::read(&self.stdin, buffer)?)
    }
}
