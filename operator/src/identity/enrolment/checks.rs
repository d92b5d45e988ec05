//! Who gets a certificate: ordered checks, each with its reason. The first that fails is what is
//! logged and counted; the caller hears nothing of it.

use icbd_net::{PublicKey, Refusal, is_name};
use icbd_wire::enrolment::{AUDIENCE, EnrolRequest};
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;

/// A projected token has some 1,200 bytes.
const LONGEST_TOKEN: usize = 8 << 10;

/// Whose tokens count.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// Namespace of the installation.
    pub(crate) namespace: String,
    /// The agents' ServiceAccount in it.
    pub(crate) service_account: String,
    /// The DaemonSet whose pods are agents.
    pub(crate) daemon_set: String,
}

/// What a request must be like before Kubernetes is asked.
pub(super) fn request(request: &EnrolRequest) -> Result<(), Refusal> {
    token_looks_like_one(request)?;
    node_looks_like_one(request)?;
    key_is_one(request)
}

fn token_looks_like_one(request: &EnrolRequest) -> Result<(), Refusal> {
    let token = &request.token;
    let refused = |why: String| Err(Refusal::new("BadToken", why));
    if token.len() > LONGEST_TOKEN {
        let length = token.len();
        return refused(format!(
            "the token has {length} bytes, more than {LONGEST_TOKEN}"
        ));
    }
    let is_base64url = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let parts: Vec<&str> = token.split('.').collect();
    let is_part = |part: &&str| !part.is_empty() && part.bytes().all(is_base64url);
    match parts.len() == 3 && parts.iter().all(is_part) {
        true => Ok(()),
        false => refused("the token is not three base64url texts with dots between".to_owned()),
    }
}

fn node_looks_like_one(request: &EnrolRequest) -> Result<(), Refusal> {
    let node = &request.node;
    match node.len() <= 253 && is_name(node) {
        true => Ok(()),
        false => {
            let node: String = node.chars().take(64).collect();
            let why = format!("{node:?} is no name of a node");
            Err(Refusal::new("BadRequest", why))
        }
    }
}

fn key_is_one(request: &EnrolRequest) -> Result<(), Refusal> {
    let key = PublicKey::from_bytes(&request.public_key);
    key.map(drop)
        .map_err(|error| Refusal::new("BadKey", error.to_string()))
}

/// What Kubernetes says of a token.
pub(super) struct Reviewed<'a> {
    pub(super) rules: &'a Rules,
    pub(super) request: &'a EnrolRequest,
    pub(super) review: &'a TokenReviewStatus,
}

/// What a token must be like.
pub(super) fn token(seen: &Reviewed<'_>) -> Result<(), Refusal> {
    is_authentic(seen)?;
    is_for_the_operator(seen)?;
    is_the_agents(seen)?;
    is_bound(seen)?;
    names_the_same_node(seen)
}

fn is_authentic(seen: &Reviewed<'_>) -> Result<(), Refusal> {
    if seen.review.authenticated == Some(true) {
        return Ok(());
    }
    let why = seen
        .review
        .error
        .as_deref()
        .unwrap_or("it does not say why");
    let why = format!("Kubernetes does not accept the token: {why}");
    // Kubernetes has no other word for it than this sentence.
    let is_audience = why.contains("audience");
    let reason = if is_audience {
        "WrongAudience"
    } else {
        "TokenRejected"
    };
    Err(Refusal::new(reason, why))
}

fn is_for_the_operator(seen: &Reviewed<'_>) -> Result<(), Refusal> {
    let audiences = seen.review.audiences.as_deref().unwrap_or_default();
    match audiences.iter().any(|audience| audience == AUDIENCE) {
        true => Ok(()),
        false => {
            let why = format!("the token is for {audiences:?} and not for {AUDIENCE:?}");
            Err(Refusal::new("WrongAudience", why))
        }
    }
}

fn is_the_agents(seen: &Reviewed<'_>) -> Result<(), Refusal> {
    let Rules {
        namespace,
        service_account,
        ..
    } = seen.rules;
    let wanted = format!("system:serviceaccount:{namespace}:{service_account}");
    let user = seen.review.user.as_ref();
    let username = user.and_then(|user| user.username.as_deref()).unwrap_or("");
    match username == wanted {
        true => Ok(()),
        false => {
            let why = format!("the token is that of {username:?} and not of {wanted:?}");
            Err(Refusal::new("WrongServiceAccount", why))
        }
    }
}

fn is_bound(seen: &Reviewed<'_>) -> Result<(), Refusal> {
    Bearer::of(seen.review).map(drop)
}

fn names_the_same_node(seen: &Reviewed<'_>) -> Result<(), Refusal> {
    let bearer = Bearer::of(seen.review)?;
    let asked = &seen.request.node;
    match bearer.node == *asked {
        true => Ok(()),
        false => {
            let Bearer { pod, node, .. } = bearer;
            let why = format!("pod {pod} asks for node {asked} and its token is for node {node}");
            Err(Refusal::new("NodeMismatch", why))
        }
    }
}

/// The pod that a token is bound to, and its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) pod: String,
    pub(super) pod_uid: String,
    pub(super) node: String,
    pub(super) node_uid: String,
}

impl Bearer {
    pub(super) fn of(review: &TokenReviewStatus) -> Result<Self, Refusal> {
        let extra = review.user.as_ref().and_then(|user| user.extra.as_ref());
        let one = |what: &str| {
            let key = format!("authentication.kubernetes.io/{what}");
            match extra.and_then(|extra| extra.get(&key)).map(Vec::as_slice) {
                Some([value]) if !value.is_empty() => Ok(value.clone()),
                _ => {
                    let why = format!(
                        "the token is not bound to a pod on a node: Kubernetes says no {key} (it does from 1.30 on)"
                    );
                    Err(Refusal::new("TokenNotBound", why))
                }
            }
        };
        Ok(Bearer {
            pod: one("pod-name")?,
            pod_uid: one("pod-uid")?,
            node: one("node-name")?,
            node_uid: one("node-uid")?,
        })
    }
}

/// What is there of a token's bearer.
pub(super) struct Found<'a> {
    pub(super) rules: &'a Rules,
    pub(super) bearer: &'a Bearer,
    pub(super) pod: Option<&'a Pod>,
    pub(super) node: Option<&'a Node>,
}

/// What pod and node must be like.
pub(super) fn bearer(seen: &Found<'_>) -> Result<(), Refusal> {
    pod_is_there(seen)?;
    pod_is_on_the_node(seen)?;
    pod_is_an_agent(seen)?;
    pod_is_not_going(seen)?;
    node_is_there(seen)
}

fn the_pod<'a>(seen: &Found<'a>) -> Result<&'a Pod, Refusal> {
    let Bearer { pod, pod_uid, .. } = seen.bearer;
    match seen.pod {
        Some(found) if found.uid().as_ref() == Some(pod_uid) => Ok(found),
        Some(_) => {
            let why = format!("pod {pod} is another than the one with uid {pod_uid}");
            Err(Refusal::new("PodGone", why))
        }
        None => Err(Refusal::new("PodGone", format!("there is no pod {pod}"))),
    }
}

fn pod_is_there(seen: &Found<'_>) -> Result<(), Refusal> {
    the_pod(seen).map(drop)
}

fn pod_is_on_the_node(seen: &Found<'_>) -> Result<(), Refusal> {
    let Bearer { pod, node, .. } = seen.bearer;
    let spec = the_pod(seen)?.spec.as_ref();
    let runs_on = spec.and_then(|spec| spec.node_name.as_deref());
    match runs_on == Some(node) {
        true => Ok(()),
        false => {
            let runs_on = runs_on.unwrap_or("none");
            let why = format!("pod {pod} is on node {runs_on} and its token is for node {node}");
            Err(Refusal::new("NodeMismatch", why))
        }
    }
}

fn pod_is_an_agent(seen: &Found<'_>) -> Result<(), Refusal> {
    let wanted = &seen.rules.daemon_set;
    let controls = the_pod(seen)?.owner_references().iter().any(|owner| {
        owner.controller == Some(true)
            && owner.api_version == "apps/v1"
            && owner.kind == "DaemonSet"
            && owner.name == *wanted
    });
    match controls {
        true => Ok(()),
        false => {
            let pod = &seen.bearer.pod;
            let why = format!("pod {pod} is not one of DaemonSet {wanted}");
            Err(Refusal::new("ForeignPod", why))
        }
    }
}

fn pod_is_not_going(seen: &Found<'_>) -> Result<(), Refusal> {
    match the_pod(seen)?.metadata.deletion_timestamp {
        None => Ok(()),
        Some(_) => {
            let why = format!("pod {} is being deleted", seen.bearer.pod);
            Err(Refusal::new("PodGone", why))
        }
    }
}

fn node_is_there(seen: &Found<'_>) -> Result<(), Refusal> {
    let Bearer { node, node_uid, .. } = seen.bearer;
    match seen.node {
        Some(found) if found.uid().as_ref() == Some(node_uid) => Ok(()),
        Some(_) => {
            let why = format!("node {node} is another than the one with uid {node_uid}");
            Err(Refusal::new("NodeGone", why))
        }
        None => Err(Refusal::new("NodeGone", format!("there is no node {node}"))),
    }
}

#[cfg(test)]
mod tests {
    use icbd_net::Key;
    use serde_json::{Value, json};

    use super::*;

    fn rules() -> Rules {
        Rules {
            namespace: "icbd-system".into(),
            service_account: "icbd-agent".into(),
            daemon_set: "icbd-agent".into(),
        }
    }

    fn good() -> EnrolRequest {
        EnrolRequest {
            token: "aGVhZA.Ym9keQ.c2ln-_".into(),
            node: "n1".into(),
            public_key: Key::generate()
                .unwrap()
                .public()
                .unwrap()
                .as_bytes()
                .to_vec(),
        }
    }

    fn reason(checked: Result<(), Refusal>) -> &'static str {
        checked.map_or_else(|refusal| refusal.reason, |()| "")
    }

    #[test]
    fn requests_for_an_identity_that_make_no_sense_are_refused_before_anybody_is_asked() {
        let changed = |change: fn(&mut EnrolRequest)| {
            let mut asked = good();
            change(&mut asked);
            reason(request(&asked))
        };
        assert_eq!(changed(|_| {}), "");
        assert_eq!(changed(|it| it.token.clear()), "BadToken");
        assert_eq!(changed(|it| it.token.push_str(".more")), "BadToken");
        assert_eq!(changed(|it| it.token.push('\n')), "BadToken");
        assert_eq!(
            changed(|it| it.token = format!("{}.b.c", "a".repeat(9000))),
            "BadToken"
        );
        assert_eq!(changed(|it| it.node = "n1/agent/n2".into()), "BadRequest");
        assert_eq!(changed(|it| it.node.clear()), "BadRequest");
        assert_eq!(changed(|it| it.node = "n".repeat(300)), "BadRequest");
        assert_eq!(changed(|it| it.public_key.truncate(64)), "BadKey");
        assert_eq!(changed(|it| it.public_key.push(0)), "BadKey");
        assert_eq!(changed(|it| it.public_key[0] = 2), "BadKey");
    }

    /// What Kubernetes says of a good token, with one thing changed.
    fn reviewed(pointer: &str, value: Value) -> &'static str {
        let mut review = json!({
            "authenticated": true,
            "audiences": ["icbd-operator"],
            "user": {
                "username": "system:serviceaccount:icbd-system:icbd-agent",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["icbd-agent-x"],
                    "authentication.kubernetes.io/pod-uid": ["p"],
                    "authentication.kubernetes.io/node-name": ["n1"],
                    "authentication.kubernetes.io/node-uid": ["u"],
                },
            },
        });
        if let Some(place) = review.pointer_mut(pointer) {
            *place = value;
        }
        let review: TokenReviewStatus = serde_json::from_value(review).unwrap();
        let (rules, request) = (rules(), good());
        let reviewed = Reviewed {
            rules: &rules,
            request: &request,
            review: &review,
        };
        reason(token(&reviewed))
    }

    #[test]
    fn only_a_token_of_an_agents_pod_for_the_operator_gives_an_identity() {
        assert_eq!(reviewed("/none", json!(0)), "");
        assert_eq!(reviewed("/authenticated", json!(false)), "TokenRejected");
        assert_eq!(reviewed("/authenticated", json!(null)), "TokenRejected");
        assert_eq!(reviewed("/audiences", json!([])), "WrongAudience");
        let audience = json!(["https://kubernetes.default.svc"]);
        assert_eq!(reviewed("/audiences", audience), "WrongAudience");
        for username in [
            "system:serviceaccount:icbd-system:default",
            "system:serviceaccount:tenant:icbd-agent",
            "icbd-agent",
            "",
        ] {
            assert_eq!(
                reviewed("/user/username", json!(username)),
                "WrongServiceAccount"
            );
        }
        assert_eq!(reviewed("/user", json!(null)), "WrongServiceAccount");
        assert_eq!(reviewed("/user/extra", json!({})), "TokenNotBound");
        let node = "/user/extra/authentication.kubernetes.io~1node-name";
        assert_eq!(reviewed(node, json!(["n1", "n2"])), "TokenNotBound");
        assert_eq!(reviewed(node, json!(["n2"])), "NodeMismatch");
    }

    /// A good pod and its node, with one thing changed.
    fn found(pointer: &str, value: Value) -> &'static str {
        let mut objects = json!({
            "pod": {
                "metadata": {
                    "name": "icbd-agent-x", "uid": "p", "deletionTimestamp": null,
                    "ownerReferences": [{
                        "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "icbd-agent",
                        "uid": "d", "controller": true,
                    }],
                },
                "spec": {"nodeName": "n1", "containers": []},
            },
            "node": {"metadata": {"name": "n1", "uid": "u"}},
        });
        if let Some(place) = objects.pointer_mut(pointer) {
            *place = value;
        }
        let object = |name: &str| objects[name].clone();
        let pod: Option<Pod> = serde_json::from_value(object("pod")).unwrap();
        let node: Option<Node> = serde_json::from_value(object("node")).unwrap();
        let rules = rules();
        let named = Bearer {
            pod: "icbd-agent-x".into(),
            pod_uid: "p".into(),
            node: "n1".into(),
            node_uid: "u".into(),
        };
        let found = Found {
            rules: &rules,
            bearer: &named,
            pod: pod.as_ref(),
            node: node.as_ref(),
        };
        reason(bearer(&found))
    }

    #[test]
    fn only_a_living_pod_of_the_daemon_set_on_its_node_gets_an_identity() {
        assert_eq!(found("/none", json!(0)), "");
        assert_eq!(found("/pod", json!(null)), "PodGone");
        assert_eq!(found("/pod/metadata/uid", json!("other")), "PodGone");
        let going = json!("2030-01-02T03:04:05Z");
        assert_eq!(found("/pod/metadata/deletionTimestamp", going), "PodGone");
        assert_eq!(found("/pod/spec/nodeName", json!("n2")), "NodeMismatch");
        assert_eq!(found("/pod/spec/nodeName", json!(null)), "NodeMismatch");
        let owner = "/pod/metadata/ownerReferences";
        assert_eq!(found(owner, json!([])), "ForeignPod");
        for (field, value) in [
            ("controller", json!(false)),
            ("kind", json!("ReplicaSet")),
            ("name", json!("other")),
            ("apiVersion", json!("example.org/v1")),
        ] {
            assert_eq!(found(&format!("{owner}/0/{field}"), value), "ForeignPod");
        }
        assert_eq!(found("/node", json!(null)), "NodeGone");
        assert_eq!(found("/node/metadata/uid", json!("other")), "NodeGone");
    }
}
