//! Does what was planned for one Snapshot.

use icbd_planner::replication::Extraneous;
use icbd_planner::snapshot::Action;
use kube::ResourceExt;
use tracing::info;

use super::fetch::Seen;
use crate::agents::Take;
use crate::control::{Context, Error};
use crate::facts::owner;

/// In order: without its finalizer no snapshot is taken, and transfers are ended before what
/// they move is removed. A node that refuses does not keep the others waiting.
pub(super) async fn apply(
    seen: &Seen,
    actions: Vec<Action>,
    context: &Context,
) -> Result<(), Error> {
    let mut first_error = None;
    for action in actions {
        let stop = action == Action::AddFinalizer;
        if let Err(error) = carry_out(seen, action, context).await {
            first_error.get_or_insert(error);
            if stop {
                break;
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

async fn carry_out(seen: &Seen, action: Action, context: &Context) -> Result<(), Error> {
    let object = seen.object.as_ref();
    let agents = &context.agents;
    match (action, &seen.image) {
        (Action::AddFinalizer, _) => context.publisher.finalizer(object, true).await?,
        (Action::RemoveFinalizer, _) => context.publisher.finalizer(object, false).await?,
        (
            Action::Take {
                node,
                origin,
                highest_known,
                bind,
            },
            Some(image),
        ) => {
            let name = object.name_any();
            let uid = object.uid().unwrap_or_default();
            let take = Take {
                name: &name,
                object_uid: &uid,
                origin,
                highest_known,
                bind,
            };
            info!(%node, bind = bind.map(|n| n.0), "taking the snapshot");
            agents
                .take(&node, &image.key, &owner(image), take)
                .await
                .map_err(Error::Agent)?;
        }
        (Action::Cancel { transfer, nodes }, _) => {
            info!(
                transfer,
                "ending the transfer of a snapshot that is being deleted"
            );
            agents
                .cancel(&transfer, &nodes)
                .await
                .map_err(Error::Agent)?;
        }
        (
            Action::Delete {
                node,
                number,
                identity,
            },
            Some(image),
        ) => {
            info!(%node, %number, identity, "removing the snapshot");
            let owner = owner(image);
            let gone = Extraneous {
                node,
                image: image.key.clone(),
                namespace_uid: owner.namespace_uid.clone(),
                number,
                identity,
                name: object.name_any(),
            };
            agents
                .delete_snapshot(&owner, &gone)
                .await
                .map_err(Error::Agent)?;
        }
        // The planner takes and deletes nothing of an image that it has not seen.
        (Action::Take { .. } | Action::Delete { .. }, None) => {}
    }
    Ok(())
}
