//! The operator's calls: each is checked, handed to who does it, and answered. No rule of images,
//! transfers or pools lives here.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use icbd_net::{Identity, Name, Refusal, Role, TlsStream, grpc, tls};
use icbd_wire::control::agent_server::Agent;
use icbd_wire::control::*;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::error::{Error, Result as AgentResult, blocking};
use crate::image::{
    self, ImageDir, ImageId, Images, Meta, claim, delete_all, delete_snapshot, take,
};
use crate::pool::Pool;
use crate::transfer::{Transfers, now};
use crate::watch::Facts;

pub(crate) struct Control {
    pub(crate) pool: Arc<Pool>,
    pub(crate) images: Images,
    pub(crate) transfers: Transfers,
    pub(crate) facts: Facts,
    /// Makes the supervisor look at the pool at once.
    pub(crate) look: Arc<Notify>,
    pub(crate) closing: CancellationToken,
}

/// Lets the operator in, and nobody else.
pub(crate) async fn greet(
    stream: TcpStream,
    identity: Identity,
) -> Result<(TlsStream, Option<Name>), Refusal> {
    let (stream, name) = tls::accept(stream, &identity.current(), grpc::PROTOCOL).await?;
    match name.role() {
        Role::Operator => Ok((stream, Some(name))),
        Role::Agent(_) => {
            let why = format!("{name} is not the operator");
            Err(Refusal::new("NotTheOperator", why))
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Agent for Control {
    async fn describe(&self, _: Request<DescribeRequest>) -> Answer<DescribeResponse> {
        Ok(Response::new(self.facts.described()))
    }

    async fn init_pool(&self, request: Request<InitPoolRequest>) -> Answer<PoolStatus> {
        let (pool, request) = (Arc::clone(&self.pool), request.into_inner());
        let status = blocking(move || {
            if let Some(fence) = &request.fence {
                pool.serve(&fence.installation);
            }
            pool.init(&request)?;
            Ok(pool.status())
        })
        .await?;
        self.look.notify_one();
        Ok(Response::new(status))
    }

    async fn inventory(&self, request: Request<InventoryRequest>) -> Answer<InventoryResponse> {
        let images = match request.into_inner().image {
            None => {
                self.images.rescan().await;
                self.facts
                    .images()
                    .into_iter()
                    .map(|(_, inventory)| inventory)
                    .collect()
            }
            Some(image) => {
                let id = ImageId::try_from(Some(&image))?;
                self.images.proceed(&id, |_| Ok(())).await?;
                self.facts.image(&id).into_iter().collect()
            }
        };
        Ok(Response::new(InventoryResponse { images }))
    }

    async fn take_snapshot(
        &self,
        request: Request<TakeSnapshotRequest>,
    ) -> Answer<TakeSnapshotResponse> {
        let mut request = request.into_inner();
        let id = ImageId::try_from(request.image.as_ref())?;
        let (image, path) = (id.clone(), self.pool.path().to_owned());
        let taken = self.images.change(request.fence.take(), &id, move |pool| {
            let found = ImageDir::open(pool, &image)?.ok_or_else(|| {
                let path = path.join(image.to_string());
                let message = format!("there is no directory {} on this node", path.display());
                Error::refused(Reason::ImageNotFound, message)
            })?;
            let meta = Meta::make(&found)?;
            claim(&found, &meta, request.owner.as_ref())?;
            take(&found, &meta, &request, now())
        });
        let snapshot = Some(taken.await?);
        Ok(Response::new(TakeSnapshotResponse { snapshot }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Answer<DeleteSnapshotResponse> {
        let DeleteSnapshotRequest {
            fence,
            image,
            owner,
            number,
            identity,
            name,
        } = request.into_inner();
        let id = ImageId::try_from(image.as_ref())?;
        let number = image::number(number)?;
        let identity = match identity.as_str() {
            "" => None,
            identity => Some(image::uuid("identity", identity)?),
        };
        self.admitted(&fence).await?;
        self.transfers.release(&id, number).await?;
        let deleted = self.change_existing(fence, id, owner, move |image, meta| {
            delete_snapshot(image, meta, number, identity, &name)
        });
        let existed = deleted.await?.unwrap_or(false);
        Ok(Response::new(DeleteSnapshotResponse { existed }))
    }

    async fn delete_image(
        &self,
        request: Request<DeleteImageRequest>,
    ) -> Answer<DeleteImageResponse> {
        let DeleteImageRequest {
            fence,
            image,
            owner,
        } = request.into_inner();
        let id = ImageId::try_from(image.as_ref())?;
        self.admitted(&fence).await?;
        self.transfers.release_all(&id).await;
        let deleted = self
            .change_existing(fence, id, owner, delete_all)
            .await?
            .unwrap_or_default();
        let deleted = deleted.into_iter().map(|number| number.get()).collect();
        Ok(Response::new(DeleteImageResponse { deleted }))
    }

    async fn expect(&self, request: Request<ExpectRequest>) -> Answer<ExpectResponse> {
        let answer = Some(self.transfers.expect(request.into_inner()).await?);
        Ok(Response::new(ExpectResponse { answer }))
    }

    async fn send(&self, request: Request<SendRequest>) -> Answer<SendResponse> {
        self.transfers.send(request.into_inner()).await?;
        Ok(Response::new(SendResponse {}))
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Answer<CancelResponse> {
        let CancelRequest { fence, transfer } = request.into_inner();
        let id = image::uuid("transfer", &transfer)?;
        self.admitted(&fence).await?;
        Ok(Response::new(CancelResponse {
            existed: self.transfers.cancel(id).await,
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<AgentEvent, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        let fence = request.into_inner().fence.unwrap_or_default();
        if fence.installation.is_empty() {
            let message = "a watcher says whose operator it is, by its fence";
            return Err(Error::refused(Reason::InvalidArgument, message).into());
        }
        self.pool.serve(&fence.installation);
        self.look.notify_one();
        let closing = self.closing.clone();
        let events = futures::stream::unfold(self.facts.watch(), move |mut watcher| {
            let closing = closing.clone();
            async move {
                tokio::select! {
                    () = closing.cancelled() => None,
                    events = watcher.next() => {
                        let events = events.into_iter().map(Ok);
                        Some((futures::stream::iter(events), watcher))
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(futures::StreamExt::flatten(events))))
    }
}

impl Control {
    /// Refuses a call that the fence keeps out, before it ends any transfer.
    async fn admitted(&self, fence: &Option<Fence>) -> AgentResult<()> {
        let (pool, fence) = (Arc::clone(&self.pool), fence.clone());
        blocking(move || pool.admit(fence.as_ref()).map(drop)).await
    }

    /// Changes an image that exists; `None` if there is no directory of it.
    async fn change_existing<T: Send + 'static>(
        &self,
        fence: Option<Fence>,
        id: ImageId,
        owner: Option<Owner>,
        work: impl FnOnce(&ImageDir, &Meta) -> AgentResult<T> + Send + 'static,
    ) -> AgentResult<Option<T>> {
        let image = id.clone();
        self.images
            .change(fence, &id, move |pool| {
                let Some(image) = ImageDir::open(pool, &image)? else {
                    return Ok(None);
                };
                let meta = Meta::make(&image)?;
                claim(&image, &meta, owner.as_ref())?;
                work(&image, &meta).map(Some)
            })
            .await
    }
}
