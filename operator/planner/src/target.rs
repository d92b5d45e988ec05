//! What to say of a ReplicationTarget: which of its nodes can receive, and why the others cannot.

use std::collections::BTreeMap;
use std::time::Duration;

use icbd_crds::{
    ConditionType, Reason, ReplicationTargetSpec, ReplicationTargetStatus, TargetNode,
};
use jiff::Timestamp;

use crate::conditions::{Verdict, merge, not_ready, stamp};
use crate::model::{Agent, Node, NodeName, Refusal, usable_pool};

/// All that was seen of one target.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What is wanted.
    pub spec: &'a ReplicationTargetSpec,
    /// The generation of the spec.
    pub generation: Option<i64>,
    /// What was said last.
    pub status: &'a ReplicationTargetStatus,
    /// All nodes.
    pub nodes: &'a BTreeMap<NodeName, Node>,
    /// How many images each node holds snapshots of.
    pub images: &'a BTreeMap<NodeName, u32>,
    /// What is wrong with the certificate authority, where only a person can help.
    pub ca_lost: Option<&'a str>,
}

/// For how long a node counts as wanted after its object is gone: it may have been replaced under
/// the same name, or deleted by mistake.
pub const REMEMBER_GONE: Duration = Duration::from_secs(24 * 3600);

/// The status to publish, and when to look again though nothing happens.
pub fn plan(facts: &Facts<'_>, now: Timestamp) -> (ReplicationTargetStatus, Option<Timestamp>) {
    let rows = rows(facts, now);
    let look_again = rows
        .iter()
        .filter_map(|row| row.gone_since.as_ref())
        .filter_map(|since| since.0.checked_add(REMEMBER_GONE).ok())
        .min();
    let ready = rows.iter().filter(|row| row.ready).count();
    let mut verdicts = match refusal(facts.spec, &rows, ready) {
        None => vec![Verdict::holds(
            ConditionType::Ready,
            Reason::NodesReady,
            format!("{} can receive", count(rows.len(), "node")),
        )],
        Some(refusal) => not_ready(&refusal),
    };
    if let Some(why) = facts.ca_lost {
        // What works goes on until certificates expire; a person has to act before that.
        verdicts.retain(|verdict| verdict.type_ != ConditionType::Reconciling);
        verdicts.push(Verdict::holds(ConditionType::Stalled, Reason::CALost, why));
    }
    let status = ReplicationTargetStatus {
        conditions: merge(&facts.status.conditions, verdicts, facts.generation, now),
        observed_generation: facts.generation,
        ready_nodes: Some(format!("{ready}/{}", rows.len())),
        nodes: rows,
    };
    (status, look_again)
}

fn refusal(spec: &ReplicationTargetSpec, rows: &[TargetNode], ready: usize) -> Option<Refusal> {
    if spec.suspend {
        return Some(Refusal::new(
            Reason::Suspended,
            "spec.suspend is true: no transfer is started",
        ));
    }
    if rows.is_empty() {
        return Some(Refusal::new(
            Reason::NoNodesSelected,
            "spec.nodes selects no Node: label the nodes that are to hold replicas",
        ));
    }
    if ready == rows.len() {
        return None;
    }
    let waiting: Vec<String> = rows
        .iter()
        .filter(|row| !row.ready)
        .take(5)
        .map(|row| format!("{} ({})", row.name, row.reason.as_deref().unwrap_or("")))
        .collect();
    let unnamed = rows.len() - ready - waiting.len();
    let more = if unnamed > 0 {
        format!(" and {unnamed} more")
    } else {
        String::new()
    };
    Some(Refusal::new(
        Reason::NodesNotReady,
        format!("cannot receive: {}{more}", waiting.join(", ")),
    ))
}

fn rows(facts: &Facts<'_>, now: Timestamp) -> Vec<TargetNode> {
    let previous: BTreeMap<&str, &TargetNode> = facts
        .status
        .nodes
        .iter()
        .map(|row| (row.name.as_str(), row))
        .collect();
    let selected = facts
        .nodes
        .iter()
        .filter(|(_, node)| facts.spec.nodes.matches(&node.labels));
    let mut rows: Vec<TargetNode> = selected
        .map(|(name, node)| row(name, node, facts, previous.get(name.0.as_str()).copied()))
        .collect();
    for old in previous.values() {
        if facts.nodes.contains_key(&NodeName(old.name.clone())) {
            continue;
        }
        let since = old.gone_since.clone().unwrap_or(stamp(now));
        if now.duration_since(since.0)
            < jiff::SignedDuration::from_secs(REMEMBER_GONE.as_secs() as i64)
        {
            rows.push(TargetNode {
                ready: false,
                reason: Some(Reason::NodeNotFound.to_string()),
                message: Some("the Node object is gone; the node counts for 24 hours more".into()),
                gone_since: Some(since),
                ..(*old).clone()
            });
        }
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

fn row(
    name: &NodeName,
    node: &Node,
    facts: &Facts<'_>,
    previous: Option<&TargetNode>,
) -> TargetNode {
    let refusal = usable_pool(facts.nodes, name).err();
    let pool = match &node.agent {
        Agent::Connected(pool) => Some(pool),
        Agent::Absent | Agent::Unreachable(_) => None,
    };
    let usable = pool.filter(|pool| pool.usable.is_ok());
    TargetNode {
        name: name.0.clone(),
        ready: refusal.is_none(),
        reason: refusal.as_ref().map(|r| r.reason.to_string()),
        message: refusal.map(|r| r.message),
        pool_uuid: pool
            .and_then(|pool| pool.id.as_ref())
            .map(|id| format!("{}/{}", id.fsid, id.subvolume)),
        capacity: usable.map(|pool| pool.capacity),
        free: usable.map(|pool| settled(pool.free, pool.capacity, previous.and_then(|p| p.free))),
        replicas: usable.map(|_| facts.images.get(name).copied().unwrap_or(0)),
        gone_since: None,
    }
}

/// Free space, as last published unless it has changed by more than a hundredth of the capacity:
/// a pool at work changes all the time, and nobody reads single bytes.
fn settled(free: u64, capacity: u64, published: Option<u64>) -> u64 {
    published
        .filter(|old| old.abs_diff(free) <= capacity / 100)
        .unwrap_or(free)
}

fn count(n: usize, what: &str) -> String {
    if n == 1 {
        format!("1 {what}")
    } else {
        format!("{n} {what}s")
    }
}

#[cfg(test)]
mod tests {
    use icbd_crds::condition;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::notation::{at, facts as image, target};

    fn planned(
        nodes: &str,
        previous: &ReplicationTargetStatus,
        now: i64,
    ) -> ReplicationTargetStatus {
        planned_with(None, nodes, previous, now)
    }

    fn planned_with(
        ca_lost: Option<&str>,
        nodes: &str,
        previous: &ReplicationTargetStatus,
        now: i64,
    ) -> ReplicationTargetStatus {
        let image = image(nodes);
        let spec = target("edge").spec.unwrap();
        let facts = Facts {
            spec: &spec,
            generation: Some(1),
            status: previous,
            nodes: &image.nodes,
            images: &BTreeMap::new(),
            ca_lost,
        };
        plan(&facts, at(now)).0
    }

    #[test]
    fn nodes_that_cannot_receive_are_named_with_why() {
        let status = planned("n1 | n2 away | n3 absent", &Default::default(), 0);
        assert_eq!(status.ready_nodes.as_deref(), Some("1/3"));
        let ready = condition(&status.conditions, ConditionType::Ready).unwrap();
        assert_eq!(ready.reason, "NodesNotReady");
        assert!(
            ready
                .message
                .contains("n2 (AgentUnreachable), n3 (AgentNotFound)"),
            "{ready:?}"
        );
        assert!(condition(&status.conditions, ConditionType::Reconciling).is_some());
    }

    #[test]
    fn a_node_whose_object_is_gone_counts_for_a_day_more() {
        let day = 24 * 3600;
        let before = planned("n1 | n2", &Default::default(), 0);
        let gone = planned("n1", &before, 10);
        assert_eq!(gone.ready_nodes.as_deref(), Some("1/2"));
        let later = planned("n1", &gone, day);
        assert_eq!(
            later.nodes[1].gone_since,
            Some(Time(at(10))),
            "since the first sight"
        );
        let over = planned("n1", &later, day + 11);
        assert_eq!(over.ready_nodes.as_deref(), Some("1/1"));
    }

    #[test]
    fn a_target_is_stalled_while_the_authority_of_the_identity_is_lost_and_no_longer() {
        for nodes in ["n1 | n2", "n1 | n2 away"] {
            let before = planned(nodes, &Default::default(), 0);
            let lost = planned_with(Some("Secret icbd-ca is gone"), nodes, &before, 1);
            let stalled = condition(&lost.conditions, ConditionType::Stalled).unwrap();
            assert_eq!(
                (&*stalled.status, &*stalled.reason, &*stalled.message),
                ("True", "CALost", "Secret icbd-ca is gone")
            );
            assert!(condition(&lost.conditions, ConditionType::Reconciling).is_none());
            let ready = |status: &ReplicationTargetStatus| {
                condition(&status.conditions, ConditionType::Ready).cloned()
            };
            assert_eq!(ready(&lost), ready(&before));
            let over = planned(nodes, &lost, 2);
            assert!(condition(&over.conditions, ConditionType::Stalled).is_none());
        }
    }

    #[test]
    fn the_same_sight_gives_the_same_status() {
        let first = planned("n1 | n2 away", &Default::default(), 0);
        assert_eq!(planned("n1 | n2 away", &first, 1000), first);
    }

    #[test]
    fn free_space_that_hardly_moved_is_not_told_again() {
        assert_eq!(settled(1_000, 100_000, Some(1_900)), 1_900);
        assert_eq!(settled(1_000, 100_000, Some(2_100)), 1_000);
    }
}
