//! The product's own pods: who leads, killing one as a crash would, waiting until all is well.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};

use crate::{CA_SECRET, Cluster, Failure, Outcome, SYSTEM_NAMESPACE, TRUST, within};

/// Long enough for a pod to be started anew, its back-off after a few crashes included.
const RECOVERY: Duration = Duration::from_secs(120);

/// A part of the product that runs as pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// Decides.
    Operator,
    /// Moves data.
    Agent,
}

impl Component {
    /// Its container's name, its ServiceAccount's, and its Deployment's or DaemonSet's.
    pub fn name(self) -> &'static str {
        match self {
            Component::Operator => "icbd-operator",
            Component::Agent => "icbd-agent",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Component::Operator => {
                "app.kubernetes.io/part-of=icbd,app.kubernetes.io/component=operator"
            }
            Component::Agent => "app.kubernetes.io/part-of=icbd,app.kubernetes.io/component=agent",
        }
    }
}

impl Cluster {
    /// The pods of a component.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn pods(&self, component: Component) -> Outcome<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        Ok(pods
            .list(&ListParams::default().labels(component.label()))
            .await?
            .items)
    }

    /// The operator that holds the Lease.
    ///
    /// # Errors
    /// When nobody takes it.
    pub async fn leader(&self) -> Outcome<Pod> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        within(RECOVERY, "an operator that leads", async || {
            let lease = leases.get_opt("icbd-operator").await?;
            let holder = lease.and_then(|l| l.spec).and_then(|s| s.holder_identity);
            let operators = self.pods(Component::Operator).await?;
            Ok(operators
                .into_iter()
                .find(|pod| holds(pod, holder.as_deref()))
                .ok_or_else(|| format!("the Lease is held by {holder:?}")))
        })
        .await
    }

    /// The agent of a node.
    ///
    /// # Errors
    /// When there is none.
    pub async fn agent(&self, node: &str) -> Outcome<Pod> {
        let agents = self.pods(Component::Agent).await?;
        agents
            .into_iter()
            .find(|pod| node_of(pod) == Some(node))
            .ok_or_else(|| Failure::Unexpected(format!("no agent on {node}")))
    }

    /// Kills the process of a pod's only container with SIGKILL; the kubelet starts it again.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&self, pod: &Pod) -> Outcome {
        let (node, container) = running(pod)?;
        let kill = format!("ctr --namespace k8s.io task kill --signal SIGKILL {container}");
        self.node(node).sh(&kill).await.map(drop)
    }

    /// The id, among its node's processes, of a pod's only container.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn process(&self, pod: &Pod) -> Outcome<String> {
        let (node, container) = running(pod)?;
        let list = format!(
            "ctr --namespace k8s.io task list | awk '$1 == \"{container}\" {{ print $2 }}'"
        );
        Ok(self.node(node).sh(&list).await?.trim().to_owned())
    }

    /// Memory that belongs to the process of a pod's only container alone, KiB.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn rss_anon(&self, pod: &Pod) -> Outcome<u64> {
        let (node, _) = running(pod)?;
        let process = self.process(pod).await?;
        let ask = format!("awk '/^RssAnon/ {{ print $2 }}' /proc/{process}/status");
        let kib = self.node(node).sh(&ask).await?;
        kib.trim().parse().map_err(|_| {
            Failure::Unexpected(format!("RssAnon of {:?} is {kib:?}", pod.metadata.name))
        })
    }

    /// Uninstalls the product, deletes the certificate authority that stays, and installs the product
    /// with the values that it had and these options of helm.
    ///
    /// # Errors
    /// When helm fails.
    pub async fn installed_anew(&self, options: &[&str]) -> Outcome {
        let values = self.uninstall().await?;
        let forget = [
            "delete",
            "--ignore-not-found",
            "-n",
            SYSTEM_NAMESPACE,
            &format!("secret/{CA_SECRET}"),
            &format!("configmap/{TRUST}"),
        ];
        self.kubectl(&forget).await?;
        self.install(&values, options).await
    }

    /// Uninstalls the product; the values that it had.
    ///
    /// # Errors
    /// When helm fails.
    pub async fn uninstall(&self) -> Outcome<String> {
        let values = self
            .helm(&["get", "values", "icbd", "-o", "yaml"], "")
            .await?;
        let uninstall = ["uninstall", "icbd", "--wait", "--timeout=2m"];
        self.helm(&uninstall, "").await?;
        Ok(values)
    }

    /// Installs the product with these values and options of helm, and waits until it is ready.
    ///
    /// # Errors
    /// When helm fails, or the product does not become ready.
    pub async fn install(&self, values: &str, options: &[&str]) -> Outcome {
        let chart = self.chart();
        let install = [
            "install",
            "icbd",
            &chart,
            "--wait",
            "--timeout=3m",
            "--values",
            "-",
        ];
        self.helm(&[&install[..], options].concat(), values).await?;
        self.product_is_ready().await
    }

    /// Waits until every operator and every agent is ready, as after an installation.
    ///
    /// # Errors
    /// When one does not become ready.
    pub async fn product_is_ready(&self) -> Outcome {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let daemons: Api<DaemonSet> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        within(RECOVERY, "operators and agents to be ready", async || {
            let operators = deployments.get_opt("icbd-operator").await?;
            let agents = daemons.get_opt("icbd-agent").await?;
            let ready = operators.as_ref().is_some_and(rolled_out)
                && agents.as_ref().is_some_and(rolled_out_everywhere);
            Ok(if ready {
                Ok(())
            } else {
                Err(statuses(operators, agents))
            })
        })
        .await?;
        self.leader().await.map(drop)
    }
}

/// Whether a pod is the holder of a Lease: `<pod>_<something that tells its processes apart>`.
fn holds(pod: &Pod, holder: Option<&str>) -> bool {
    let name = holder.and_then(|holder| holder.split('_').next());
    name.is_some() && name == pod.metadata.name.as_deref()
}

/// Where a pod is reached on one of its ports.
///
/// # Errors
/// When it has no address yet.
pub fn address_of(pod: &Pod, port: u16) -> Outcome<SocketAddr> {
    let ip = pod
        .status
        .as_ref()
        .and_then(|status| status.pod_ip.as_deref());
    let ip = ip
        .and_then(|ip| ip.parse().ok())
        .ok_or_else(|| Failure::Unexpected(format!("{:?} has no address", pod.metadata.name)))?;
    Ok(SocketAddr::new(ip, port))
}

/// How often a pod's only container has been started anew.
pub fn restarts(pod: &Pod) -> i32 {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    statuses
        .and_then(|all| all.first())
        .map_or(0, |container| container.restart_count)
}

/// The node that a pod runs on.
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// Node and container id of a pod with one container.
fn running(pod: &Pod) -> Outcome<(&str, &str)> {
    let container = pod
        .status
        .as_ref()
        .and_then(|status| {
            status
                .container_statuses
                .as_ref()?
                .first()?
                .container_id
                .as_deref()
        })
        .and_then(|id| id.strip_prefix("containerd://"));
    node_of(pod).zip(container).ok_or_else(|| {
        Failure::Unexpected(format!(
            "{:?} has no container that runs",
            pod.metadata.name
        ))
    })
}

fn rolled_out(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    deployment.status.as_ref().is_some_and(|status| {
        status.observed_generation == deployment.metadata.generation
            && status.updated_replicas == wanted
            && status.ready_replicas == wanted
            && status.replicas == wanted
    })
}

fn rolled_out_everywhere(daemon: &DaemonSet) -> bool {
    daemon.status.as_ref().is_some_and(|status| {
        let wanted = status.desired_number_scheduled;
        status.observed_generation == daemon.metadata.generation
            && wanted > 0
            && status.updated_number_scheduled == Some(wanted)
            && status.number_ready == wanted
    })
}

fn statuses(operators: Option<Deployment>, agents: Option<DaemonSet>) -> String {
    format!(
        "operators {:?}, agents {:?}",
        operators.and_then(|o| o.status),
        agents.and_then(|a| a.status)
    )
}
