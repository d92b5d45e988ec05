//! Whether what an object lives in is being deleted. Asked of the API server and not of a cache,
//! and only for objects that are being deleted themselves: data depends on it.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, CustomResourceExt, Resource, ResourceExt};
use serde::de::DeserializeOwned;

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
    let crd = get(&crds, K::crd_name()).await?;
    if crd.is_none_or(|crd| crd.metadata.deletion_timestamp.is_some()) {
        return Ok(true);
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = get(&namespaces, &object.namespace().unwrap_or_default()).await?;
    Ok(namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()))
}

/// An object, if there is one, and its kind: of a kind that is no more the API server says 404 in
/// words that are no Kubernetes status.
pub(crate) async fn get<K>(api: &Api<K>, name: &str) -> kube::Result<Option<K>>
where
    K: Clone + DeserializeOwned + Debug,
{
    match api.get(name).await {
        Ok(object) => Ok(Some(object)),
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}
