//! Somebody in the cluster who should get nowhere: what it can try, and what comes of it. The test
//! says it to the program `icbd-stranger`, which runs in a pod without rights ([`Stranger`]) and
//! speaks the product's protocols without any of its manners.

mod appearance;
mod attempt;
mod flood;
mod pod;
mod table;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use pod::Stranger;
pub use table::Table;

/// One thing to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Task {
    /// Try to get something.
    Attempt(Box<Attempt>),
    /// Get in everybody's way.
    Flood(Flood),
}

/// What came of a task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Report {
    /// Of an attempt.
    Attempt(Answer),
    /// Of a flood, by address.
    Flood(Vec<Flooded>),
}

/// Trying to get something.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attempt {
    /// Where.
    pub at: SocketAddr,
    /// Looking like whom.
    pub appearing: Appearance,
    /// What.
    pub asking: Request,
}

/// What the other end sees of the stranger.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Appearance {
    /// Nothing: there is no TLS.
    Plaintext,
    /// Nothing: there is TLS, and no certificate.
    Nobody,
    /// This certificate.
    Certificate(Shown),
}

/// A certificate with its key, PEM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Shown {
    /// The certificate.
    pub chain: String,
    /// Its private key.
    pub key: String,
}

/// What is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Of an agent: what it is. Granted: the installation of its pool.
    Describe,
    /// Of an agent: the ids of the transfers to it that have ended well, a line each.
    Received(Fence),
    /// Of an agent: to expect a transfer.
    Expect(Fence, Expected),
    /// Of the operator: a certificate. Granted: the certificate.
    Enrol {
        /// What proves who asks.
        token: String,
        /// For the agent of this node.
        node: String,
        /// The key to be certified.
        public_key: Vec<u8>,
    },
    /// Of an agent: to take data.
    Send(Sent),
}

/// Whom an agent obeys: see `agent.proto`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fence {
    /// Of this installation.
    pub installation: String,
    /// When the Lease was made, Unix seconds.
    pub lease_created: i64,
    /// How often it has changed hands.
    pub lease_transitions: u64,
}

/// A transfer that is announced.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Expected {
    /// What is to come.
    pub what: Sent,
    /// The uid of its namespace.
    pub namespace_uid: String,
    /// The node that it is to come from.
    pub from: String,
}

/// What a source says that it sends: a full transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// The transfer's id, a UUID.
    pub transfer: String,
    /// The image's namespace.
    pub namespace: String,
    /// The image.
    pub image: String,
    /// The snapshot's number.
    pub number: u64,
    /// What is in it, a UUID.
    pub content: String,
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub enum Answer {
    /// There is nobody: nothing is shown by that.
    Unreachable(String),
    /// No, and what the stranger learnt.
    Refused(String),
    /// Yes, with this.
    Granted(String),
}

/// Connections that want nothing but to be there, all at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Flood {
    /// Where: each of these gets all that follow.
    pub at: Vec<SocketAddr>,
    /// So many begin a handshake and do not go on.
    pub half_open: usize,
    /// So many send what is no protocol.
    pub garbage: usize,
    /// So long they stay, once they are there, unless they are sent away.
    pub seconds: u64,
}

/// What became of a flood.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Flooded {
    /// Where.
    pub at: SocketAddr,
    /// So many connections came about.
    pub connected: usize,
    /// So many of them were ended by the other end, and not by the stranger.
    pub sent_away: usize,
}

/// Does it.
pub async fn carry_out(task: Task) -> Report {
    match task {
        Task::Attempt(attempt) => Report::Attempt(attempt.make().await),
        Task::Flood(flood) => Report::Flood(flood.run().await),
    }
}
