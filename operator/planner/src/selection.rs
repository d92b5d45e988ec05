//! Which nodes are to hold a replica of an image, and within which limits.

use std::collections::BTreeMap;

use icbd_crds::{FreeSpace, Reason, ReplicationTargetSpec, parse_bytes};

use crate::model::{ImageFacts, NodeName, Refusal, TargetFacts};

/// The replicas that an image wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// By node; never the primary.
    pub replicas: BTreeMap<NodeName, Limits>,
    /// Targets that cannot be used, each with why.
    pub refusals: Vec<Refusal>,
}

/// Within which limits a node may receive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The target whose bandwidth holds: the lowest, where several select the node.
    pub bandwidth: Option<(String, u64)>,
    /// Transfers that the node receives at once.
    pub max_concurrent: u32,
    /// What must stay free: the most that any target asks for, by the node's capacity.
    pub min_free: Vec<FreeSpace>,
    /// The target whose quota holds for the namespace: the smallest, where several select the node.
    pub quota: Option<(String, u64)>,
    /// Set while every target that selects the node is suspended.
    pub suspended: bool,
}

impl Limits {
    /// Bytes that must stay free in a pool of this capacity.
    pub fn min_free_of(&self, capacity: u64) -> u64 {
        self.min_free
            .iter()
            .map(|share| share.of(capacity))
            .max()
            .unwrap_or(0)
    }
}

/// Selects. A node that several targets select is one replica, and the stricter limits hold.
pub fn select(facts: &ImageFacts) -> Selection {
    let mut selection = Selection::default();
    for target in &facts.targets {
        match admitted(target, facts) {
            Ok(spec) => add(&mut selection.replicas, target, spec, facts),
            Err(refusal) => selection.refusals.push(refusal),
        }
    }
    selection.replicas.remove(&facts.primary());
    selection
}

fn admitted<'a>(
    target: &'a TargetFacts,
    facts: &ImageFacts,
) -> Result<&'a ReplicationTargetSpec, Refusal> {
    let name = &target.name;
    let spec = target.spec.as_deref().ok_or_else(|| {
        Refusal::new(
            Reason::TargetNotFound,
            format!("there is no ReplicationTarget {name}: waiting for it to be applied"),
        )
    })?;
    if !spec.allowed_namespaces.matches(&facts.namespace.labels) {
        return Err(Refusal::new(
            Reason::NamespaceNotAllowed,
            format!(
                "ReplicationTarget {name} does not allow namespace {}: its allowedNamespaces must select the Namespace's labels",
                facts.key.namespace
            ),
        ));
    }
    // A primary without a Node object sends nothing; that it lacks one is said elsewhere.
    let primary = facts.primary();
    let labels = facts.nodes.get(&primary).map(|node| &node.labels);
    if let (Some(allowed), Some(labels)) = (&spec.allowed_primaries, labels)
        && !allowed.matches(labels)
    {
        return Err(Refusal::new(
            Reason::PrimaryNotAllowed,
            format!(
                "ReplicationTarget {name} does not allow the primary {primary}: its allowedPrimaries must select the Node's labels",
            ),
        ));
    }
    Ok(spec)
}

fn add(
    replicas: &mut BTreeMap<NodeName, Limits>,
    target: &TargetFacts,
    spec: &ReplicationTargetSpec,
    facts: &ImageFacts,
) {
    let matching = facts
        .nodes
        .iter()
        .filter(|(_, node)| spec.nodes.matches(&node.labels))
        .map(|(name, _)| name);
    let gone = target
        .gone
        .iter()
        .filter(|name| !facts.nodes.contains_key(name));
    for node in matching.chain(gone) {
        let limits = limits(target, spec);
        replicas
            .entry(node.clone())
            .and_modify(|other| *other = stricter(other.clone(), limits.clone()))
            .or_insert(limits);
    }
}

// The schema admits hardly any sizes but those that parse (within 64 bits); of one that does not,
// the safe reading is the strictest.
fn limits(target: &TargetFacts, spec: &ReplicationTargetSpec) -> Limits {
    let bandwidth = spec
        .bandwidth
        .as_deref()
        .map(|text| parse_bytes(text).unwrap_or(1024));
    let quota = spec
        .namespace_quota
        .as_deref()
        .map(|text| parse_bytes(text).unwrap_or(0));
    Limits {
        bandwidth: bandwidth.map(|rate| (target.name.clone(), rate)),
        max_concurrent: spec.max_concurrent_transfers.max(1),
        min_free: vec![spec.min_free.parse().unwrap_or(FreeSpace::Percent(99))],
        quota: quota.map(|bytes| (target.name.clone(), bytes)),
        suspended: spec.suspend,
    }
}

fn stricter(a: Limits, b: Limits) -> Limits {
    let lower = |sizes: [Option<(String, u64)>; 2]| {
        sizes.into_iter().flatten().min_by_key(|(_, size)| *size)
    };
    Limits {
        bandwidth: lower([a.bandwidth, b.bandwidth]),
        max_concurrent: a.max_concurrent.min(b.max_concurrent),
        min_free: [a.min_free, b.min_free].concat(),
        quota: lower([a.quota, b.quota]),
        suspended: a.suspended && b.suspended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notation::{facts, target};

    #[test]
    fn every_matching_node_is_wanted_ready_or_not_and_never_the_primary() {
        let facts = facts("n1 | n2 | n3 away").with_targets([target("edge")]);
        let selection = select(&facts);
        let nodes: Vec<_> = selection.replicas.keys().map(|n| n.0.as_str()).collect();
        assert_eq!(nodes, ["n2", "n3"]);
    }

    #[test]
    fn of_two_targets_the_stricter_limits_hold() {
        let slow = target("slow")
            .bandwidth("1Mi")
            .max_concurrent(4)
            .min_free("20Gi")
            .quota("2Gi");
        let wide = target("wide")
            .max_concurrent(1)
            .min_free("10%")
            .quota("1Gi");
        let selection = select(&facts("n1 | n2").with_targets([slow, wide]));
        let limits = &selection.replicas[&NodeName::from("n2")];
        assert_eq!(limits.bandwidth, Some(("slow".to_owned(), 1 << 20)));
        assert_eq!(limits.max_concurrent, 1);
        assert_eq!(limits.quota, Some(("wide".to_owned(), 1 << 30)));
        assert_eq!(limits.min_free_of(100 << 30), 20 << 30);
        assert_eq!(limits.min_free_of(1 << 40), (1 << 40) / 10);
    }

    #[test]
    fn a_missing_target_and_one_that_does_not_allow_the_namespace_are_named() {
        let missing = target("nowhere").missing();
        let closed = target("closed").allows("team", "a");
        let selection = select(&facts("n1 | n2").with_targets([missing, closed]));
        assert!(selection.replicas.is_empty());
        let reasons: Vec<_> = selection.refusals.iter().map(|r| r.reason).collect();
        assert_eq!(
            reasons,
            [Reason::TargetNotFound, Reason::NamespaceNotAllowed]
        );
        assert!(selection.refusals[0].message.contains("nowhere"));
    }

    #[test]
    fn a_target_takes_images_of_the_primaries_that_it_allows_only() {
        let trusting = || target("edge").allows_primary("trusted", "true");
        let stranger = facts("n1 | n2").with_targets([trusting()]);
        let selection = select(&stranger);
        assert!(selection.replicas.is_empty());
        assert_eq!(selection.refusals[0].reason, Reason::PrimaryNotAllowed);
        let message = &selection.refusals[0].message;
        assert!(
            message.contains("edge") && message.contains("n1"),
            "{message}"
        );

        // Of the nodes that hold replicas nothing is asked.
        let trusted = facts("n1 | n2")
            .labelled("n1", "trusted", "true")
            .with_targets([trusting()]);
        assert!(
            select(&trusted)
                .replicas
                .contains_key(&NodeName::from("n2"))
        );
        assert!(select(&trusted).refusals.is_empty());

        // Another target does not suffer.
        let both = stranger.with_targets([trusting(), target("open")]);
        let selection = select(&both);
        assert!(selection.replicas.contains_key(&NodeName::from("n2")));
        assert_eq!(selection.refusals.len(), 1);
    }

    #[test]
    fn a_primary_whose_node_object_is_gone_is_not_called_forbidden() {
        let mut facts =
            facts("n1 | n2").with_targets([target("edge").allows_primary("trusted", "true")]);
        std::sync::Arc::make_mut(&mut facts.nodes).remove(&NodeName::from("n1"));
        assert!(select(&facts).refusals.is_empty());
    }

    #[test]
    fn a_node_whose_object_is_gone_still_counts_while_its_target_remembers_it() {
        let remembering = target("edge").gone("n9");
        let selection = select(&facts("n1 | n2").with_targets([remembering]));
        assert!(selection.replicas.contains_key(&NodeName::from("n9")));
    }

    #[test]
    fn one_target_at_work_is_enough_for_a_node_that_two_select() {
        let facts = facts("n1 | n2").with_targets([target("a").suspended(), target("b")]);
        assert!(!select(&facts).replicas[&NodeName::from("n2")].suspended);
    }
}
