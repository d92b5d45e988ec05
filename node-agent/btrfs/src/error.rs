//! What can go wrong in this crate's work on subvolumes: which operation, on what, with the kernel's error number.
//! The stream parser and the receiver have errors of their own.

use rustix::io::Errno;

/// A failed operation. `Display` is a whole sentence, fit for a condition's message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a call.
    #[error("cannot {doing} {what}: {errno}")]
    System {
        /// The operation, as a verb.
        doing: &'static str,
        /// What it was done to.
        what: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A name that can not be one entry of a directory: empty, `.`, `..`, longer than 255 bytes, or
    /// with a slash or NUL in it.
    #[error("\"{name}\" cannot be the name of a directory entry")]
    InvalidName {
        /// The name, escaped.
        name: String,
    },
    /// Something of that name is there already; nothing was overwritten.
    #[error("\"{name}\" exists already")]
    Exists {
        /// The name, escaped.
        name: String,
    },
    /// Not on btrfs.
    #[error("\"{name}\" is not on btrfs")]
    NotBtrfs {
        /// What was looked at.
        name: String,
    },
    /// On btrfs, but not the root of a subvolume.
    #[error("\"{name}\" is not a btrfs subvolume")]
    NotSubvolume {
        /// What was looked at.
        name: String,
    },
    /// Another mount stands at that name, or a snapshot was asked for across file systems.
    #[error("\"{name}\" is on another file system")]
    OtherFileSystem {
        /// What was looked at.
        name: String,
    },
    /// A subvolume that has others in it; the kernel deletes only those that have none.
    #[error("\"{name}\" has subvolumes of its own; delete these first")]
    HasSubvolumes {
        /// The subvolume.
        name: String,
    },
    /// Only a read-only subvolume can be sent.
    #[error("\"{name}\" is writable; only read-only subvolumes can be sent")]
    Writable {
        /// The subvolume.
        name: String,
    },
}

impl Error {
    pub(crate) fn system(doing: &'static str, what: &[u8]) -> impl FnOnce(Errno) -> Self {
        let what = format!("\"{}\"", what.escape_ascii());
        move |errno| Self::System { doing, what, errno }
    }

    /// The kernel's error number, where the kernel is who refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::System { errno, .. } => Some(*errno),
            Self::Exists { .. } => Some(Errno::EXIST),
            Self::HasSubvolumes { .. } => Some(Errno::NOTEMPTY),
            Self::OtherFileSystem { .. } => Some(Errno::XDEV),
            Self::InvalidName { .. }
            | Self::NotBtrfs { .. }
            | Self::NotSubvolume { .. }
            | Self::Writable { .. } => None,
        }
    }
}
