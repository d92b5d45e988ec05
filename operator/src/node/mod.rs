//! Nodes: mark their pools as this installation's, where that is safe or consented to.

use std::sync::Arc;

use icbd_planner::{NodeName, pool};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube_runtime::controller::Action;
use tracing::info;

use crate::control::{Context, Error};

pub(crate) async fn reconcile(node: Arc<Node>, context: Arc<Context>) -> Result<Action, Error> {
    let name = NodeName(node.name_any());
    let nodes = context.sight.nodes();
    if let Some(init) = nodes.get(&name).and_then(pool::plan) {
        info!(node = %name, fsid = init.id.fsid, taken_from = init.take_over_from, "initialising the pool");
        context
            .agents
            .init_pool(&name, init)
            .await
            .map_err(Error::Agent)?;
    }
    Ok(Action::await_change())
}
