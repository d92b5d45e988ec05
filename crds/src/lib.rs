//! The three kinds.
