//! Names that users, GitOps repositories and other programs rely on: group, finalizer,
//! annotations, labels, ports.

/// The API group of the three kinds.
pub const GROUP: &str = "replication.icbd.io";
/// The version that this program reads and writes.
pub const VERSION: &str = "v1alpha1";

/// Set on objects whose deletion also deletes data.
pub const FINALIZER: &str = "replication.icbd.io/data";
/// On a Snapshot with deletionPolicy Delete: consent to remove the last complete copy of it. The
/// value is the image's name.
pub const CONFIRM_DELETE: &str = "replication.icbd.io/confirm-delete";
/// On a Namespace: the uid of the former namespace of this name, whose image data it takes over.
pub const ADOPT_FROM: &str = "replication.icbd.io/adopt-from";
/// On a Node: `"true"` allows a pool that is not empty to be initialised.
pub const INIT_POOL: &str = "replication.icbd.io/init-pool";
/// On a Node: the id of the installation that the node's pool may be taken over from.
pub const TAKE_OVER_POOL: &str = "replication.icbd.io/take-over-pool";
/// On Snapshots that the operator created: `Adopted` or `Schedule`.
pub const ORIGIN_LABEL: &str = "replication.icbd.io/origin";
/// On Snapshots that the operator created: the image's name.
pub const IMAGE_LABEL: &str = "replication.icbd.io/image";

/// Longest name of a VMImage, so that names made from it fit everywhere.
pub const MAX_IMAGE_NAME: usize = 50;

/// Agents serve the operator here.
pub const CONTROL_PORT: u16 = 7440;
/// Agents receive data from other agents here.
pub const DATA_PORT: u16 = 7441;
/// Agents get their certificates from the operator here.
pub const ENROLMENT_PORT: u16 = 7442;
/// Operator and agents serve health and metrics here.
pub const HEALTH_PORT: u16 = 9440;
