//! Does what was planned for one VMImage.

use futures::{StreamExt, stream};
use icbd_crds::{DeletionPolicy, Reason, Snapshot, SnapshotSpec, VMImage, names};
use icbd_planner::SnapshotNumber;
use icbd_planner::image::Action;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use tracing::info;

use super::fetch::Seen;
use crate::control::{Context, Error};
use crate::facts::owner;
use crate::publish::News;

/// Requests to the API server at once.
const AT_ONCE: usize = 8;

/// All of it, whatever refuses; says the first refusal.
pub(super) async fn apply(
    image: &VMImage,
    seen: &Seen,
    actions: Vec<Action>,
    context: &Context,
) -> Result<(), Error> {
    let results: Vec<Result<(), Error>> = stream::iter(actions)
        .map(|action| carry_out(image, seen, action, context))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    results.into_iter().collect()
}

async fn carry_out(
    image: &VMImage,
    seen: &Seen,
    action: Action,
    context: &Context,
) -> Result<(), Error> {
    let agents = &context.agents;
    match action {
        Action::AddFinalizer => context.publisher.finalizer(image, true).await?,
        Action::RemoveFinalizer => context.publisher.finalizer(image, false).await?,
        Action::Adopt { name, number } => adopt(image, name, number, context).await?,
        Action::Cancel { transfer, nodes } => {
            agents
                .cancel(&transfer, &nodes)
                .await
                .map_err(Error::Agent)?;
        }
        Action::DeleteImage { node } => {
            info!(%node, "removing the image's snapshots");
            let owner = owner(&seen.image);
            agents
                .delete_image(&node, &seen.image.key, &owner)
                .await
                .map_err(Error::Agent)?;
        }
    }
    Ok(())
}

async fn adopt(
    image: &VMImage,
    name: String,
    number: Option<SnapshotNumber>,
    context: &Context,
) -> Result<(), Error> {
    let namespace = image.namespace().unwrap_or_default();
    let spec = SnapshotSpec {
        image: image.name_any(),
        number: number.map(|number| number.0),
        deletion_policy: DeletionPolicy::Retain,
    };
    let mut snapshot = Snapshot::new(&name, spec);
    let labels = snapshot.labels_mut();
    labels.insert(names::ORIGIN_LABEL.to_owned(), "Adopted".to_owned());
    labels.insert(names::IMAGE_LABEL.to_owned(), image.name_any());
    let api: Api<Snapshot> = Api::namespaced(context.publisher.client(), &namespace);
    let params = PostParams {
        field_manager: Some(crate::publish::FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    match api.create(&params, &snapshot).await {
        Ok(_) => info!(name, number = number.map(|n| n.0), "adopted a snapshot"),
        Err(kube::Error::Api(answer)) if answer.code == 409 => {
            let there = api.get_opt(&name).await?;
            if there.is_some_and(|there| there.spec.image != image.name_any()) {
                let note = format!(
                    "the name {name} belongs to a Snapshot of another image: the snapshot that bears it is not adopted"
                );
                let news = News {
                    warning: true,
                    reason: Reason::Conflict.as_str(),
                    note,
                };
                context.publisher.news(image, vec![news]).await;
            }
            // Else somebody applied it in the meantime: it binds by itself.
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
