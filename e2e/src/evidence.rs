//! What a failed test shows, so that nobody has to run it again to know more.

use crate::{Component, SYSTEM_NAMESPACE, Scenario};

/// Prints objects, events, pools and logs.
#[allow(clippy::print_stderr)] // of a test that failed, for people
pub(crate) async fn print(scenario: &Scenario) {
    let namespace = &*scenario.namespace;
    let cluster = &scenario.cluster;
    let questions: [&[&str]; 5] = [
        &["get", "rtgt,vimg,isnap", "-n", namespace, "-o", "wide"],
        &["get", "rtgt,vimg,isnap", "-n", namespace, "-o", "yaml"],
        &["get", "events", "-A", "--sort-by=.lastTimestamp"],
        &["get", "nodes,pods", "-A", "-o", "wide"],
        &["get", "leases", "-n", SYSTEM_NAMESPACE, "-o", "yaml"],
    ];
    for question in questions {
        show(
            &format!("kubectl {}", question.join(" ")),
            cluster.kubectl(question).await,
        );
    }
    for node in ["node-1", "node-2", "node-3"] {
        let list = format!("cd {}; ls -lan . {namespace} {namespace}/*", crate::POOL);
        show(
            &format!("pool of {node}"),
            cluster.node(node).sh(&list).await,
        );
    }
    for component in [Component::Operator, Component::Agent] {
        for pod in cluster.pods(component).await.unwrap_or_default() {
            let name = pod.metadata.name.unwrap_or_default();
            for previous in ["--previous=true", "--previous=false"] {
                let logs = ["logs", "-n", SYSTEM_NAMESPACE, &name, "--tail=60", previous];
                show(
                    &format!("kubectl {}", logs.join(" ")),
                    cluster.kubectl(&logs).await,
                );
            }
        }
    }
}

#[allow(clippy::print_stderr)] // as above
fn show(what: &str, answer: crate::Outcome<String>) {
    match answer {
        Ok(text) => eprintln!("--- {what}\n{text}"),
        Err(error) => eprintln!("--- {what}: {error}"),
    }
}
