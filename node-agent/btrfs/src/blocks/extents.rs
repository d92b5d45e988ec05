//! Extents mode: the kernel's commands, with data and holes in place of what it announces.

use std::iter::FusedIterator;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::cut::Cutter;
use super::files::{Snapshots, SourceFile};
use super::kernel::Kernel;
use super::map::{Content, Map};
use super::overlay::{Node, Overlay};
use super::stored::Stored;
use super::{Block, BlockError};
use crate::encoding::Encoding;
use crate::measure::content;
use crate::send::{FileData, SendRequest};
use crate::stream::{Command, MAX_BLOCK, TreePath};

/// The most data of one WRITE; none goes beyond a multiple of it in its file.
const MAX_DATA: u64 = 1 << 20;

/// Bytes that are asked of the kernel at a time.
const READ: usize = 64 << 10;

/// A stream in blocks whose data is read when they are filled. It ends after the first error.
#[derive(Debug)]
pub struct ExtentBlocks<W> {
    kernel: Kernel<W>,
    /// What was read of the kernel's stream.
    bytes: Vec<u8>,
    /// How much of it was taken.
    taken: usize,
    pass: Pass,
    ended: bool,
    failed: bool,
}

impl<W: FnMut(u64) -> ControlFlow<()>> ExtentBlocks<W> {
    pub(super) fn start(
        request: &SendRequest<'_>,
        encoding: Encoding,
        watch: W,
    ) -> Result<Self, BlockError> {
        let snapshots = Snapshots::hold(request)?;
        let stream = request.start_with(FileData::Omitted)?;
        Ok(Self {
            kernel: Kernel::new(stream, watch),
            bytes: Vec::new(),
            taken: 0,
            pass: Pass::new(snapshots, encoding),
            ended: false,
            failed: false,
        })
    }

    /// Goes to the end without filling a block. `see` is told, after each command of the kernel, how
    /// many bytes the blocks have so far, and how many of file content the commands in them stand for.
    pub(crate) fn measure(mut self, mut see: impl FnMut(u64, u64)) -> Result<(), BlockError> {
        let mut whole = 0;
        while !self.ended {
            self.advance()?;
            while let Some(block) = self.pass.blocks.next_block() {
                whole += block.len() as u64;
            }
            see(whole + self.pass.blocks.begun() as u64, self.pass.content);
        }
        Ok(())
    }

    /// Takes the next command of the kernel.
    fn advance(&mut self) -> Result<(), BlockError> {
        self.read_command()?;
        let bytes = upcoming(&self.bytes, self.taken);
        let mut rest = bytes;
        match self.kernel.command(&mut rest)? {
            Some(command) => {
                let length = bytes.len() - rest.len();
                self.pass.command(&command, &bytes[..length])?;
                self.taken += length;
            }
            None => {
                self.pass.end()?;
                self.ended = true;
            }
        }
        Ok(())
    }

    /// Reads until there is a whole command, or no more to come.
    fn read_command(&mut self) -> Result<(), BlockError> {
        loop {
            let bytes = upcoming(&self.bytes, self.taken);
            if self.kernel.is_command(bytes) || bytes.len() == MAX_BLOCK {
                return Ok(());
            }
            self.bytes.drain(..self.taken);
            self.taken = 0;
            let end = self.bytes.len();
            self.bytes.resize(end + READ, 0);
            let count = self.kernel.read(&mut self.bytes[end..])?;
            self.bytes.truncate(end + count);
            if count == 0 {
                return Ok(());
            }
        }
    }
}

/// What the next command can be in: it has to fit into a block.
fn upcoming(bytes: &[u8], taken: usize) -> &[u8] {
    let bytes = &bytes[taken..];
    &bytes[..bytes.len().min(MAX_BLOCK)]
}

impl<W: FnMut(u64) -> ControlFlow<()>> Iterator for ExtentBlocks<W> {
    type Item = Result<Block, BlockError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            if let Some(block) = self.pass.blocks.next_block() {
                return Some(Ok(block));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.advance() {
                self.failed = true;
                return Some(Err(error));
            }
        }
        None
    }
}

impl<W: FnMut(u64) -> ControlFlow<()>> FusedIterator for ExtentBlocks<W> {}

/// What becomes of the kernel's commands.
#[derive(Debug)]
struct Pass {
    snapshots: Arc<Snapshots>,
    encoding: Encoding,
    overlay: Overlay,
    /// The file whose data was announced last.
    file: Option<Announced>,
    /// What was announced last, as far as no command stands for it yet. Kernels announce extent by
    /// extent, and compressed ones are small.
    pending: Option<(Arc<SourceFile>, Content, Range<u64>)>,
    /// Bytes of file content that the commands so far stand for.
    content: u64,
    blocks: Cutter,
}

/// A file whose data the kernel announces, range by range.
#[derive(Debug)]
struct Announced {
    file: Arc<SourceFile>,
    /// `None` for new files: there the kernel announces nothing but data. Of a file that the parent
    /// has it announces allocated space too, and, before it learned to punch them, holes.
    map: Option<Map>,
    /// `None` if all is sent plain.
    stored: Option<Stored>,
}

impl Pass {
    fn new(snapshots: Snapshots, encoding: Encoding) -> Self {
        Self {
            overlay: Overlay::new(snapshots.has_parent()),
            snapshots: Arc::new(snapshots),
            encoding,
            file: None,
            pending: None,
            content: 0,
            blocks: Cutter::default(),
        }
    }

    fn command(&mut self, command: &Command<'_>, bytes: &[u8]) -> Result<(), BlockError> {
        self.content = self.content.saturating_add(content(command));
        if let Command::UpdateExtent {
            path,
            offset,
            length,
        } = *command
        {
            return self.announced(path, offset..offset + length);
        }
        self.settle();
        // All others may make the path another file's, or end the file.
        if !matches!(command, Command::Clone { .. } | Command::Fallocate { .. }) {
            self.file = None;
        }
        let snapshots = &self.snapshots;
        self.overlay
            .apply(command, |path| snapshots.is_directory_in_parent(path))?;
        self.blocks.command(bytes);
        Ok(())
    }

    /// The kernel says that the file at `path` has something else in `range` than the parent.
    fn announced(&mut self, path: TreePath<'_>, mut range: Range<u64>) -> Result<(), BlockError> {
        let mut announced = match self.file.take() {
            Some(last) if last.file.path() == path.as_bytes() => last,
            _ => self.find(path)?,
        };
        while !range.is_empty() {
            let (content, end) = match &mut announced.map {
                Some(map) => map
                    .first(&range)
                    .map_err(BlockError::file("find the holes of", announced.file.path()))?,
                None => (Content::Data, range.end),
            };
            match content {
                Content::Hole => self.extend(&announced.file, content, range.start..end),
                Content::Data => self.data(&mut announced, range.start..end)?,
            }
            range.start = end;
        }
        self.file = Some(announced);
        Ok(())
    }

    /// Adds data, what is to be sent as it is stored one by one.
    fn data(&mut self, announced: &mut Announced, mut range: Range<u64>) -> Result<(), BlockError> {
        let Announced { file, stored, .. } = announced;
        while !range.is_empty() {
            let (extent, end) = match stored {
                Some(stored) => stored.first(file, &range)?,
                None => (None, range.end),
            };
            match extent {
                Some(extent) => {
                    self.settle();
                    self.blocks.stored(file, extent);
                }
                None => self.extend(file, Content::Data, range.start..end),
            }
            range.start = end;
        }
        Ok(())
    }

    fn find(&self, path: TreePath<'_>) -> Result<Announced, BlockError> {
        let unknown = || BlockError::unknown(path.as_bytes());
        let (inode, is_old) = match self.overlay.find(path)? {
            Node::File(inode) => (inode, false),
            Node::Old(path) => (self.snapshots.inode_in_parent(&path)?, true),
            Node::Directory(_) => return Err(unknown()),
        };
        let file = SourceFile::new(&self.snapshots, inode, path.as_bytes());
        Ok(Announced {
            map: is_old.then(|| Map::of(&file)).transpose()?,
            stored: (self.encoding == Encoding::AsStored).then(Stored::default),
            file: Arc::new(file),
        })
    }

    /// Adds to what is pending, if it goes on there. Data does not wait for more than a WRITE takes,
    /// for the kernel may be long in telling what comes next.
    fn extend(&mut self, file: &Arc<SourceFile>, content: Content, range: Range<u64>) {
        let mut pending = match self.pending.take() {
            Some((of, what, before))
                if Arc::ptr_eq(&of, file) && what == content && before.end == range.start =>
            {
                before.start..range.end
            }
            other => {
                self.pending = other;
                self.settle();
                range
            }
        };
        if content == Content::Data {
            let mut end = (pending.start / MAX_DATA + 1) * MAX_DATA;
            while end <= pending.end {
                self.blocks.data(file, pending.start..end);
                pending.start = end;
                end += MAX_DATA;
            }
        }
        self.pending = Some((file.clone(), content, pending));
    }

    /// Makes commands of what is pending.
    fn settle(&mut self) {
        match self.pending.take() {
            Some((file, Content::Hole, range)) => self.blocks.hole(&file, &range),
            Some((file, Content::Data, range)) if !range.is_empty() => {
                self.blocks.data(&file, range);
            }
            _ => {}
        }
    }

    /// The kernel has sent everything.
    fn end(&mut self) -> Result<(), BlockError> {
        self.blocks.end();
        self.snapshots.check_unchanged()
    }
}
