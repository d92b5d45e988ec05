//! Which frame may come when, for each side of a transfer; both keep the chain while they are at it.
//! Time limits are the caller's: nothing here knows how long ago the last frame came.

use super::{
    Ack, Chain, Codec, CodecSet, Data, End, Frame, FrameKind, Mismatch, Position, Welcome,
};

/// Why a frame, good in itself, must not come here and now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// A frame of this kind never comes from that side.
    #[error("{0:?} frame from the wrong side")]
    WrongSide(FrameKind),
    /// The frame came although its sender had said that nothing of the kind would follow.
    #[error("{kind:?} frame after {after:?}")]
    After {
        /// What came.
        kind: FrameKind,
        /// What had come before.
        after: FrameKind,
    },
    /// The receiver reported completion before all data were sent.
    #[error("Done frame before End, at raw byte {at}")]
    DoneBeforeEnd {
        /// How many raw bytes had been sent.
        at: u64,
    },
    /// A block's codec is not one of those agreed on.
    #[error("block at raw byte {at} in codec {codec}, which was not agreed on")]
    Codec {
        /// Where the block begins.
        at: u64,
        /// Its codec.
        codec: Codec,
    },
    /// The receiver acknowledged bytes that were never sent, or took back an acknowledgement.
    #[error("{got:?} after {last:?} with {sent} raw bytes sent")]
    Ack {
        /// What it acknowledges.
        got: Ack,
        /// What it had acknowledged before.
        last: Ack,
        /// How many raw bytes had been sent.
        sent: u64,
    },
    /// The two ends do not have the same bytes.
    #[error("the source ends elsewhere")]
    End(#[from] Mismatch),
}

/// The blocks of a transfer, as both sides see them go by.
#[derive(Clone, Debug)]
struct Blocks {
    codecs: CodecSet,
    chain: Chain,
    ended: bool,
}

impl Blocks {
    fn from(welcome: &Welcome) -> Self {
        let Welcome {
            version: _,
            mode: _,
            codecs,
            resume,
        } = *welcome;
        Self {
            codecs,
            chain: Chain::at(resume),
            ended: false,
        }
    }

    fn next(&mut self, data: &Data<'_>) -> Result<(), OrderError> {
        let at = self.chain.position().raw;
        if self.ended {
            return Err(OrderError::After {
                kind: FrameKind::Data,
                after: FrameKind::End,
            });
        }
        if !self.codecs.contains(data.codec) {
            return Err(OrderError::Codec {
                at,
                codec: data.codec,
            });
        }
        self.chain.fold(data.hash, data.raw_len);
        Ok(())
    }
}

/// The source's side: pass every block before it is sent, and every frame that comes back.
#[derive(Clone, Debug)]
pub struct Sending {
    blocks: Blocks,
    acked: Ack,
    closed: Option<FrameKind>,
}

impl Sending {
    /// A transfer that begins at the resume position of the receiver's welcome, after
    /// [`Hello::check`](super::Hello::check), and after the source has compared its own chain.
    pub fn new(welcome: &Welcome) -> Self {
        let resume = welcome.resume.raw;
        let acked = Ack {
            received: resume,
            durable: resume,
        };
        Self {
            blocks: Blocks::from(welcome),
            acked,
            closed: None,
        }
    }

    /// Counts a block in that is about to be sent.
    ///
    /// # Errors
    /// If the receiver would refuse it.
    pub fn block(&mut self, data: &Data<'_>) -> Result<(), OrderError> {
        self.blocks.next(data)
    }

    /// The End frame to send after the last block.
    pub fn end(&mut self) -> End {
        self.blocks.ended = true;
        End {
            position: self.position(),
        }
    }

    /// Takes a frame from the receiver.
    ///
    /// # Errors
    /// If it must not come here and now; the transfer is then over.
    pub fn admit(&mut self, frame: &Frame<'_>) -> Result<(), OrderError> {
        let kind = frame.kind();
        if let Some(after) = self.closed {
            return Err(OrderError::After { kind, after });
        }
        match frame {
            Frame::Data(_) | Frame::End(_) => return Err(OrderError::WrongSide(kind)),
            Frame::Heartbeat(_) => {}
            Frame::Ack(got) => {
                let (got, last, sent) = (*got, self.acked, self.position().raw);
                let grows = got.received >= last.received && got.durable >= last.durable;
                if !grows || got.received > sent || got.durable > got.received {
                    return Err(OrderError::Ack { got, last, sent });
                }
                self.acked = got;
            }
            Frame::Done(_) if !self.blocks.ended => {
                return Err(OrderError::DoneBeforeEnd {
                    at: self.position().raw,
                });
            }
            Frame::Done(_) | Frame::Abort(_) => self.closed = Some(kind),
        }
        Ok(())
    }

    /// How far the source has sent, skipped bytes included.
    pub fn position(&self) -> Position {
        self.blocks.chain.position()
    }

    /// The receiver's last acknowledgement.
    pub fn acked(&self) -> Ack {
        self.acked
    }
}

/// The receiver's side: pass every frame that comes.
#[derive(Clone, Debug)]
pub struct Receiving {
    blocks: Blocks,
    aborted: bool,
}

impl Receiving {
    /// A transfer that begins at the resume position of one's own welcome.
    pub fn new(welcome: &Welcome) -> Self {
        Self {
            blocks: Blocks::from(welcome),
            aborted: false,
        }
    }

    /// Takes a frame from the source. The chain goes by the hashes that blocks claim: whoever opens
    /// a block ([`Decompressor::open`](super::Decompressor::open)) finds out whether it is true.
    ///
    /// # Errors
    /// If it must not come here and now, or an End differs from what was received; the transfer
    /// is then over.
    pub fn admit(&mut self, frame: &Frame<'_>) -> Result<(), OrderError> {
        let kind = frame.kind();
        if self.aborted {
            return Err(OrderError::After {
                kind,
                after: FrameKind::Abort,
            });
        }
        match frame {
            Frame::Data(data) => self.blocks.next(data)?,
            Frame::Heartbeat(_) => {}
            Frame::End(_) if self.blocks.ended => {
                return Err(OrderError::After {
                    kind,
                    after: FrameKind::End,
                });
            }
            Frame::End(end) => {
                self.position().compare(&end.position)?;
                self.blocks.ended = true;
            }
            Frame::Abort(_) => self.aborted = true,
            Frame::Ack(_) | Frame::Done(_) => return Err(OrderError::WrongSide(kind)),
        }
        Ok(())
    }

    /// How far the receiver has got, and the chain hash to keep with a checkpoint there.
    pub fn position(&self) -> Position {
        self.blocks.chain.position()
    }

    /// Whether all blocks are there and the chain is the source's.
    pub fn is_complete(&self) -> bool {
        self.blocks.ended && !self.aborted
    }
}
