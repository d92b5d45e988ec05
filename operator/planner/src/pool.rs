//! Whether a node's pool is to be marked as this installation's.

use icbd_crds::Reason;

use crate::model::{Agent, Node, PoolId};

/// Marks one pool, and no other that may have been mounted since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitPool {
    /// The pool that was looked at.
    pub id: PoolId,
    /// A person said that it may be used though it has content.
    pub allow_non_empty: bool,
    /// A person said that it may be taken over from this installation.
    pub take_over_from: Option<String>,
}

/// An empty pool without a marker is initialised unasked; one with content, or of another
/// installation, only when the Node says so, and then only from the installation that it names.
pub fn plan(node: &Node) -> Option<InitPool> {
    let Agent::Connected(pool) = &node.agent else {
        return None;
    };
    let refusal = pool.usable.as_ref().err()?;
    let init = InitPool {
        id: pool.id.clone()?,
        allow_non_empty: node.init_pool,
        take_over_from: None,
    };
    match refusal.reason {
        Reason::PoolNotInitialised if pool.empty || node.init_pool => Some(init),
        Reason::PoolForeign
            if node.take_over_pool.is_some() && node.take_over_pool == pool.installation =>
        {
            Some(InitPool {
                allow_non_empty: true,
                take_over_from: pool.installation.clone(),
                ..init
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Pool, Refusal};
    use crate::notation::{node, ready_pool};

    fn pool(reason: Reason, empty: bool, owner: Option<&str>) -> Node {
        node(Agent::Connected(Pool {
            usable: Err(Refusal::new(reason, "")),
            empty,
            installation: owner.map(str::to_owned),
            ..ready_pool()
        }))
    }

    #[test]
    fn an_empty_pool_is_initialised_and_one_with_content_only_with_consent() {
        assert!(plan(&pool(Reason::PoolNotInitialised, true, None)).is_some());
        let mut used = pool(Reason::PoolNotInitialised, false, None);
        assert_eq!(plan(&used), None);
        used.init_pool = true;
        assert!(plan(&used).unwrap().allow_non_empty);
    }

    #[test]
    fn a_foreign_pool_is_taken_only_from_the_installation_that_consent_names() {
        let mut foreign = pool(Reason::PoolForeign, false, Some("there"));
        foreign.init_pool = true;
        assert_eq!(plan(&foreign), None);
        foreign.take_over_pool = Some("elsewhere".into());
        assert_eq!(plan(&foreign), None);
        foreign.take_over_pool = Some("there".into());
        assert_eq!(
            plan(&foreign).unwrap().take_over_from.as_deref(),
            Some("there")
        );
    }

    #[test]
    fn a_pool_that_is_ready_or_not_there_is_left_alone() {
        assert_eq!(plan(&node(Agent::Connected(ready_pool()))), None);
        assert_eq!(plan(&pool(Reason::PoolNotMounted, true, None)), None);
        assert_eq!(plan(&node(Agent::Absent)), None);
    }
}
