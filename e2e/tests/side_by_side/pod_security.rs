//! What Pod Security makes of the product's pods. Nothing is started: the API server is asked.

use std::time::Duration;

use icbd_e2e::{Component, Failure, Outcome, SYSTEM_NAMESPACE, Scenario, within};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Namespace, Pod, PodTemplateSpec, ServiceAccount};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;

/// How long an API server may take to notice a label of a namespace.
const NOTICED: Duration = Duration::from_secs(60);

/// The product's pods, as the chart makes them, in a namespace of the test's own.
struct Pods<'a>(&'a Scenario);

impl Pods<'_> {
    /// From now on the namespace enforces `level`.
    async fn enforce(&self, level: &str) -> Outcome {
        let namespaces: Api<Namespace> = Api::all(self.0.cluster.client.clone());
        let labels = json!({"pod-security.kubernetes.io/enforce": level});
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        namespaces
            .patch(&self.0.namespace, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    async fn template(&self, component: Component) -> Outcome<PodTemplateSpec> {
        let (client, name) = (self.0.cluster.client.clone(), component.name());
        let template = match component {
            Component::Operator => Api::<Deployment>::namespaced(client, SYSTEM_NAMESPACE)
                .get(name)
                .await?
                .spec
                .map(|spec| spec.template),
            Component::Agent => Api::<DaemonSet>::namespaced(client, SYSTEM_NAMESPACE)
                .get(name)
                .await?
                .spec
                .map(|spec| spec.template),
        };
        template.ok_or_else(|| Failure::Unexpected(format!("{name} has no template")))
    }

    /// Makes the ServiceAccount that a component's pods name.
    async fn account(&self, component: Component) -> Outcome {
        let client = self.0.cluster.client.clone();
        let accounts: Api<ServiceAccount> = Api::namespaced(client, &self.0.namespace);
        let account = ServiceAccount {
            metadata: named(component),
            ..Default::default()
        };
        accounts.create(&PostParams::default(), &account).await?;
        Ok(())
    }

    /// Why a pod of `component` is not admitted; nothing if it is.
    async fn refusal(&self, component: Component) -> Outcome<Option<String>> {
        let pods: Api<Pod> = Api::namespaced(self.0.cluster.client.clone(), &self.0.namespace);
        let pod = Pod {
            metadata: named(component),
            spec: self.template(component).await?.spec,
            ..Default::default()
        };
        let asked = PostParams {
            dry_run: true,
            ..Default::default()
        };
        match pods.create(&asked, &pod).await {
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(Some(status.message.clone())),
            Err(error) => Err(error.into()),
        }
    }

    /// Why an agent's pod is not admitted, once that is for want of `level`.
    async fn agent_refused_by(&self, level: &str) -> Outcome<String> {
        let wanted = format!("violates PodSecurity \"{level}:");
        within(NOTICED, &wanted, async || {
            let refusal = self.refusal(Component::Agent).await?;
            let refusal = refusal.unwrap_or_else(|| "it is admitted".to_owned());
            Ok(if refusal.contains(&wanted) {
                Ok(refusal)
            } else {
                Err(refusal)
            })
        })
        .await
    }
}

fn named(component: Component) -> ObjectMeta {
    ObjectMeta {
        name: Some(component.name().to_owned()),
        ..Default::default()
    }
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn the_operator_fits_restricted_and_agents_need_privileged_for_two_reasons() -> Outcome {
    Scenario::run("pod-security", async |s| {
        let pods = Pods(s);
        for component in [Component::Operator, Component::Agent] {
            pods.account(component).await?;
        }
        let admitted = pods.refusal(Component::Agent).await?;
        assert_eq!(admitted, None, "where nothing is enforced");

        // What the level `baseline` has against agents: their capabilities and the host path.
        pods.enforce("baseline").await?;
        let refusal = pods.agent_refused_by("baseline").await?;
        let reasons: Vec<_> = ["non-default capabilities", "hostPath volumes"]
            .into_iter()
            .filter(|reason| refusal.contains(reason))
            .collect();
        assert_eq!(reasons.len(), 2, "{refusal}");
        for other in [
            "host namespaces",
            "hostPort",
            "privileged (",
            "seccompProfile",
        ] {
            assert!(!refusal.contains(other), "{refusal}");
        }

        // That agents are refused says that the level is enforced by now.
        pods.enforce("restricted").await?;
        pods.agent_refused_by("restricted").await?;
        assert_eq!(pods.refusal(Component::Operator).await?, None);
        Ok(())
    })
    .await
}
