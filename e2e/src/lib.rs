//! What the tests against a real cluster share: the cluster as its user sees it (kube, kubectl,
//! helm), the nodes with their pools, waiting, a scenario that cleans up after itself, and a stranger
//! in a pod. Knows the product only by its objects, its chart, what is on the disks and what goes over
//! the wire: no crate of operator or agent is reachable from here.
//!
//! The tests need a cluster that `hack/test` has started and installed the chart on; its name is
//! in `ICBD_E2E_CLUSTER`, or `test`.

mod awaited;
mod cluster;
mod command;
mod credentials;
mod evidence;
mod failure;
mod node;
mod product;
mod scenario;
mod status;
pub mod stranger;
mod wait;

pub use cluster::{Cluster, SYSTEM_NAMESPACE};
pub use command::{Output, run, run_with_input};
pub use credentials::{CA_SECRET, Installation, TRUST};
pub use failure::{Failure, Outcome};
pub use node::{Node, POOL, PoolWatcher};
pub use product::{Component, address_of, node_of, restarts};
pub use scenario::{Scenario, selecting};
pub use status::{Observed, bytes_sent, is_true, replica};
pub use wait::{Seen, within};
