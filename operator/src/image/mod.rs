//! VMImages: adopt what is found, remove what is to go, say how fresh the replicas are.

mod apply;
mod fetch;
mod publish;

use std::sync::Arc;

use icbd_crds::VMImage;
use icbd_planner::image::actions;
use kube_runtime::controller::Action;

use crate::control::{Context, Error};

pub(crate) async fn reconcile(image: Arc<VMImage>, context: Arc<Context>) -> Result<Action, Error> {
    let seen = fetch::fetch(&image, &context.sight, &context.publisher.client()).await?;
    let todo = actions(&seen.facts(&image));
    let applied = apply::apply(&image, &seen, todo, &context).await;
    publish::publish(&image, &seen, applied.is_ok(), &context).await?;
    applied.map(|()| Action::await_change())
}
