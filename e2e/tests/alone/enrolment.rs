//! Who gets a certificate: the agents, each for its own node, and nobody else.

use std::time::Duration;

use icbd_crds::names::ENROLMENT_PORT;
use icbd_e2e::stranger::{Answer, Appearance, Attempt, Request, Shown, Stranger, Table};
use icbd_e2e::{
    Component, Failure, Outcome, SYSTEM_NAMESPACE, Scenario, address_of, node_of, within,
};
use icbd_net::{Key, PublicKey};
use icbd_wire::enrolment::AUDIENCE;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};

use crate::alone;

const AGENT: &str = "icbd-agent";

/// Asks the operator for a certificate.
struct Applicant<'a> {
    s: &'a Scenario,
    stranger: &'a Stranger<'a>,
    key: Key,
}

impl Applicant<'_> {
    fn public_key(&self) -> Outcome<PublicKey> {
        self.key
            .public()
            .map_err(|error| Failure::Unexpected(error.to_string()))
    }

    async fn asks(&self, token: &str, node: &str) -> Outcome<Answer> {
        let key = self.public_key()?;
        self.asks_for(token, node, key.as_bytes()).await
    }

    async fn asks_for(&self, token: &str, node: &str, public_key: &[u8]) -> Outcome<Answer> {
        let attempt = Attempt {
            at: address_of(&self.s.cluster.leader().await?, ENROLMENT_PORT)?,
            appearing: Appearance::Nobody,
            asking: Request::Enrol {
                token: token.to_owned(),
                node: node.to_owned(),
                public_key: public_key.to_vec(),
            },
        };
        self.stranger.tries(attempt).await
    }
}

/// A pod in the product's namespace with the agents' ServiceAccount, which no DaemonSet has made.
async fn impostor(s: &Scenario, stranger: &Pod) -> Outcome<Pod> {
    let pods: Api<Pod> = Api::namespaced(s.cluster.client.clone(), SYSTEM_NAMESPACE);
    let mut spec = stranger.spec.clone().unwrap_or_default();
    spec.service_account_name = Some(AGENT.to_owned());
    spec.service_account = None;
    let pod = Pod {
        metadata: ObjectMeta {
            name: Some(format!("{}-impostor", s.namespace)),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    };
    Ok(pods.create(&PostParams::default(), &pod).await?)
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn agents_get_certificates_for_their_nodes_and_nobody_else_gets_any() -> Outcome {
    alone("enrolment", async |s| {
        let client = &s.cluster.client;
        let system: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
        let stranger = s.stranger("node-3").await?;
        let applicant = Applicant {
            s,
            stranger: &stranger,
            key: Key::generate().map_err(|error| Failure::Unexpected(error.to_string()))?,
        };
        let mut table = Table::default();
        let ours = (SYSTEM_NAMESPACE, AGENT);
        let agent = s.cluster.agent("node-2").await?;
        let good = s.cluster.token(ours, AUDIENCE, Some(&agent)).await?;

        let answer = applicant.asks(&good, "node-2").await?;
        table.granted("a token of node-2's agent", "for node-2", &answer);
        let Answer::Granted(chain) = answer else {
            table.close();
            return Ok(());
        };
        let installation = s.cluster.installation().await?;
        let shown = Shown {
            chain,
            key: applicant.key.pem(),
        };
        assert_eq!(installation.name_in(&shown)?, installation.agent("node-2"));

        // What the API server vouches for, and is not good enough.
        let own: Api<ServiceAccount> = Api::namespaced(client.clone(), &s.namespace);
        let namesake = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(AGENT.to_owned()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        own.create(&PostParams::default(), &namesake).await?;
        let operator = s.cluster.leader().await?;
        let stranger_pod = stranger.pod().await?;
        let impostor = impostor(s, &stranger_pod).await?;
        let operators = (SYSTEM_NAMESPACE, Component::Operator.name());
        let (own_default, own_namesake) = ((&*s.namespace, "default"), (&*s.namespace, AGENT));
        let api_server = "https://kubernetes.default.svc.cluster.local";
        let mut refused = Vec::new();
        for (what, account, audience, pod) in [
            ("for the API server", ours, api_server, Some(&agent)),
            ("for somebody else", ours, "vault", Some(&agent)),
            ("of no pod", ours, AUDIENCE, None),
            ("of a pod of no DaemonSet", ours, AUDIENCE, Some(&impostor)),
            (
                "of the operator's account",
                operators,
                AUDIENCE,
                Some(&operator),
            ),
            (
                "of the stranger's account",
                own_default,
                AUDIENCE,
                Some(&stranger_pod),
            ),
            (
                "of an account of the same name elsewhere",
                own_namesake,
                AUDIENCE,
                None,
            ),
        ] {
            let token = s.cluster.token(account, audience, pod).await?;
            let node = pod.and_then(node_of).unwrap_or("node-2");
            let answer = applicant.asks(&token, node).await?;
            table.refused(&format!("a token {what}"), &format!("for {node}"), &answer);
            refused.push(answer);
        }
        system
            .delete(
                impostor.metadata.name.as_deref().unwrap_or_default(),
                &DeleteParams::default().grace_period(0),
            )
            .await?;
        let answer = applicant.asks(&good, "node-1").await?;
        table.refused("a token of node-2's agent", "for node-1", &answer);
        refused.push(answer);
        let tampered: String = good.chars().rev().collect();
        let answer = applicant.asks(&tampered, "node-2").await?;
        table.refused("what is no token", "for node-2", &answer);
        refused.push(answer);
        let answer = applicant.asks_for(&good, "node-2", &[4; 64]).await?;
        table.refused("a token of node-2's agent", "for what is no key", &answer);

        // The agent's pod goes, and another comes in its place.
        let name = agent.metadata.name.clone().unwrap_or_default();
        system.delete(&name, &DeleteParams::default()).await?;
        within(
            Duration::from_secs(60),
            "the agent's pod to go",
            async || {
                Ok(match system.get_opt(&name).await? {
                    None => Ok(()),
                    Some(_) => Err("it is there".to_owned()),
                })
            },
        )
        .await?;
        let answer = applicant.asks(&good, "node-2").await?;
        table.refused(
            "a token of a deleted pod of an agent",
            "for node-2",
            &answer,
        );
        refused.push(answer);
        s.cluster.product_is_ready().await?;
        let agent = s.cluster.agent("node-2").await?;
        let good = s.cluster.token(ours, AUDIENCE, Some(&agent)).await?;
        let answer = applicant.asks(&good, "node-2").await?;
        table.granted("a token of its successor", "for node-2", &answer);
        table.close();
        refused.dedup();
        assert_eq!(refused.len(), 1, "a stranger learns why: {refused:?}");
        Ok(())
    })
    .await
}
