//! Says what was seen of one VMImage.

use icbd_crds::VMImage;
use icbd_planner::image::status;
use jiff::Timestamp;
use kube::{Api, ResourceExt};

use super::fetch::Seen;
use crate::control::Context;
use crate::publish::news;

pub(super) async fn publish(
    image: &VMImage,
    seen: &Seen,
    adopted: bool,
    context: &Context,
) -> kube::Result<()> {
    let status = status(&seen.facts(image), adopted, Timestamp::now());
    if image.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let before = image
        .status
        .as_ref()
        .map_or(&[][..], |status| &status.conditions);
    let news = news(before, &status.conditions);
    let namespace = image.namespace().unwrap_or_default();
    let api = Api::namespaced(context.publisher.client(), &namespace);
    context.publisher.status(&api, image, &status).await?;
    context.publisher.news(image, news).await;
    Ok(())
}
