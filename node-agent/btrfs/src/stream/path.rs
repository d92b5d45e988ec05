//! Paths as a stream may name them: relative, below the subvolume, in plain components. Whether
//! something is there, and of which kind, only the file system can say.

use std::fmt;

use thiserror::Error;

/// The longest path that the kernel takes, its closing NUL not counted (`PATH_MAX`).
const MAX_PATH: usize = 4095;

/// The longest name that btrfs takes (`BTRFS_NAME_LEN`).
const MAX_NAME: usize = 255;

/// A path below the received subvolume; empty means the subvolume's root directory.
///
/// It holds no NUL, does not begin or end with a slash, has no empty component and none that is
/// `.` or `..`, and no component and no whole longer than the file system takes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TreePath<'a>(&'a [u8]);

/// A [`TreePath`] that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TreePathBuf(Vec<u8>);

impl TreePathBuf {
    pub(crate) fn as_path(&self) -> TreePath<'_> {
        TreePath(&self.0)
    }
}

impl From<TreePath<'_>> for TreePathBuf {
    fn from(path: TreePath<'_>) -> Self {
        Self(path.0.to_vec())
    }
}

/// Why bytes are not a [`TreePath`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // The messages say it.
pub enum NameError {
    #[error("it is {0} bytes long; {MAX_PATH} is the most")]
    TooLong(usize),
    #[error("one of its names is {0} bytes long; {MAX_NAME} is the most")]
    NameTooLong(usize),
    #[error("it contains a NUL")]
    Nul,
    #[error("it is absolute")]
    Absolute,
    #[error("one of its names is empty")]
    EmptyName,
    #[error("one of its names is `.` or `..`")]
    Dots,
    #[error("it is not a single name")]
    NotSingle,
}

impl<'a> TreePath<'a> {
    /// The subvolume's root directory.
    pub const ROOT: TreePath<'static> = TreePath(&[]);

    /// Checks `bytes`.
    ///
    /// # Errors
    /// Says which of the rules above they break.
    pub fn new(bytes: &'a [u8]) -> Result<TreePath<'a>, NameError> {
        if bytes.is_empty() {
            return Ok(TreePath(bytes));
        }
        if bytes.len() > MAX_PATH {
            return Err(NameError::TooLong(bytes.len()));
        }
        if bytes[0] == b'/' {
            return Err(NameError::Absolute);
        }
        bytes.split(|&b| b == b'/').try_for_each(check_name)?;
        Ok(TreePath(bytes))
    }

    /// Checks `bytes` as one name, as that of a subvolume has to be.
    ///
    /// # Errors
    /// Says which rule they break.
    pub fn single(bytes: &'a [u8]) -> Result<TreePath<'a>, NameError> {
        match TreePath::new(bytes)? {
            path if path.is_root() => Err(NameError::EmptyName),
            path if path.0.contains(&b'/') => Err(NameError::NotSingle),
            path => Ok(path),
        }
    }

    /// Its bytes.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Whether it is the subvolume's root directory.
    pub fn is_root(self) -> bool {
        self.0.is_empty()
    }

    /// The directory it stands in, and its name there; nothing for the root directory.
    pub fn split(self) -> Option<(TreePath<'a>, &'a [u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => (TreePath(&self.0[..slash]), &self.0[slash + 1..]),
            None => (TreePath::ROOT, self.0),
        })
    }
}

fn check_name(name: &[u8]) -> Result<(), NameError> {
    match name {
        b"" => Err(NameError::EmptyName),
        b"." | b".." => Err(NameError::Dots),
        _ if name.len() > MAX_NAME => Err(NameError::NameTooLong(name.len())),
        _ if name.contains(&0) => Err(NameError::Nul),
        _ => Ok(()),
    }
}

impl fmt::Display for TreePath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for TreePath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_relative_paths_are_taken() {
        for path in ["", "a", "a/b", "...", "..a/.b", "o257-7-0", "a b\\c"] {
            assert!(TreePath::new(path.as_bytes()).is_ok(), "{path}");
        }
        assert!(TreePath::new(b"caf\xe9/\xff").is_ok());
        assert!(TreePath::new(&[b'x'; 255]).is_ok());
    }

    #[test]
    fn whatever_could_lead_elsewhere_is_refused() {
        for (path, error) in [
            (&b"/a"[..], NameError::Absolute),
            (b"/", NameError::Absolute),
            (b"a/", NameError::EmptyName),
            (b"a//b", NameError::EmptyName),
            (b".", NameError::Dots),
            (b"..", NameError::Dots),
            (b"a/../b", NameError::Dots),
            (b"a/..", NameError::Dots),
            (b"a\0b", NameError::Nul),
            (&[b'x'; 256], NameError::NameTooLong(256)),
            (&[b'x'; 4096], NameError::TooLong(4096)),
        ] {
            assert_eq!(TreePath::new(path), Err(error), "{}", path.escape_ascii());
        }
    }

    #[test]
    fn a_subvolume_name_is_one_name() {
        assert!(TreePath::single(b"17").is_ok());
        assert_eq!(TreePath::single(b""), Err(NameError::EmptyName));
        assert_eq!(TreePath::single(b"a/b"), Err(NameError::NotSingle));
    }

    #[test]
    fn a_path_splits_at_its_last_slash() {
        let split = |path: &'static str| {
            TreePath::new(path.as_bytes())
                .unwrap()
                .split()
                .map(|(d, n)| (d.as_bytes(), n))
        };
        assert_eq!(split(""), None);
        assert_eq!(split("a"), Some((&b""[..], &b"a"[..])));
        assert_eq!(split("a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
    }
}
