//! The source's disk half: one pass over a snapshot, cut into blocks, sealed side by side, and handed
//! to every receiver that listens. Where the blocks go is not known here.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use icbd_btrfs::{Block, BlockBuffer, BlockError, Encoding, SendRequest, Subvolume};
use icbd_wire::control::Reason;
use icbd_wire::data::{BlockHash, Codec, CodecSet, Compressor, Data, Mode};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::auto::{Auto, Line, Passed};
use super::lines::{LastSeen, believed_of_all};
use crate::error::{Error, Result};
use crate::transfer::pipeline;

/// Sealed blocks that wait for one receiver's connection, at most; each has up to 1 MiB.
const AHEAD: usize = 4;

/// Buffers that are kept to be used again, at most.
const SPARE: usize = 8;

/// How extents that are compressed are sent in extents mode.
pub(super) const ENCODING: Encoding = Encoding::AsStored;

/// How long one receiver may keep the others waiting, and the share of the time it may do so beyond.
const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_SHARE: f64 = 0.05;

/// The snapshots of a transfer, open.
pub(crate) struct Opened {
    pub(crate) source: Subvolume,
    pub(crate) parent: Option<Subvolume>,
    /// For messages.
    pub(crate) at: String,
}

impl Opened {
    pub(super) fn request(&self) -> SendRequest<'_> {
        let (source, parent) = (&self.source, self.parent.as_ref());
        SendRequest {
            source,
            parent,
            clone_sources: &[],
        }
    }
}

/// A block ready for the wire.
pub(super) struct Sealed {
    /// In what it was to be compressed; `None` if nobody will send it.
    wanted: Option<Codec>,
    codec: Codec,
    raw_len: u32,
    hash: BlockHash,
    payload: BlockBuffer,
    spare: Arc<Spare>,
}

impl Drop for Sealed {
    fn drop(&mut self) {
        self.spare.give(std::mem::take(&mut self.payload));
    }
}

/// Buffers of blocks that are on their way, to be filled again.
#[derive(Default)]
struct Spare(Mutex<Vec<BlockBuffer>>);

impl Spare {
    fn take(&self) -> BlockBuffer {
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buffers.pop().unwrap_or_default()
    }

    fn give(&self, buffer: BlockBuffer) {
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < SPARE {
            buffers.push(buffer);
        }
    }
}

impl Sealed {
    pub(super) fn data(&self) -> Data<'_> {
        Data {
            codec: self.codec,
            raw_len: self.raw_len,
            hash: self.hash,
            payload: &self.payload,
        }
    }
}

/// What a receiver's connection gets to send.
#[derive(Clone)]
pub(super) enum Piece {
    Block(Arc<Sealed>),
    /// There are no more blocks.
    End,
    /// There are more, and they cannot be had.
    Failed(Arc<Error>),
}

/// What a pass yields, for one receiver. It ends without [`Piece::End`] for one that kept the others
/// waiting.
pub(super) struct Subscription {
    pub(super) pieces: mpsc::Receiver<Piece>,
    pass: Arc<Pass>,
}

impl Subscription {
    /// Bytes that the kernel has sent so far: what moves while no block can be made.
    pub(super) fn kernel_bytes(&self) -> u64 {
        self.pass.kernel_bytes.load(Ordering::Relaxed)
    }

    /// Says how much a receiver starves, in per cent of the time.
    pub(super) fn tell_starved(&self, percent: u32) {
        self.pass.starved.store(percent, Ordering::Relaxed);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.pass.listeners.fetch_sub(1, Ordering::Relaxed);
    }
}

/// In place of a share that no receiver has told.
pub(super) const UNKNOWN: u32 = u32::MAX;

/// What a pass and those who listen to it share.
struct Pass {
    listeners: AtomicUsize,
    kernel_bytes: AtomicU64,
    /// What a receiver last said of how much it starves.
    starved: AtomicU32,
}

impl Pass {
    fn new() -> Self {
        Self {
            listeners: AtomicUsize::new(0),
            kernel_bytes: AtomicU64::new(0),
            starved: AtomicU32::new(UNKNOWN),
        }
    }

    fn starved(&self) -> Option<u32> {
        Some(self.starved.load(Ordering::Relaxed)).filter(|percent| *percent != UNKNOWN)
    }
}

/// In what the blocks of a pass are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Agreed {
    Always(Codec),
    /// In whichever of these gets most through.
    Best(CodecSet),
}

impl Agreed {
    /// Of one codec that one is always the best, whatever the lines.
    fn chooser<'a>(self, lines: impl Iterator<Item = &'a LastSeen>) -> Auto {
        match self {
            Self::Always(codec) => Auto::always(codec),
            Self::Best(codecs) => Auto::new(codecs, believed_of_all(lines), AHEAD),
        }
    }
}

/// One pass over a snapshot, not begun.
pub(super) struct Feed {
    opened: Arc<Opened>,
    mode: Mode,
    codec: Agreed,
    pass: Arc<Pass>,
    subscribers: Vec<Subscriber>,
    /// Raw bytes that all who listen have already.
    had: u64,
}

struct Subscriber {
    pieces: mpsc::Sender<Piece>,
    line: LastSeen,
    /// How long the others have waited for this one.
    waited: Duration,
}

impl Feed {
    pub(super) fn new(opened: Arc<Opened>, mode: Mode, codec: Agreed) -> Self {
        Self {
            opened,
            mode,
            codec,
            pass: Arc::new(Pass::new()),
            subscribers: Vec::new(),
            had: u64::MAX,
        }
    }

    /// Makes one more receiver listen, at the end of this line, from the first block on, though it has
    /// so many raw bytes: of those it needs the hashes.
    pub(super) fn subscribe(&mut self, had: u64, line: LastSeen) -> Subscription {
        self.had = self.had.min(had);
        let (sender, pieces) = mpsc::channel(AHEAD);
        self.subscribers.push(Subscriber {
            pieces: sender,
            line,
            waited: Duration::ZERO,
        });
        self.pass.listeners.fetch_add(1, Ordering::Relaxed);
        Subscription {
            pieces,
            pass: Arc::clone(&self.pass),
        }
    }

    /// Makes the pass, until its end or until nobody listens. Blocks; within a runtime.
    pub(super) fn run(mut self) {
        let last = match self.seal_all() {
            Ok(()) => Piece::End,
            Err(error) => Piece::Failed(Arc::new(error)),
        };
        for subscriber in self.subscribers {
            // Whoever has gone knows why.
            let _ = subscriber.pieces.blocking_send(last.clone());
        }
    }

    fn seal_all(&mut self) -> Result<()> {
        let opened = Arc::clone(&self.opened);
        let pass = Arc::clone(&self.pass);
        let watch = move |bytes| {
            pass.kernel_bytes.store(bytes, Ordering::Relaxed);
            match pass.listeners.load(Ordering::Relaxed) {
                0 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        };
        let failed = |error| Error::blocks(&opened.at)(error);
        match self.mode {
            Mode::Stream => {
                let blocks = opened.request().blocks(watch).map_err(failed)?;
                self.seal(blocks, failed)
            }
            Mode::Extents => {
                let request = opened.request();
                let blocks = request.extents_as(ENCODING, watch).map_err(failed)?;
                self.seal(blocks, failed)
            }
        }
    }

    fn seal(
        &mut self,
        blocks: impl Iterator<Item = Result<Block, BlockError>> + Send,
        failed: impl Fn(BlockError) -> Error + Sync,
    ) -> Result<()> {
        let subscribers = &mut self.subscribers;
        let lines = subscribers.iter().map(|subscriber| &subscriber.line);
        let chooser = Mutex::new(self.codec.chooser(lines));
        let chooser = || chooser.lock().unwrap_or_else(PoisonError::into_inner);
        let (begun, runtime) = (Instant::now(), Handle::current());
        let (had, mut behind) = (self.had, 0);
        let blocks = blocks.map(move |block| {
            behind += block.as_ref().map_or(0, Block::len) as u64;
            (block, behind > had)
        });
        let (spare, pass) = (Arc::<Spare>::default(), Arc::clone(&self.pass));
        let mut end = Ok(());
        pipeline::in_order(
            blocks,
            || Sealer::new(&spare),
            |sealer, (block, is_wanted)| {
                let codec = is_wanted.then(|| chooser().codec());
                sealer.seal(codec, block.map_err(&failed)?, &failed)
            },
            |sealed| match sealed {
                Ok(sealed) => {
                    let (codec, data) = (sealed.wanted, sealed.data());
                    let (raw, wire) = (data.raw_len.into(), data.payload.len() as u64);
                    let piece = Piece::Block(Arc::new(sealed));
                    let ready = Instant::now();
                    let sent = broadcast(subscribers, &piece, begun, &runtime);
                    let now = Instant::now();
                    if let Some(codec) = codec {
                        let waited = now - ready;
                        let passed = Passed {
                            codec,
                            raw,
                            wire,
                            waited,
                            starved: pass.starved(),
                        };
                        if let Some(line) = chooser().passed(&passed, now) {
                            let lines = subscribers.iter().map(|subscriber| &subscriber.line);
                            lines.for_each(|it| it.is(line));
                        }
                    }
                    sent
                }
                Err(error) => {
                    end = Err(error);
                    ControlFlow::Break(())
                }
            },
        );
        end
    }
}

/// What a thread keeps from one block to the next.
struct Sealer {
    compressor: Compressor,
    spare: Arc<Spare>,
}

impl Sealer {
    fn new(spare: &Arc<Spare>) -> Self {
        Self {
            compressor: Compressor::new(),
            spare: Arc::clone(spare),
        }
    }

    fn seal(
        &mut self,
        wanted: Option<Codec>,
        block: Block,
        failed: impl Fn(BlockError) -> Error,
    ) -> Result<Sealed> {
        let mut raw = self.spare.take();
        block.fill(&mut raw).map_err(failed)?;
        let codec = wanted.unwrap_or(Codec::None);
        let data = self.compressor.seal(codec, &raw).map_err(|error| {
            Error::refused(Reason::IoError, format!("cannot seal a block: {error}"))
        })?;
        let Data {
            codec,
            raw_len,
            hash,
            payload,
        } = data;
        let payload = match codec {
            // What does not get smaller stays where it was read.
            Codec::None => raw,
            _ => {
                let mut sealed = self.spare.take();
                sealed.copy(payload);
                self.spare.give(raw);
                sealed
            }
        };
        Ok(Sealed {
            wanted,
            codec,
            raw_len,
            hash,
            payload,
            spare: Arc::clone(&self.spare),
        })
    }
}

/// Hands a piece to all who listen. Whoever is not ready for it is waited for, and left behind when
/// that takes too long while others wait too.
fn broadcast(
    subscribers: &mut Vec<Subscriber>,
    piece: &Piece,
    begun: Instant,
    runtime: &Handle,
) -> ControlFlow<()> {
    let together = subscribers.len() > 1;
    subscribers.retain_mut(|subscriber| {
        match subscriber.pieces.try_send(piece.clone()) {
            Ok(()) => return true,
            Err(mpsc::error::TrySendError::Closed(_)) => return false,
            Err(mpsc::error::TrySendError::Full(_)) if !together => {
                return subscriber.pieces.blocking_send(piece.clone()).is_ok();
            }
            Err(mpsc::error::TrySendError::Full(_)) => {}
        }
        let patience = PATIENCE + begun.elapsed().mul_f64(PATIENCE_SHARE);
        let left = patience.saturating_sub(subscriber.waited);
        let waiting = Instant::now();
        let sent = runtime.block_on(subscriber.pieces.send_timeout(piece.clone(), left));
        subscriber.waited += waiting.elapsed();
        if sent.is_err() {
            subscriber.line.is(Line::Unknown);
        }
        sent.is_ok()
    });
    match subscribers.is_empty() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}
