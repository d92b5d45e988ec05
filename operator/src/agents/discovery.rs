//! Where the agents are: the EndpointSlices of the headless Service. That is the name server.
//! Endpoints that are not ready are dialled too, or nobody would learn why they are not; slices
//! that somebody else than Kubernetes' own controller made are ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures::StreamExt;
use icbd_crds::names;
use icbd_planner::NodeName;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client};
use kube_runtime::reflector::{self, Store};
use kube_runtime::{WatchStreamExt, watcher};
use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::Agents;
use super::connection::stay_in_touch;

type Place = (NodeName, SocketAddr);

/// Keeps one connection to each agent. `found` is called once, when all that were there at the
/// start are being dialled.
pub(crate) async fn discover(
    agents: Arc<Agents>,
    client: Client,
    namespace: String,
    service: String,
    found: impl FnOnce(),
) {
    let api: Api<EndpointSlice> = Api::namespaced(client, &namespace);
    let ours = watcher::Config::default().labels(&format!(
        "kubernetes.io/service-name={service},endpointslice.kubernetes.io/managed-by=endpointslice-controller.k8s.io"
    ));
    let (slices, writer) = reflector::store();
    let mut events = std::pin::pin!(watcher(api, ours).default_backoff().reflect(writer));
    let mut found = Some(found);
    let mut connections: BTreeMap<Place, AbortHandle> = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => continue,
            Ok(_) => {}
            Err(error) => {
                warn!(%error, "cannot watch EndpointSlices");
                continue;
            }
        }
        connect(&agents, &mut connections, places(&slices));
        if let Some(found) = found.take() {
            found();
        }
    }
}

fn connect(
    agents: &Arc<Agents>,
    connections: &mut BTreeMap<Place, AbortHandle>,
    places: BTreeSet<Place>,
) {
    connections.retain(|place, connection| {
        let stays = places.contains(place);
        if !stays {
            info!(node = %place.0, address = %place.1, "the agent is gone");
            connection.abort();
        }
        stays
    });
    for place in places {
        connections
            .entry(place)
            .or_insert_with_key(|(node, address)| {
                tokio::spawn(stay_in_touch(agents.clone(), node.clone(), *address)).abort_handle()
            });
    }
}

fn places(slices: &Store<EndpointSlice>) -> BTreeSet<Place> {
    slices
        .state()
        .iter()
        .flat_map(|slice| of_slice(slice))
        .collect()
}

fn of_slice(slice: &EndpointSlice) -> Vec<Place> {
    let port = slice
        .ports
        .iter()
        .flatten()
        .find(|port| port.name.as_deref() == Some("control"))
        .and_then(|port| u16::try_from(port.port?).ok())
        .unwrap_or(names::CONTROL_PORT);
    let places = slice.endpoints.iter().filter_map(|endpoint| {
        let node = NodeName(endpoint.node_name.clone()?);
        let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        Some((node, SocketAddr::new(address, port)))
    });
    places.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_found_ready_or_not_and_only_those_on_nodes() {
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "addressType": "IPv4",
            "ports": [{"name": "data", "port": 1}, {"name": "control", "port": 7440}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "nodeName": "n1", "conditions": {"ready": false}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": true}},
                {"addresses": ["not an address"], "nodeName": "n3"},
            ],
        }))
        .unwrap();
        let expected: Vec<Place> = vec![("n1".into(), "10.0.0.1:7440".parse().unwrap())];
        assert_eq!(of_slice(&slice), expected);
    }
}
