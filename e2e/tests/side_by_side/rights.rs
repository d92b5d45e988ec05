//! Who may do what at the API server: the product's own ServiceAccounts, and people.

use std::collections::{BTreeMap, BTreeSet};

use icbd_crds::names::GROUP;
use icbd_e2e::{Cluster, Component, Failure, Outcome, SYSTEM_NAMESPACE, Scenario};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{Api, ObjectMeta, PostParams};

/// A resource or a path, the name of the one object or nothing, and a verb.
type Right = (String, String, String);

const EXPECTED: &str = include_str!("../../expected/rights-of-the-operator.txt");

/// All that a ServiceAccount, by `<namespace>:<name>`, may do in a namespace and outside of any.
async fn rights(cluster: &Cluster, account: &str, namespace: &str) -> Outcome<BTreeSet<Right>> {
    let account = format!("--as=system:serviceaccount:{account}");
    let list = ["auth", "can-i", "--list", "--no-headers", "-n", namespace];
    let listed = cluster
        .kubectl(&[&list[..], &[account.as_str()]].concat())
        .await?;
    let mut rights = BTreeSet::new();
    for line in listed.lines().filter(|line| !line.trim().is_empty()) {
        rights.extend(rights_of(line).ok_or_else(|| {
            Failure::Unexpected(format!("kubectl auth can-i --list says {line:?}"))
        })?);
    }
    Ok(rights)
}

/// A line of the list: `resource [urls] [names] [verbs]`, the words in brackets parted by spaces.
fn rights_of(line: &str) -> Option<Vec<Right>> {
    let columns: Vec<&str> = line.split(['[', ']']).map(str::trim).collect();
    let &[resource, urls, "", names, "", verbs, ""] = columns.as_slice() else {
        return None;
    };
    let or_nothing = |column: &str| -> Vec<String> {
        let words: Vec<_> = column.split_whitespace().map(str::to_owned).collect();
        if words.is_empty() {
            vec![String::new()]
        } else {
            words
        }
    };
    let mut rights = Vec::new();
    for what in or_nothing(urls) {
        for name in or_nothing(names) {
            for verb in verbs.split_whitespace() {
                rights.push((format!("{resource}{what}"), name.clone(), verb.to_owned()));
            }
        }
    }
    Some(rights)
}

/// As the list in the repository has them: `resource [name]: verbs`, a line each, in order.
fn lines<'a>(rights: impl IntoIterator<Item = &'a Right>) -> String {
    let mut verbs: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (what, name, verb) in rights {
        let subject = if name.is_empty() {
            format!("{what}:")
        } else {
            format!("{what} [{name}]:")
        };
        verbs.entry(subject).or_default().insert(verb);
    }
    verbs
        .iter()
        .map(|(subject, verbs)| {
            let verbs: Vec<_> = verbs.iter().copied().collect();
            format!("{subject} {}\n", verbs.join(" "))
        })
        .collect()
}

/// A ServiceAccount of the test's own, to which nothing is bound.
async fn fresh_account(s: &Scenario) -> Outcome<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(s.cluster.client.clone(), &s.namespace);
    let fresh = ServiceAccount {
        metadata: ObjectMeta {
            name: Some("fresh".to_owned()),
            ..Default::default()
        },
        ..Default::default()
    };
    accounts.create(&PostParams::default(), &fresh).await?;
    Ok(format!("{}:fresh", s.namespace))
}

/// Whether a token is mounted that the API server takes: one for no other audience.
fn has_token_for_the_api_server(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes).flatten();
    let projected = volumes.flat_map(|volume| &volume.projected);
    let mut sources = projected.flat_map(|volume| volume.sources.iter().flatten());
    sources.any(|source| {
        let token = source.service_account_token.as_ref();
        token.is_some_and(|token| token.audience.is_none())
    })
}

#[test]
fn a_line_of_kubectls_list_is_understood() {
    let listed = |line| lines(&rights_of(line).unwrap_or_default());
    assert_eq!(
        listed("pods/log   []   []   [list get]"),
        "pods/log: get list\n"
    );
    assert_eq!(
        listed("leases.coordination.k8s.io   []   [a b]   [get]"),
        "leases.coordination.k8s.io [a]: get\nleases.coordination.k8s.io [b]: get\n"
    );
    assert_eq!(listed("      [/healthz]   []   [get]"), "/healthz: get\n");
    assert_eq!(rights_of("Warning: the list may be incomplete"), None);
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn the_operator_may_do_what_is_listed_and_nothing_else() -> Outcome {
    Scenario::run("rights", async |s| {
        let fresh = fresh_account(s).await?;
        let operator = format!("{SYSTEM_NAMESPACE}:{}", Component::Operator.name());
        let beyond = async |namespace: &str| -> Outcome<BTreeSet<Right>> {
            let all = rights(&s.cluster, &operator, namespace).await?;
            Ok(&all - &rights(&s.cluster, &fresh, namespace).await?)
        };
        let everywhere = beyond(&s.namespace).await?;
        let at_home = beyond(SYSTEM_NAMESPACE).await?;
        let found = format!(
            "In every namespace, and of what is in none:\n{}\nIn its own namespace besides:\n{}",
            lines(&everywhere),
            lines(at_home.difference(&everywhere)),
        );
        let is_comment = |line: &&str| line.starts_with('#');
        let expected: Vec<_> = EXPECTED.trim().lines().skip_while(is_comment).collect();
        assert!(
            expected.join("\n").trim() == found.trim(),
            "e2e/expected/rights-of-the-operator.txt does not say what there is:\n{found}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn agents_may_do_no_more_than_any_fresh_account() -> Outcome {
    Scenario::run("no-rights", async |s| {
        let fresh = fresh_account(s).await?;
        let agent = format!("{SYSTEM_NAMESPACE}:{}", Component::Agent.name());
        for namespace in [SYSTEM_NAMESPACE, &s.namespace] {
            let all = rights(&s.cluster, &agent, namespace).await?;
            let anybodys = rights(&s.cluster, &fresh, namespace).await?;
            assert!(!anybodys.is_empty(), "kubectl lists nothing at all");
            let beyond = lines(all.difference(&anybodys));
            assert!(beyond.is_empty(), "in {namespace} agents may:\n{beyond}");
        }
        for agent in s.cluster.pods(Component::Agent).await? {
            assert!(
                !has_token_for_the_api_server(&agent),
                "{:?}",
                agent.metadata.name
            );
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn viewers_see_all_kinds_and_editors_write_the_namespaced_ones() -> Outcome {
    const SEE: [&str; 3] = ["get", "list", "watch"];
    const WRITE: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];
    let cluster = Cluster::connect().await?;
    cluster.product_is_ready().await?;
    let roles: Api<ClusterRole> = Api::all(cluster.client.clone());
    for (role, writes) in [("view", false), ("edit", true), ("admin", true)] {
        let rules = roles.get(role).await?.rules.unwrap_or_default();
        let ours = rules.iter().filter(|rule| {
            let mut groups = rule.api_groups.iter().flatten();
            groups.any(|group| group == GROUP || group == "*")
        });
        let found: BTreeSet<(&str, &str)> = ours
            .flat_map(|rule| {
                let resources = rule.resources.iter().flatten();
                resources.flat_map(move |resource| {
                    let verbs = rule.verbs.iter();
                    verbs.map(move |verb| (resource.as_str(), verb.as_str()))
                })
            })
            .collect();
        let mut expected = BTreeSet::new();
        for kind in ["vmimages", "snapshots", "replicationtargets"] {
            expected.extend(SEE.map(|verb| (kind, verb)));
        }
        for kind in ["vmimages", "snapshots"].iter().filter(|_| writes) {
            expected.extend(WRITE.map(|verb| (*kind, verb)));
        }
        assert_eq!(found, expected, "ClusterRole {role}");
    }
    Ok(())
}
