//! Starts transfers, and removes what was deleted while its node was away.

use std::sync::Arc;

use icbd_planner::replication::{Extraneous, Start};
use tokio::sync::Notify;
use tracing::{Instrument, info, info_span, warn};
use uuid::Uuid;

use super::fetch::Seen;
use crate::agents::{Accepted, Owner};
use crate::control::Context;

/// Asks for the transfers, all at once: one agent that is slow to answer holds nobody up. They
/// count as under way from now on.
pub(super) fn start(context: &Arc<Context>, wake: &Arc<Notify>, seen: &Seen, starts: Vec<Start>) {
    for start in starts {
        let id = Uuid::new_v4().to_string();
        let object = seen.objects.get(&(start.image.clone(), start.number));
        let sent_before = sent_so_far(seen, &start);
        context.sight.ledger.begin(
            &start.image,
            &start.receiver,
            start.number,
            object.map_or("", String::as_str),
            &id,
            sent_before,
        );
        let span = info_span!(
            "transfer", id, image = %start.image, number = %start.number,
            source = %start.source, receiver = %start.receiver,
        );
        context.agents.announce(&id, &start);
        let (context, wake) = (context.clone(), wake.clone());
        tokio::spawn(async move { begin(&context, &wake, &id, &start).await }.instrument(span));
    }
}

/// Bytes on the wire by all attempts so far.
fn sent_so_far(seen: &Seen, start: &Start) -> u64 {
    let Some(job) = seen.jobs.iter().find(|job| job.facts.key == start.image) else {
        return 0;
    };
    let attempt = job
        .facts
        .attempts
        .get(&(start.receiver.clone(), start.number));
    attempt.map_or(0, |attempt| {
        let last = job
            .facts
            .transfers
            .iter()
            .find(|t| t.id == attempt.transfer);
        attempt.sent_before + last.map_or(0, |transfer| transfer.bytes_sent)
    })
}

async fn begin(context: &Context, wake: &Notify, id: &str, start: &Start) {
    let parent = start.parent.as_ref().map(|(number, _)| number.0);
    match context.agents.start(id, start).await {
        Ok(Accepted::Started) => info!(parent, "transfer started"),
        Ok(Accepted::AlreadyThere) => info!("the receiver holds the snapshot already"),
        Err(ended) => {
            warn!(reason = %ended.refusal.reason, message = ended.refusal.message, "transfer not started");
            context
                .sight
                .ledger
                .failed(&start.image, &start.receiver, start.number, id, ended);
            context
                .sight
                .caches
                .transfer_failed(&start.image, start.number);
            wake.notify_one();
        }
    }
}

/// Removes what came back with a node that was away when it was deleted.
pub(super) async fn remove(context: &Context, found: Vec<Extraneous>) {
    for gone in found {
        let Extraneous {
            node,
            image,
            number,
            identity,
            ..
        } = &gone;
        info!(%node, %image, %number, identity, "removing a snapshot that was deleted while its node was away");
        let owner = Owner {
            namespace_uid: gone.namespace_uid.clone(),
            adopt_from: None,
        };
        if let Err(refusal) = context.agents.delete_snapshot(&owner, &gone).await {
            warn!(%node, %image, %number, reason = %refusal.reason, message = refusal.message, "not removed");
        }
    }
}
