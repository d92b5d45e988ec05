//! ReplicationTargets: say which of their nodes can receive. There is nothing to apply.

use std::sync::Arc;
use std::time::Duration;

use icbd_crds::ReplicationTarget;
use icbd_planner::target::{Facts, plan};
use jiff::Timestamp;
use kube::Api;
use kube_runtime::controller::Action;

use crate::control::{Context, Error};
use crate::publish::news;

pub(crate) async fn reconcile(
    target: Arc<ReplicationTarget>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let before = target.status.clone().unwrap_or_default();
    let problem = context.sight.identity.problem();
    let facts = Facts {
        spec: &target.spec,
        generation: target.metadata.generation,
        status: &before,
        nodes: &context.sight.nodes(),
        images: &context.agents.images_held(),
        ca_lost: problem.as_deref(),
    };
    let now = Timestamp::now();
    let (after, look_again) = plan(&facts, now);
    if before != after {
        let api = Api::all(context.publisher.client());
        context
            .publisher
            .status(&api, target.as_ref(), &after)
            .await?;
        let news = news(&before.conditions, &after.conditions);
        context.publisher.news(target.as_ref(), news).await;
    }
    Ok(look_again.map_or_else(Action::await_change, |at| {
        let seconds = at.duration_since(now).as_secs().max(0) as u64;
        Action::requeue(Duration::from_secs(seconds + 1))
    }))
}
