//! What operator and agents say to each other, as values: `control` is the operator's view of an
//! agent (gRPC), `enrolment` how an agent gets its certificate (gRPC), `data` the protocol between
//! two agents. This crate opens no socket and knows
//! nothing of btrfs or Kubernetes; operator and agent meet here and nowhere else.

pub mod control;
pub mod data;
pub mod enrolment;
