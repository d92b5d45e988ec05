//! Images in the pool: names to directories, what is recorded of each, and the few things that are
//! done to them. No path comes from outside: a validated name becomes one directory entry.

pub(crate) mod arrival;
pub(crate) mod checkpoint;
mod delete;
pub(crate) mod expectation;
pub(crate) mod inventory;
mod meta;
mod service;
mod take;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use icbd_wire::control::{ImageRef, Owner, Reason};
use icbd_wire::data::{ImageName, LabelError, Namespace};
use uuid::Uuid;

use crate::durable;
use crate::error::{Error, Result};
use crate::pool::OpenPool;

pub(crate) use icbd_btrfs::SnapshotNumber;

pub(crate) use delete::{delete_all, delete_snapshot};
pub(crate) use expectation::Expectation;
pub(crate) use meta::{Arrival, Meta, Records, SnapshotRecord};
pub(crate) use service::Images;
pub(crate) use take::take;

/// Which image: its directory is `<pool>/<namespace>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ImageId {
    pub(crate) namespace: Namespace,
    pub(crate) name: ImageName,
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl From<&ImageId> for ImageRef {
    fn from(id: &ImageId) -> Self {
        Self {
            namespace: id.namespace.to_string(),
            image: id.name.to_string(),
        }
    }
}

impl TryFrom<Option<&ImageRef>> for ImageId {
    type Error = Error;

    fn try_from(image: Option<&ImageRef>) -> Result<Self> {
        let refused = |message| Error::refused(Reason::InvalidArgument, message);
        let invalid = |what| {
            move |error: LabelError| {
                Error::refused(Reason::InvalidArgument, format!("{what}: {error}"))
            }
        };
        let image = image.ok_or_else(|| refused("the call names no image"))?;
        Ok(Self {
            namespace: image.namespace.parse().map_err(invalid("namespace"))?,
            name: image.image.parse().map_err(invalid("image"))?,
        })
    }
}

/// A number from a call, which must be one.
pub(crate) fn number(number: u64) -> Result<SnapshotNumber> {
    SnapshotNumber::new(number)
        .ok_or_else(|| Error::refused(Reason::InvalidArgument, "snapshot numbers start at 1"))
}

/// A uuid from a call; `what` says whose.
pub(crate) fn uuid(what: &str, text: &str) -> Result<Uuid> {
    Uuid::parse_str(text)
        .ok()
        .filter(|uuid| !uuid.is_nil())
        .ok_or_else(|| {
            Error::refused(
                Reason::InvalidArgument,
                format!("{what} {text:?} is not a UUID"),
            )
        })
}

/// An image's directory, open for one operation.
pub(crate) struct ImageDir {
    dir: OwnedFd,
    id: ImageId,
}

impl AsFd for ImageDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl ImageDir {
    /// Opens the directory; `None` if there is none.
    pub(crate) fn open(pool: &OpenPool, id: &ImageId) -> Result<Option<Self>> {
        let Some(namespace) = durable::open_dir(pool, id.namespace.as_str())? else {
            return Ok(None);
        };
        let dir = durable::open_dir(namespace, id.name.as_str())?;
        Ok(dir.map(|dir| Self {
            dir,
            id: id.clone(),
        }))
    }

    /// Opens the directory, and makes it if there is none.
    pub(crate) fn make(pool: &OpenPool, id: &ImageId) -> Result<Self> {
        let namespace = durable::make_dir(pool, id.namespace.as_str(), 0o755)?;
        let dir = durable::make_dir(namespace, id.name.as_str(), 0o755)?;
        Ok(Self {
            dir,
            id: id.clone(),
        })
    }

    pub(crate) fn id(&self) -> &ImageId {
        &self.id
    }

    /// Where an entry is, for messages: a path below the pool.
    pub(crate) fn at(&self, entry: impl fmt::Display) -> String {
        format!("{}/{entry}", self.id)
    }
}

/// Makes the directory its owner's, or refuses: a namespace made anew does not inherit the data of
/// the one before it, unless it says so.
pub(crate) fn claim(dir: &ImageDir, meta: &Meta, owner: Option<&Owner>) -> Result<()> {
    let owner = owner
        .filter(|owner| !owner.namespace_uid.is_empty())
        .ok_or_else(|| Error::refused(Reason::InvalidArgument, "the call names no owner"))?;
    let mut record = meta.image()?;
    match record.namespace_uid.as_deref() {
        Some(recorded) if recorded == owner.namespace_uid => return Ok(()),
        Some(recorded) if recorded != owner.adopt_from => {
            let message = format!(
                "the data of {} belongs to the namespace with uid {recorded}, not to the one with uid {}",
                dir.id, owner.namespace_uid,
            );
            return Err(Error::refused(Reason::NamespaceChanged, message));
        }
        _ => {}
    }
    record.namespace_uid = Some(owner.namespace_uid.clone());
    meta.set_image(&record)
}
