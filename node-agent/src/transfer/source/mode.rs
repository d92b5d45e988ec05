//! How a snapshot is offered to its receivers: what was asked for, as far as the kernel can do it.

use std::os::fd::AsFd;

use icbd_wire::data::Mode;

use super::probe::extents_work;

/// Who reads the data of a snapshot that is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ModeChoice {
    /// This process, in parallel, where the kernel can say where the data is; else the kernel.
    Extents,
    /// The kernel, into its own send stream.
    Stream,
}

impl ModeChoice {
    /// The mode to offer for a snapshot on the file system of `dir`, a directory that may be
    /// written to.
    pub(crate) fn offered(self, dir: impl AsFd) -> Mode {
        match self {
            Self::Extents if extents_work(dir) => Mode::Extents,
            Self::Extents | Self::Stream => Mode::Stream,
        }
    }
}
