//! Label selectors: Kubernetes' own form and meaning, with bounds, so that rules about them stay
//! within the API server's cost limit.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Selects objects by their labels. All of `matchLabels` and all of `matchExpressions` must hold;
/// an empty selector selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels that must be present with these values. Example: `{icbd.io/site: edge}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements on labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub match_expressions: Vec<Requirement>,
}

/// One requirement on one label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.operator in ['In', 'NotIn'] ? (has(self.values) && self.values.size() > 0) : (!has(self.values) || self.values.size() == 0)")
    .message("In and NotIn need at least one of values; Exists and DoesNotExist take none"))]
pub struct Requirement {
    /// The label's key.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How key and values relate.
    pub operator: Operator,
    /// The values for In and NotIn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 63)))]
    pub values: Vec<String>,
}

/// How a requirement's key and values relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// The label has one of the values.
    In,
    /// The label has none of the values, or is absent.
    NotIn,
    /// The label is present.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self
                .match_expressions
                .iter()
                .all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn selects(selector: &str, pairs: &[(&str, &str)]) -> bool {
        crate::yaml::from_str::<LabelSelector>(selector)
            .unwrap()
            .matches(&labels(pairs))
    }

    #[test]
    fn an_empty_selector_selects_everything() {
        assert!(selects("{}", &[]));
    }

    #[test]
    fn labels_and_expressions_must_all_hold() {
        let selector =
            "{matchLabels: {site: edge}, matchExpressions: [{key: gpu, operator: DoesNotExist}]}";
        assert!(selects(selector, &[("site", "edge")]));
        assert!(!selects(selector, &[("site", "edge"), ("gpu", "")]));
        assert!(!selects(selector, &[("site", "core")]));
    }

    #[test]
    fn an_absent_label_is_not_in_any_set() {
        let not_in = "{matchExpressions: [{key: site, operator: NotIn, values: [edge]}]}";
        assert!(selects(not_in, &[]));
        assert!(!selects(not_in, &[("site", "edge")]));
        let within = "{matchExpressions: [{key: site, operator: In, values: [edge]}]}";
        assert!(!selects(within, &[]));
        assert!(selects(within, &[("site", "edge")]));
    }
}
