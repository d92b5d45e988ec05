//! Whether what an object lives in is being deleted. Asked of the API server and not of a cache,
//! and only for objects that are being deleted themselves: data depends on it.

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, CustomResourceExt, Resource, ResourceExt};

/// Whether the object is being deleted because its namespace or its CRD is.
///
/// # Errors
/// Those of the API server. A namespace or CRD that is gone counts as being deleted.
pub(crate) async fn scope_terminating<K>(client: &Client, object: &K) -> kube::Result<bool>
where
    K: Resource<DynamicType = ()> + CustomResourceExt,
{
    if object.meta().deletion_timestamp.is_none() {
        return Ok(false);
    }
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let crd = crds.get_opt(K::crd_name()).await?;
    if crd.is_none_or(|crd| crd.metadata.deletion_timestamp.is_some()) {
        return Ok(true);
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = namespaces
        .get_opt(&object.namespace().unwrap_or_default())
        .await?;
    Ok(namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()))
}
