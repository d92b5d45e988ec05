//! Streams made to do harm, by the thousand: each class of harm with every command that can carry it,
//! and the place where they are let loose. What is tried by hand, one story each, is not here.
// A test fails by panicking, and so do the functions that it is made of. Each test binary uses its
// own part of this.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic
)]

mod attributes;
mod case;
mod commands;
mod device;
mod framing;
mod mutation;
mod order;
mod paths;
mod sources;
mod target;
mod values;

pub use case::Case;
pub use commands::path;
pub use mutation::Mutation;
pub use target::{Route, SELF, Target};

/// All cases there are, class by class.
pub fn cases(target: &Target) -> Vec<Case> {
    [
        paths::cases(target),
        attributes::cases(target),
        values::cases(target),
        sources::cases(target),
        order::cases(target),
        framing::cases(target),
    ]
    .concat()
}
