//! What the tests against a real cluster share: the cluster as its user sees it (kube, kubectl,
//! helm), the nodes with their pools, waiting, and a scenario that cleans up after itself. Knows
//! the product only by its objects, its chart and what is on the disks: no crate of operator or
//! agent is reachable from here.
//!
//! The tests need a cluster that `hack/test` has started and installed the chart on; its name is
//! in `ICBD_E2E_CLUSTER`, or `test`.

mod awaited;
mod cluster;
mod command;
mod evidence;
mod failure;
mod node;
mod product;
mod scenario;
mod status;
mod wait;

pub use cluster::{Cluster, SYSTEM_NAMESPACE};
pub use command::{Output, run, run_with_input};
pub use failure::{Failure, Outcome};
pub use node::{Node, POOL, PoolWatcher};
pub use product::Component;
pub use scenario::{Scenario, selecting};
pub use status::{Observed, bytes_sent, is_true, replica};
pub use wait::{Seen, within};
