//! Snapshots: have them taken, bound and deleted, and say how far their replicas are.

mod apply;
mod fetch;
mod publish;

use std::sync::Arc;

use icbd_crds::Snapshot;
use icbd_planner::snapshot::actions;
use kube_runtime::controller::Action;

use crate::control::{Context, Error};

pub(crate) async fn reconcile(
    snapshot: Arc<Snapshot>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let mut seen = fetch::fetch(&snapshot, &context.sight, &context.publisher.client()).await?;
    let todo = actions(&seen.facts());
    let applied = apply::apply(&seen, todo, &context).await;
    if let Err(Error::Agent(refusal)) = &applied {
        seen.refused = Some(refusal.clone());
    }
    let published = publish::publish(&seen, &context).await?;
    applied.map(|()| published)
}
