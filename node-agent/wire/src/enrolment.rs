//! How an agent gets its certificate: the code generated from `enrolment.proto`.

#[allow(missing_docs, unreachable_pub, clippy::all)] // generated; documented in enrolment.proto
mod generated {
    tonic::include_proto!("icbd.enrolment.v1");
}
pub use generated::*;

/// Whom a token must be for: its audience.
pub const AUDIENCE: &str = "icbd-operator";
