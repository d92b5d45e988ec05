//! Calls to agents. Each may be repeated; changing ones carry the epoch. A refusal comes back as
//! the word and sentence that a condition shows.

use std::future::Future;
use std::time::Duration;

use icbd_crds::Reason;
use icbd_planner::pool::InitPool;
use icbd_planner::replication::{Extraneous, Start};
use icbd_planner::{Ended, ImageKey, NodeName, Refusal, SnapshotNumber};
use icbd_wire::control as pb;
use icbd_wire::control::expect_response::Answer;
use tonic::{Response, Status};

use super::{Agents, convert, transfers};

/// Taking a snapshot and deleting an image commit a file system transaction, which a busy disk may
/// keep waiting for long.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// uid of the namespace whose data an image is, and the one whose data it may take over.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) namespace_uid: String,
    pub(crate) adopt_from: Option<String>,
}

impl Owner {
    fn wire(&self) -> pb::Owner {
        pb::Owner {
            namespace_uid: self.namespace_uid.clone(),
            adopt_from: self.adopt_from.clone().unwrap_or_default(),
        }
    }
}

/// What a receiver answered to a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// It goes.
    Started,
    /// There is nothing to send.
    AlreadyThere,
}

/// What a Snapshot is to be called, and under which number.
pub(crate) struct Take<'a> {
    pub(crate) name: &'a str,
    pub(crate) object_uid: &'a str,
    pub(crate) origin: icbd_crds::Origin,
    pub(crate) highest_known: u64,
    pub(crate) bind: Option<SnapshotNumber>,
}

async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(ANSWER_WITHIN, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "no answer for {} s",
            ANSWER_WITHIN.as_secs()
        ))),
    }
}

/// For calls of which only a refusal is of interest.
async fn done<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<(), Refusal> {
    answer(call)
        .await
        .map(drop)
        .map_err(|status| convert::refusal(&status))
}

impl Agents {
    pub(crate) async fn init_pool(&self, node: &NodeName, init: InitPool) -> Result<(), Refusal> {
        let request = pb::InitPoolRequest {
            fence: Some(self.speaker.fence()),
            fsid: init.id.fsid,
            subvolume_uuid: init.id.subvolume,
            allow_non_empty: init.allow_non_empty,
            take_over_from: init.take_over_from.unwrap_or_default(),
        };
        let mut client = self.client(node)?;
        done(client.init_pool(request)).await
    }

    pub(crate) async fn take(
        &self,
        node: &NodeName,
        image: &ImageKey,
        owner: &Owner,
        take: Take<'_>,
    ) -> Result<(), Refusal> {
        let request = pb::TakeSnapshotRequest {
            fence: Some(self.speaker.fence()),
            image: Some(convert::image_ref(image)),
            owner: Some(owner.wire()),
            name: take.name.to_owned(),
            object_uid: take.object_uid.to_owned(),
            origin: convert::origin(take.origin).into(),
            highest_known: take.highest_known,
            bind_number: take.bind.map_or(0, |number| number.0),
        };
        let mut client = self.client(node)?;
        done(client.take_snapshot(request)).await
    }

    pub(crate) async fn delete_snapshot(
        &self,
        owner: &Owner,
        gone: &Extraneous,
    ) -> Result<(), Refusal> {
        let request = pb::DeleteSnapshotRequest {
            fence: Some(self.speaker.fence()),
            image: Some(convert::image_ref(&gone.image)),
            owner: Some(owner.wire()),
            number: gone.number.0,
            identity: gone.identity.clone(),
            name: gone.name.clone(),
        };
        let mut client = self.client(&gone.node)?;
        done(client.delete_snapshot(request)).await
    }

    pub(crate) async fn delete_image(
        &self,
        node: &NodeName,
        image: &ImageKey,
        owner: &Owner,
    ) -> Result<(), Refusal> {
        let request = pb::DeleteImageRequest {
            fence: Some(self.speaker.fence()),
            image: Some(convert::image_ref(image)),
            owner: Some(owner.wire()),
        };
        let mut client = self.client(node)?;
        done(client.delete_image(request)).await
    }

    /// Ends a transfer at those of its ends that can be reached.
    ///
    /// # Errors
    /// When an end that can be reached refuses.
    pub(crate) async fn cancel(&self, transfer: &str, nodes: &[NodeName]) -> Result<(), Refusal> {
        for node in nodes {
            let Ok(mut client) = self.client(node) else {
                continue;
            };
            let request = pb::CancelRequest {
                fence: Some(self.speaker.fence()),
                transfer: transfer.to_owned(),
            };
            answer(client.cancel(request))
                .await
                .map_err(|s| convert::refusal(&s))?;
        }
        Ok(())
    }

    /// From now on this transfer counts as under way, so that nobody starts it twice.
    pub(crate) fn announce(&self, id: &str, start: &Start) {
        let parent = start.parent.as_ref().map(|(number, _)| *number);
        let ends = [&start.source, &start.receiver];
        let asked = transfers::asked(id, &start.image, start.number, parent, ends);
        self.write().transfers.ask(asked);
    }

    /// Has the receiver expect a transfer that was announced, then the source send it.
    ///
    /// # Errors
    /// Why it did not start; the receiver is told then.
    pub(crate) async fn start(&self, id: &str, start: &Start) -> Result<Accepted, Ended> {
        let result = match self.expect(id, start).await {
            Ok(Accepted::Started) => self.send(id, start).await.map(|()| Accepted::Started),
            other => other,
        };
        if let Err(ended) = &result {
            // Best effort: an expectation that nobody fulfils expires.
            let _ = self.cancel(id, std::slice::from_ref(&start.receiver)).await;
            tracing::debug!(transfer = id, reason = %ended.refusal.reason, "not started");
        }
        if result != Ok(Accepted::Started) {
            self.write().transfers.refused(id);
        }
        result
    }

    async fn expect(&self, id: &str, start: &Start) -> Result<Accepted, Ended> {
        let (_, parent_identity) = start.parent.clone().unzip();
        let request = pb::ExpectRequest {
            fence: Some(self.speaker.fence()),
            image: Some(convert::image_ref(&start.image)),
            owner: Some(owner_of(start).wire()),
            transfer: id.to_owned(),
            number: start.number.0,
            identity: start.identity.clone(),
            parent_identity: parent_identity.unwrap_or_default(),
            record: start.record.as_ref().map(convert::record_to_wire),
            bytes: start.bytes,
            min_free: start.min_free,
            source_node: start.source.0.clone(),
        };
        let mut client = self.client(&start.receiver).map_err(not_reached)?;
        match answer(client.expect(request))
            .await
            .map_err(|s| failed(&start.receiver, &s))?
            .answer
        {
            Some(Answer::AlreadyThere(_)) => Ok(Accepted::AlreadyThere),
            Some(Answer::Accepted(_)) | None => Ok(Accepted::Started),
        }
    }

    async fn send(&self, id: &str, start: &Start) -> Result<(), Ended> {
        let (parent_number, parent_identity) = start.parent.clone().unzip();
        let (address, port) = self.data_address(&start.receiver).ok_or_else(|| {
            let message = format!("the agent on node {} went away", start.receiver);
            not_reached(Refusal::new(Reason::AgentUnreachable, message))
        })?;
        let request = pb::SendRequest {
            fence: Some(self.speaker.fence()),
            image: Some(convert::image_ref(&start.image)),
            owner: Some(owner_of(start).wire()),
            transfer: id.to_owned(),
            number: start.number.0,
            identity: start.identity.clone(),
            parent_number: parent_number.map_or(0, |number| number.0),
            parent_identity: parent_identity.unwrap_or_default(),
            receiver: Some(pb::Receiver {
                node: start.receiver.0.clone(),
                address,
                port: u32::from(port),
            }),
            codec: convert::codec(start.compression).into(),
            limit: start.bandwidth.clone().map(|(target, rate)| pb::Limit {
                target,
                bytes_per_second: rate,
            }),
        };
        let mut client = self.client(&start.source).map_err(not_reached)?;
        answer(client.send(request))
            .await
            .map(drop)
            .map_err(|s| failed(&start.source, &s))
    }
}

fn owner_of(start: &Start) -> Owner {
    let (namespace_uid, adopt_from) = start.owner.clone();
    Owner {
        namespace_uid,
        adopt_from,
    }
}

fn not_reached(refusal: Refusal) -> Ended {
    Ended {
        refusal,
        transient: true,
    }
}

fn failed(node: &NodeName, status: &Status) -> Ended {
    let transient = pb::reason_of(status).is_none_or(pb::Reason::is_transient);
    let Refusal { reason, message } = convert::refusal(status);
    Ended {
        refusal: Refusal::new(reason, format!("node {node}: {message}")),
        transient,
    }
}
