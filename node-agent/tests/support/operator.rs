//! The operator's side: calls with a fence, and everything heard on the watch stream, kept as state
//! that a test can wait on.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use icbd_wire::control::agent_event::Event;
use icbd_wire::control::*;
use tokio::sync::watch;
use tonic::Status;

use super::{Client, IMAGE, NAMESPACE_UID, Node, SOON};

/// What the agent has said.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub synced: bool,
    pub trusted: Vec<String>,
    pub pool: PoolStatus,
    pub images: BTreeMap<String, ImageInventory>,
    pub transfers: BTreeMap<(String, Role), Transfer>,
}

impl Seen {
    /// The snapshots that the image of the tests has.
    pub fn numbers(&self) -> Vec<u64> {
        let image = self.images.get(IMAGE);
        image
            .map(|image| image.snapshots.iter().map(|found| found.number).collect())
            .unwrap_or_default()
    }

    fn hear(&mut self, event: Event) {
        let name = |image: &ImageRef| format!("{}/{}", image.namespace, image.image);
        match event {
            Event::Described(described) => self.pool = described.pool.unwrap(),
            Event::Pool(pool) => self.pool = pool,
            Event::Image(image) => {
                self.images
                    .insert(name(image.image.as_ref().unwrap()), image);
            }
            Event::ImageGone(image) => {
                self.images
                    .remove(&name(&image))
                    .expect("only what was there can go");
            }
            Event::Transfer(transfer) => {
                self.transfers
                    .insert((transfer.id.clone(), transfer.role()), transfer);
            }
            Event::Synced(Synced {}) => self.synced = true,
            Event::Trusted(trusted) => self.trusted = trusted.fingerprints,
        }
    }
}

/// An operator that talks to one agent.
pub struct Operator {
    /// The node whose agent it is.
    pub node: &'static str,
    pub client: Client,
    pub fence: Fence,
    seen: watch::Receiver<Seen>,
}

impl Operator {
    /// Watches, and waits until it knows what the agent knows.
    pub async fn watching(node: &'static str, mut client: Client, installation: &str) -> Self {
        let fence = Fence {
            installation: installation.into(),
            lease_created: 1000,
            lease_transitions: 1,
        };
        let request = WatchRequest {
            fence: Some(fence.clone()),
        };
        let mut events = client.watch(request).await.unwrap().into_inner();
        let (known, seen) = watch::channel(Seen::default());
        tokio::spawn(async move {
            while let Ok(Some(event)) = events.message().await {
                known.send_modify(|known| known.hear(event.event.unwrap()));
            }
        });
        let operator = Self {
            node,
            client,
            fence,
            seen,
        };
        operator.wait("sync", |seen| seen.synced).await;
        // The agent looks at its pool when a watcher comes.
        operator
            .wait("pool", |seen| seen.pool.state() != PoolState::Unspecified)
            .await;
        operator
    }

    /// What the agent has said until now.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// What a transfer's end here says of it, each time that it says something else, until it is over.
    pub async fn story(&self, transfer: &str, role: Role) -> Vec<Transfer> {
        let key = (transfer.to_owned(), role);
        let mut seen = self.seen.clone();
        let mut story: Vec<Transfer> = Vec::new();
        loop {
            let now = seen.borrow_and_update().transfers.get(&key).cloned();
            if now.as_ref() != story.last() {
                story.extend(now);
            }
            if story.last().is_some_and(|last| last.ended_at != 0) {
                return story;
            }
            match tokio::time::timeout(SOON, seen.changed()).await {
                Ok(Ok(())) => {}
                other => panic!("{other:?} after {story:?}"),
            }
        }
    }

    /// Waits until what the agent says fulfils this.
    pub async fn wait(&self, what: &str, done: impl Fn(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.clone();
        let waited = tokio::time::timeout(SOON, seen.wait_for(|seen| done(seen))).await;
        match waited {
            Ok(Ok(seen)) => seen.clone(),
            Ok(Err(_)) => panic!("waiting for {what}: the agent hung up: {:?}", self.seen()),
            Err(_) => panic!("waiting for {what}: {:?}", self.seen()),
        }
    }

    pub async fn wait_pool(&self, state: PoolState) -> PoolStatus {
        self.wait(state.as_str_name(), |seen| seen.pool.state() == state)
            .await
            .pool
    }

    /// Initialises the pool that is mounted.
    pub async fn init_pool(&self) {
        self.wait_pool(PoolState::NotInitialised).await;
        self.init(|_| {}).await.unwrap();
        self.wait_pool(PoolState::Ready).await;
    }

    /// Asks to initialise the pool that is mounted.
    pub async fn init(
        &self,
        change: impl FnOnce(&mut InitPoolRequest),
    ) -> Result<PoolStatus, Status> {
        let pool = self.seen().pool;
        let mut request = InitPoolRequest {
            fence: Some(self.fence.clone()),
            fsid: pool.fsid,
            subvolume_uuid: pool.subvolume_uuid,
            ..InitPoolRequest::default()
        };
        change(&mut request);
        Ok(self.client.clone().init_pool(request).await?.into_inner())
    }

    pub fn take_request(&self, name: &str) -> TakeSnapshotRequest {
        TakeSnapshotRequest {
            fence: Some(self.fence.clone()),
            image: Some(image()),
            owner: Some(owner()),
            name: name.into(),
            object_uid: format!("uid-of-{name}"),
            origin: Origin::User.into(),
            ..TakeSnapshotRequest::default()
        }
    }

    pub async fn call_take(&self, request: TakeSnapshotRequest) -> Result<SnapshotInfo, Status> {
        let taken = self.client.clone().take_snapshot(request).await?;
        Ok(taken.into_inner().snapshot.unwrap())
    }

    /// Has a snapshot taken.
    pub async fn take(&self, name: &str) -> SnapshotInfo {
        self.call_take(self.take_request(name)).await.unwrap()
    }

    pub async fn delete(&self, number: u64, identity: &str) -> Result<bool, Status> {
        let request = DeleteSnapshotRequest {
            fence: Some(self.fence.clone()),
            image: Some(image()),
            owner: Some(owner()),
            number,
            identity: identity.into(),
            name: "deleted".into(),
        };
        Ok(self
            .client
            .clone()
            .delete_snapshot(request)
            .await?
            .into_inner()
            .existed)
    }

    pub async fn delete_image(&self) -> Result<Vec<u64>, Status> {
        let request = DeleteImageRequest {
            fence: Some(self.fence.clone()),
            image: Some(image()),
            owner: Some(owner()),
        };
        Ok(self
            .client
            .clone()
            .delete_image(request)
            .await?
            .into_inner()
            .deleted)
    }

    pub async fn cancel(&self, transfer: &str) -> bool {
        let request = CancelRequest {
            fence: Some(self.fence.clone()),
            transfer: transfer.into(),
        };
        self.client
            .clone()
            .cancel(request)
            .await
            .unwrap()
            .into_inner()
            .existed
    }

    pub fn expect_request(&self, plan: &Plan) -> ExpectRequest {
        ExpectRequest {
            fence: Some(self.fence.clone()),
            image: Some(image()),
            owner: Some(owner()),
            transfer: plan.transfer.clone(),
            number: plan.snapshot.number,
            identity: plan.snapshot.identity.clone(),
            parent_identity: plan
                .parent
                .as_ref()
                .map(|it| it.identity.clone())
                .unwrap_or_default(),
            record: plan.snapshot.record.clone(),
            bytes: 0,
            min_free: 0,
            source_node: "source".into(),
        }
    }

    pub async fn expect(&self, request: ExpectRequest) -> Result<expect_response::Answer, Status> {
        Ok(self
            .client
            .clone()
            .expect(request)
            .await?
            .into_inner()
            .answer
            .unwrap())
    }

    pub fn send_request(&self, plan: &Plan, to: SocketAddr) -> SendRequest {
        let parent = plan.parent.clone().unwrap_or_default();
        SendRequest {
            fence: Some(self.fence.clone()),
            image: Some(image()),
            owner: Some(owner()),
            transfer: plan.transfer.clone(),
            number: plan.snapshot.number,
            identity: plan.snapshot.identity.clone(),
            parent_number: parent.number,
            parent_identity: parent.identity,
            receiver: Some(Receiver {
                node: "receiver".into(),
                address: to.ip().to_string(),
                port: to.port().into(),
            }),
            codec: plan.codec.into(),
            limit: plan.limit.clone(),
        }
    }

    pub async fn send(&self, request: SendRequest) -> Result<(), Status> {
        self.client.clone().send(request).await.map(drop)
    }

    /// Waits until a transfer has ended.
    pub async fn ended(&self, transfer: &str, role: Role) -> Transfer {
        let key = (transfer.to_owned(), role);
        let ended = |seen: &Seen| seen.transfers.get(&key).is_some_and(|it| it.ended_at != 0);
        self.wait("the end of a transfer", ended).await.transfers[&key].clone()
    }

    /// Waits until a transfer has moved so many bytes of the stream.
    pub async fn moved(&self, transfer: &str, role: Role, bytes: u64) -> Transfer {
        let key = (transfer.to_owned(), role);
        let moved = |seen: &Seen| {
            seen.transfers
                .get(&key)
                .is_some_and(|it| it.bytes_done >= bytes)
        };
        self.wait("bytes to move", moved).await.transfers[&key].clone()
    }
}

/// One transfer, as a test wants it.
#[derive(Clone)]
pub struct Plan {
    pub transfer: String,
    pub snapshot: SnapshotInfo,
    pub parent: Option<SnapshotInfo>,
    pub codec: Codec,
    pub limit: Option<Limit>,
}

impl Plan {
    pub fn full(snapshot: &SnapshotInfo) -> Self {
        Self {
            transfer: uuid::Uuid::new_v4().to_string(),
            snapshot: snapshot.clone(),
            parent: None,
            codec: Codec::Auto,
            limit: None,
        }
    }

    pub fn increment(snapshot: &SnapshotInfo, parent: &SnapshotInfo) -> Self {
        Self {
            parent: Some(parent.clone()),
            ..Self::full(snapshot)
        }
    }

    pub fn limited(self, bytes_per_second: u64) -> Self {
        let limit = Some(Limit {
            target: "edge".into(),
            bytes_per_second,
        });
        Self { limit, ..self }
    }

    /// The same once more, as another attempt.
    pub fn again(&self) -> Self {
        Self {
            transfer: uuid::Uuid::new_v4().to_string(),
            ..self.clone()
        }
    }
}

/// Announces and starts a transfer.
pub async fn start(plan: &Plan, source: &Operator, receiver: &Operator, node: &Node) {
    let announced = ExpectRequest {
        source_node: source.node.into(),
        ..receiver.expect_request(plan)
    };
    let answer = receiver.expect(announced).await.unwrap();
    assert!(
        matches!(answer, expect_response::Answer::Accepted(_)),
        "{answer:?}"
    );
    let mut request = source.send_request(plan, node.data());
    request.receiver.as_mut().unwrap().node = node.name.into();
    source.send(request).await.unwrap();
}

/// Runs a transfer to its end at both sides.
pub async fn transfer(
    plan: &Plan,
    source: &Operator,
    receiver: &Operator,
    node: &Node,
) -> (Transfer, Transfer) {
    start(plan, source, receiver, node).await;
    let sent = source.ended(&plan.transfer, Role::Source).await;
    let received = receiver.ended(&plan.transfer, Role::Receiver).await;
    (sent, received)
}

/// Asserts that a transfer ended well.
pub fn succeeded(transfer: &Transfer) {
    assert_eq!(
        transfer.state(),
        TransferState::Succeeded,
        "{}",
        transfer.message
    );
}

/// Asserts that a transfer ended for this reason.
pub fn failed(transfer: &Transfer, reason: Reason) {
    assert_eq!(transfer.state(), TransferState::Failed);
    assert_eq!(transfer.reason(), reason, "{}", transfer.message);
}

/// Asserts that a call was refused for this reason.
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, reason: Reason) -> String {
    let status = result.expect_err("this call is to be refused");
    assert_eq!(reason_of(&status), Some(reason), "{status}");
    status.message().to_owned()
}

pub fn image() -> ImageRef {
    let (namespace, image) = IMAGE.split_once('/').unwrap();
    ImageRef {
        namespace: namespace.into(),
        image: image.into(),
    }
}

pub fn owner() -> Owner {
    Owner {
        namespace_uid: NAMESPACE_UID.into(),
        adopt_from: String::new(),
    }
}
