//! Whether compressed extents stay as they are. How they are read is the business of `blocks`, how they are
//! written that of `receive`.

/// What becomes of extents that are compressed on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// They are decompressed: sent as plain data, and written as such, for the receiving file system to
    /// compress or not.
    #[default]
    Plain,
    /// They are sent compressed, and written so, where both can be: they take on the replica what they
    /// take on the source, whether or not that file system compresses by itself.
    AsStored,
}
