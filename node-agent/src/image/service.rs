//! Images as the rest of the agent uses them: one operation at a time on each, off the async
//! threads, on a pool that is opened for it; and the inventory kept in step with the disk.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use icbd_btrfs::Subvolume;
use icbd_wire::control::{Fence, ImageInventory};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Expectation, ImageDir, ImageId, Meta, SnapshotNumber, arrival, expectation, inventory,
};
use crate::error::{Result, blocking};
use crate::pool::{OpenPool, Pool, PoolId};
use crate::watch::Facts;

/// How often the disk is looked at for what was done by hand.
const RESCAN: Duration = Duration::from_secs(5);

/// How often it is looked for checkpoints that nothing has gone on from for days.
const EXPIRE: Duration = Duration::from_secs(3600);

type ImageLock = Arc<tokio::sync::Mutex<()>>;

/// The images of this agent's pool; cheap to share.
#[derive(Clone)]
pub(crate) struct Images {
    pool: Arc<Pool>,
    facts: Facts,
    locks: Arc<Mutex<HashMap<ImageId, ImageLock>>>,
    /// Referenced bytes of snapshots by their uuid: counting takes a walk through the tree.
    bytes: Arc<Mutex<HashMap<Uuid, u64>>>,
    uncounted: Arc<Notify>,
    /// The pool that was cleaned up after an agent that may have ended in mid-transfer.
    settled: Arc<watch::Sender<Option<PoolId>>>,
}

impl Images {
    pub(crate) fn new(pool: Arc<Pool>, facts: Facts) -> Self {
        Self {
            pool,
            facts,
            locks: Arc::default(),
            bytes: Arc::default(),
            uncounted: Arc::default(),
            settled: Arc::new(watch::Sender::new(None)),
        }
    }

    /// Does a changing call's work on one image, alone, once the fence has been passed.
    pub(crate) async fn change<T: Send + 'static>(
        &self,
        fence: Option<Fence>,
        id: &ImageId,
        work: impl FnOnce(&OpenPool) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.alone(id, move |pool| pool.admit(fence.as_ref()), work)
            .await
    }

    /// Does work of the agent's own on one image, alone.
    pub(crate) async fn proceed<T: Send + 'static>(
        &self,
        id: &ImageId,
        work: impl FnOnce(&OpenPool) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.alone(id, Pool::open, work).await
    }

    async fn alone<T: Send + 'static>(
        &self,
        id: &ImageId,
        open: impl FnOnce(&Pool) -> Result<OpenPool> + Send + 'static,
        work: impl FnOnce(&OpenPool) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let alone = self.lock(id).lock_owned().await;
        let (images, id) = (self.clone(), id.clone());
        blocking(move || {
            let _alone = alone;
            let pool = open(&images.pool)?;
            let done = work(&pool);
            // What failed halfway has changed the disk as well.
            match images.inventory(&pool, &id) {
                Ok(inventory) => images.facts.set_image(&id, inventory),
                Err(error) => tracing::warn!(image = %id, %error, "cannot read the image"),
            }
            done
        })
        .await
    }

    /// Keeps others from working on an image, for who works on it already on a thread of its own.
    pub(crate) fn alone_blocking(&self, id: &ImageId) -> tokio::sync::OwnedMutexGuard<()> {
        self.lock(id).blocking_lock_owned()
    }

    fn lock(&self, id: &ImageId) -> ImageLock {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(id.clone()).or_default())
    }

    fn inventory(&self, pool: &OpenPool, id: &ImageId) -> Result<Option<ImageInventory>> {
        let Some(image) = ImageDir::open(pool, id)? else {
            return Ok(None);
        };
        let mut inventory = inventory::scan(&image)?;
        let counted = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        for snapshot in inventory
            .snapshots
            .iter_mut()
            .filter(|snapshot| snapshot.bytes.is_none())
        {
            let known = snapshot
                .uuid
                .parse()
                .ok()
                .and_then(|uuid: Uuid| counted.get(&uuid));
            match known {
                Some(bytes) => snapshot.bytes = Some(*bytes),
                None => self.uncounted.notify_one(),
            }
        }
        Ok(Some(inventory))
    }

    /// Looks at all images afresh, each under its lock, so that no older sight of one replaces a
    /// newer. What cannot be read stays as it is known; the next look may succeed.
    pub(crate) async fn rescan(&self) {
        let found = match self.found().await {
            Ok((_, found)) => found,
            Err(error) => {
                tracing::debug!(%error, "cannot look at the images");
                return;
            }
        };
        let known = self.facts.images().into_iter().map(|(id, _)| id);
        for id in found.into_iter().chain(known).collect::<BTreeSet<_>>() {
            if let Err(error) = self.look(&id).await {
                tracing::warn!(image = %id, %error, "cannot read the image");
            }
        }
        self.forget_counts_of_what_is_gone();
    }

    /// Which pool there is, and what images are in it.
    async fn found(&self) -> Result<(PoolId, Vec<ImageId>)> {
        let pool = Arc::clone(&self.pool);
        blocking(move || {
            let pool = pool.open()?;
            Ok((pool.id, inventory::images(&pool)?))
        })
        .await
    }

    /// Looks at one image, unless somebody works on it, who will tell of it in the end.
    async fn look(&self, id: &ImageId) -> Result<()> {
        let Ok(alone) = self.lock(id).try_lock_owned() else {
            return Ok(());
        };
        let (images, id) = (self.clone(), id.clone());
        blocking(move || {
            let _alone = alone;
            let pool = images.pool.open()?;
            let inventory = images.inventory(&pool, &id)?;
            images.facts.set_image(&id, inventory);
            Ok(())
        })
        .await
    }

    /// Without a pool there are no images.
    pub(crate) fn forget(&self) {
        self.facts.set_images(BTreeMap::new());
    }

    fn forget_counts_of_what_is_gone(&self) {
        let images = self.facts.images();
        let snapshots = images
            .iter()
            .flat_map(|(_, inventory)| &inventory.snapshots);
        let there: HashSet<Uuid> = snapshots
            .filter_map(|snapshot| snapshot.uuid.parse().ok())
            .collect();
        let mut counted = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        counted.retain(|uuid, _| there.contains(uuid));
    }

    /// Settles what an agent that ended in mid-transfer has left in each image: a snapshot that had
    /// become whole gets its record, anything less is removed. Of what was announced and may still
    /// come, no later than `longest` from `now`, `await_again` is told, which says whether it is.
    pub(crate) async fn settle<F>(&self, now: i64, longest: Duration, await_again: F) -> Result<()>
    where
        F: Fn(&ImageId, SnapshotNumber, Expectation) -> bool + Clone + Send + 'static,
    {
        let (settling, found) = self.found().await?;
        for id in found {
            let (image, await_again) = (id.clone(), await_again.clone());
            let settled = self
                .proceed(&id, move |pool| {
                    let Some(dir) = ImageDir::open(pool, &image)? else {
                        return Ok(());
                    };
                    arrival::settle(&dir)?;
                    expectation::restore(&dir, now, longest, |number, expected| {
                        await_again(&image, number, expected)
                    })
                })
                .await;
            if let Err(error) = settled {
                tracing::error!(image = %id, %error, "cannot clean up after an earlier transfer");
            }
        }
        self.settled.send_replace(Some(settling));
        Ok(())
    }

    /// The pool has gone: when it is back, it is to be settled again.
    pub(crate) fn unsettle(&self) {
        self.settled.send_replace(None);
    }

    /// Whether snapshots may arrive in a pool: before it is settled, they would be taken for what
    /// an earlier transfer left.
    pub(crate) fn is_settled(&self, pool: &OpenPool) -> bool {
        self.settled() == Some(pool.id)
    }

    /// Waits until there is a pool that is settled; whether there is, after this long.
    pub(crate) async fn settled_within(&self, limit: Duration) -> bool {
        let mut settled = self.settled.subscribe();
        let there = settled.wait_for(Option::is_some);
        tokio::time::timeout(limit, there).await.is_ok()
    }

    fn settled(&self) -> Option<PoolId> {
        *self.settled.borrow()
    }

    /// Removes the checkpoints that nothing has gone on from for long.
    async fn expire<F>(&self, is_awaited: &F)
    where
        F: Fn(&ImageId, SnapshotNumber) -> bool + Clone + Send + 'static,
    {
        let found = match self.found().await {
            Ok((_, found)) => found,
            Err(error) => {
                tracing::warn!(%error, "cannot look for old checkpoints");
                return;
            }
        };
        for id in found {
            let (images, image, is_awaited) = (self.clone(), id.clone(), is_awaited.clone());
            let expired = self.proceed(&id, move |pool| {
                if !images.is_settled(pool) {
                    return Ok(());
                }
                let Some(dir) = ImageDir::open(pool, &image)? else {
                    return Ok(());
                };
                let Some(meta) = Meta::open(&dir)? else {
                    return Ok(());
                };
                let is_awaited = |number| is_awaited(&image, number);
                arrival::expire(&dir, &meta, SystemTime::now(), is_awaited)
            });
            if let Err(error) = expired.await {
                tracing::warn!(image = %id, %error, "cannot clear the image of old checkpoints");
            }
        }
    }

    /// Keeps the inventory in step with the disk, and the disk free of checkpoints that are of no
    /// use any more, until `closing`. `is_awaited` tells of the snapshots that are to arrive.
    pub(crate) async fn keep<F>(self, is_awaited: F, closing: CancellationToken)
    where
        F: Fn(&ImageId, SnapshotNumber) -> bool + Clone + Send + Sync + 'static,
    {
        let (mut tick, mut expire) = (tokio::time::interval(RESCAN), tokio::time::interval(EXPIRE));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        expire.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut counting = tokio::task::JoinSet::new();
        counting.spawn(self.clone().count(closing.clone()));
        loop {
            tokio::select! {
                () = closing.cancelled() => return,
                _ = tick.tick() => self.rescan().await,
                // The first time as soon as there is a pool.
                _ = expire.tick(), if self.settled().is_some() => self.expire(&is_awaited).await,
            }
        }
    }

    /// Counts the referenced bytes of snapshots that nobody has counted yet.
    async fn count(self, closing: CancellationToken) {
        loop {
            tokio::select! {
                () = closing.cancelled() => return,
                () = self.uncounted.notified() => {}
            }
            for (id, number, uuid) in self.uncounted() {
                if closing.is_cancelled() {
                    return;
                }
                if let Err(error) = self.count_one(&id, number, uuid).await {
                    tracing::debug!(image = %id, %number, %error, "cannot count a snapshot's bytes");
                }
            }
        }
    }

    fn uncounted(&self) -> Vec<(ImageId, SnapshotNumber, Uuid)> {
        let counted = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut uncounted = Vec::new();
        for (id, inventory) in self.facts.images() {
            for snapshot in inventory
                .snapshots
                .iter()
                .filter(|snapshot| snapshot.bytes.is_none())
            {
                let (number, uuid) = (SnapshotNumber::new(snapshot.number), snapshot.uuid.parse());
                if let (Some(number), Ok(uuid)) = (number, uuid)
                    && !counted.contains_key(&uuid)
                {
                    uncounted.push((id.clone(), number, uuid));
                }
            }
        }
        uncounted
    }

    async fn count_one(&self, id: &ImageId, number: SnapshotNumber, uuid: Uuid) -> Result<()> {
        // Without the image's lock, for it may take long: a read-only snapshot stays what it is.
        let (pool, image) = (Arc::clone(&self.pool), id.clone());
        let bytes = blocking(move || {
            let Some(image) = ImageDir::open(&pool.open()?, &image)? else {
                return Ok(None);
            };
            let at = image.at(number);
            Subvolume::open(&image, number.to_string())
                .and_then(|snapshot| icbd_btrfs::referenced_bytes(&snapshot))
                .map(Some)
                .map_err(crate::error::Error::btrfs(at))
        })
        .await?;
        let Some(bytes) = bytes else { return Ok(()) };
        self.bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(uuid, bytes);
        let image = id.clone();
        self.proceed(id, move |pool| {
            let Some(image) = ImageDir::open(pool, &image)? else {
                return Ok(());
            };
            let Some(meta) = Meta::open(&image)? else {
                return Ok(());
            };
            let found = inventory::snapshot(&image, number)?.map(|found| found.identity);
            match meta.snapshots.get(number)? {
                Some(mut record) if record.identity.is_some() && record.identity == found => {
                    record.bytes = Some(bytes);
                    meta.snapshots.put(number, &record)
                }
                _ => Ok(()),
            }
        })
        .await
    }
}
