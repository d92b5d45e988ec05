//! Who is not of the installation gets nowhere, and who is gets no further than it should.

use std::time::{Duration, SystemTime};

use icbd_crds::names::{CONTROL_PORT, DATA_PORT, ENROLMENT_PORT};
use icbd_e2e::stranger::{
    Answer, Appearance, Attempt, Expected, Fence, Request, Sent, Shown, Stranger, Table,
};
use icbd_e2e::{Component, Failure, Installation, Outcome, SYSTEM_NAMESPACE, Scenario, address_of};
use icbd_net::Key;
use icbd_wire::enrolment::AUDIENCE;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::Api;
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::json;
use uuid::Uuid;

use Appearance::Certificate;

/// The agent of node-2, as a stranger sees it, and somebody who may command it.
struct Receiver<'a> {
    s: &'a Scenario,
    stranger: &'a Stranger<'a>,
    /// A certificate of the operator, made by the test.
    operator: Appearance,
    fence: Fence,
    namespace_uid: String,
}

impl<'a> Receiver<'a> {
    async fn of(
        s: &'a Scenario,
        stranger: &'a Stranger<'a>,
        installation: &Installation,
    ) -> Outcome<Self> {
        let client = s.cluster.client.clone();
        let leases: Api<Lease> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
        let lease = leases.get("icbd-operator").await?;
        let namespaces: Api<Namespace> = Api::all(client);
        let namespace = namespaces.get(&s.namespace).await?;
        let created = lease.metadata.creation_timestamp;
        let transitions = lease.spec.and_then(|spec| spec.lease_transitions);
        let mut receiver = Self {
            s,
            stranger,
            operator: Certificate(installation.vouches_for(&installation.operator())?),
            fence: Fence {
                installation: String::new(),
                lease_created: created.map_or(0, |time| time.0.as_second()),
                lease_transitions: transitions.unwrap_or(0).try_into().unwrap_or(0),
            },
            namespace_uid: namespace.metadata.uid.unwrap_or_default(),
        };
        receiver.fence.installation = receiver.obeys(Request::Describe).await?;
        Ok(receiver)
    }

    /// What it answers to somebody who looks like this.
    async fn answers(&self, appearing: &Appearance, asking: Request) -> Outcome<Answer> {
        let agent = self.s.cluster.agent("node-2").await?;
        let port = match asking {
            Request::Send(_) => DATA_PORT,
            _ => CONTROL_PORT,
        };
        let attempt = Attempt {
            at: address_of(&agent, port)?,
            appearing: appearing.clone(),
            asking,
        };
        self.stranger.tries(attempt).await
    }

    /// What it answers to the operator.
    async fn obeys(&self, asking: Request) -> Outcome<String> {
        match self.answers(&self.operator, asking).await? {
            Answer::Granted(granted) => Ok(granted),
            other => Err(Failure::Unexpected(format!("to the operator: {other:?}"))),
        }
    }

    /// A transfer from `node` that it now waits for: a snapshot of `disk` that it does not have.
    async fn waits_for(&self, number: u64, node: &str) -> Outcome<Sent> {
        let sent = self.transfer(number);
        let expected = Expected {
            what: sent.clone(),
            namespace_uid: self.namespace_uid.clone(),
            from: node.to_owned(),
        };
        self.obeys(Request::Expect(self.fence.clone(), expected))
            .await?;
        Ok(sent)
    }

    /// A transfer that nobody has heard of.
    fn transfer(&self, number: u64) -> Sent {
        Sent {
            transfer: Uuid::new_v4().to_string(),
            namespace: self.s.namespace.clone(),
            image: "disk".to_owned(),
            number,
            content: Uuid::new_v4().to_string(),
        }
    }

    /// The id of the transfer by which it got the scenario's first snapshot.
    async fn has_received(&self) -> Outcome<String> {
        let received = self.obeys(Request::Received(self.fence.clone())).await?;
        let what = format!(" {}/disk/1", self.s.namespace);
        let found = received.lines().find_map(|line| line.strip_suffix(&what));
        found
            .map(str::to_owned)
            .ok_or_else(|| Failure::Unexpected(format!("no transfer{what} in {received:?}")))
    }
}

/// A key, and its public part.
fn new_key() -> Outcome<(Key, Vec<u8>)> {
    let unusable = |error: &dyn std::fmt::Display| Failure::Unexpected(format!("a key: {error}"));
    let key = Key::generate().map_err(|error| unusable(&error))?;
    let public = key.public().map_err(|error| unusable(&error))?;
    Ok((key, public.as_bytes().to_vec()))
}

/// A certificate of a node's agent, got as the agent gets it: with a token of its pod.
async fn enrolled(s: &Scenario, stranger: &Stranger<'_>, node: &str) -> Outcome<Shown> {
    let agent = s.cluster.agent(node).await?;
    let account = (SYSTEM_NAMESPACE, Component::Agent.name());
    let token = s.cluster.token(account, AUDIENCE, Some(&agent)).await?;
    let (key, public_key) = new_key()?;
    let attempt = Attempt {
        at: address_of(&s.cluster.leader().await?, ENROLMENT_PORT)?,
        appearing: Appearance::Nobody,
        asking: Request::Enrol {
            token,
            node: node.to_owned(),
            public_key,
        },
    };
    match stranger.tries(attempt).await? {
        Answer::Granted(chain) => Ok(Shown {
            chain,
            key: key.pem(),
        }),
        other => Err(Failure::Unexpected(format!("{node} enrols: {other:?}"))),
    }
}

/// The operator's name in a certificate that only its own key vouches for.
fn self_signed(installation: &Installation) -> Outcome<Shown> {
    let name = installation.operator();
    let unusable = |error| Failure::Unexpected(format!("a certificate: {error}"));
    let key = KeyPair::generate().map_err(unusable)?;
    let mut params = CertificateParams::new([name.dns()]).map_err(unusable)?;
    let uri = name.to_string().try_into().map_err(unusable)?;
    params.subject_alt_names.push(SanType::URI(uri));
    let certificate = params.self_signed(&key).map_err(unusable)?;
    Ok(Shown {
        chain: certificate.pem(),
        key: key.serialize_pem(),
    })
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn from_a_pod_without_rights_nothing_succeeds_against_operator_or_agents() -> Outcome {
    Scenario::run("strangers", async |s| {
        s.disk_on_node_1(&["node-2"]).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        s.replicated("first").await?;
        let stranger = s.stranger("node-3").await?;
        let installation = s.cluster.installation().await?;
        let receiver = Receiver::of(s, &stranger, &installation).await?;
        let announced = receiver.waits_for(7, "node-1").await?;
        let own_token = s
            .cluster
            .token((&s.namespace, "default"), AUDIENCE, None)
            .await?;

        let domain = &installation.trust_domain;
        let forged = Installation::made_up(domain)?;
        let elsewhere = icbd_net::Name::operator("elsewhere.icbd");
        let yesterday = SystemTime::now() - Duration::from_secs(3600);
        let operator = installation.operator();
        let appearances = [
            ("nobody, without TLS", Appearance::Plaintext),
            ("nobody, over TLS", Appearance::Nobody),
            (
                "self-signed, as the operator",
                Certificate(self_signed(&installation)?),
            ),
            (
                "another authority's, as the operator",
                Certificate(forged.vouches_for(&operator)?),
            ),
            (
                "another authority's, as the agent of node-1",
                Certificate(forged.vouches_for(&installation.agent("node-1"))?),
            ),
            (
                "the operator's, expired",
                Certificate(installation.vouches_until(&operator, yesterday)?),
            ),
            (
                "the operator's of another installation",
                Certificate(installation.vouches_for(&elsewhere)?),
            ),
            (
                "the agent's of node-3, enrolled",
                Certificate(enrolled(s, &stranger, "node-3").await?),
            ),
        ];
        let mut table = Table::default();

        // What is announced waits for its source for two minutes: it comes first.
        let what = "agent, data: the announced transfer";
        for (who, appearing) in &appearances {
            let sends = Request::Send(announced.clone());
            let answer = receiver.answers(appearing, sends).await?;
            table.refused(what, who, &answer);
        }
        let valid = "the operator's, valid";
        let sends = Request::Send(announced.clone());
        let answer = receiver.answers(&receiver.operator, sends).await?;
        table.refused(what, valid, &answer);
        let source = Certificate(enrolled(s, &stranger, "node-1").await?);
        let answer = receiver.answers(&source, Request::Send(announced)).await?;
        table.granted(what, "the agent's of node-1, enrolled", &answer);

        let what = "agent, control: describe";
        for (who, appearing) in &appearances {
            let answer = receiver.answers(appearing, Request::Describe).await?;
            table.refused(what, who, &answer);
        }
        let operator = &receiver.operator;
        let answer = receiver.answers(operator, Request::Describe).await?;
        table.granted(what, valid, &answer);

        let enrolment = address_of(&s.cluster.leader().await?, ENROLMENT_PORT)?;
        let (no_token, made_up) = (String::new(), "made-up".to_owned());
        let nobody = &appearances[1..2];
        for (what, token, appearances) in [
            ("operator, enrolment: no token", no_token, nobody),
            ("operator, enrolment: a made-up token", made_up, nobody),
            (
                "operator, enrolment: the stranger's token",
                own_token,
                &appearances[..],
            ),
        ] {
            for (who, appearing) in appearances {
                let attempt = Attempt {
                    at: enrolment,
                    appearing: appearing.clone(),
                    asking: Request::Enrol {
                        token: token.clone(),
                        node: "node-1".to_owned(),
                        public_key: new_key()?.1,
                    },
                };
                let answer = stranger.tries(attempt).await?;
                table.refused(what, who, &answer);
            }
        }
        table.close();
        s.numbers_become("disk", &["node-1", "node-2"], &[1]).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn an_agents_certificate_is_good_for_the_announced_transfer_and_nothing_else() -> Outcome {
    Scenario::run("agents-certificate", async |s| {
        s.disk_on_node_1(&["node-2"]).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        let first = s.replicated("first").await?;
        let content = first.status.and_then(|status| status.uuid);
        let stranger = s.stranger("node-3").await?;
        let installation = s.cluster.installation().await?;
        let receiver = Receiver::of(s, &stranger, &installation).await?;
        let shown = enrolled(s, &stranger, "node-1").await?;
        assert_eq!(installation.name_in(&shown)?, installation.agent("node-1"));
        let (who, source) = ("the agent's of node-1, enrolled", Certificate(shown));
        let mut table = Table::default();

        let expected = Expected {
            what: receiver.transfer(7),
            namespace_uid: receiver.namespace_uid.clone(),
            from: "node-1".to_owned(),
        };
        for (what, asking) in [
            ("control: describe", Request::Describe),
            (
                "control: see transfers",
                Request::Received(receiver.fence.clone()),
            ),
            (
                "control: announce a transfer",
                Request::Expect(receiver.fence.clone(), expected),
            ),
        ] {
            let answer = receiver.answers(&source, asking).await?;
            table.refused(what, who, &answer);
        }

        let finished = Sent {
            transfer: receiver.has_received().await?,
            content: content.unwrap_or_default(),
            ..receiver.transfer(1)
        };
        let others = receiver.waits_for(8, "node-3").await?;
        // Each of these is announced as it should be, and sent as something else.
        let mut differing = Vec::new();
        for (number, what) in (9..).zip([
            "data: another image than announced",
            "data: another image of another namespace",
            "data: another number than announced",
            "data: another snapshot than announced",
        ]) {
            let announced = receiver.waits_for(number, "node-1").await?;
            let other = receiver.transfer(99);
            let sent = match number {
                9 => Sent {
                    image: "other".to_owned(),
                    ..announced
                },
                10 => Sent {
                    namespace: "kube-system".to_owned(),
                    ..announced
                },
                11 => Sent {
                    number: other.number,
                    ..announced
                },
                _ => Sent {
                    content: other.content,
                    ..announced
                },
            };
            differing.push((what, sent));
        }
        let sent = [
            ("data: what nobody announced", receiver.transfer(7)),
            ("data: a transfer that is finished", finished),
            ("data: what is announced from node-3", others),
        ];
        for (what, sent) in sent.into_iter().chain(differing) {
            let answer = receiver.answers(&source, Request::Send(sent)).await?;
            table.refused(what, who, &answer);
        }
        let announced = receiver.waits_for(20, "node-1").await?;
        let answer = receiver
            .answers(&source, Request::Send(announced.clone()))
            .await?;
        table.granted("data: what is announced from node-1", who, &answer);
        let answer = receiver.answers(&source, Request::Send(announced)).await?;
        table.refused("data: the same a second time", who, &answer);
        table.close();
        s.numbers_become("disk", &["node-1", "node-2"], &[1]).await
    })
    .await
}
