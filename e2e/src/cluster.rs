//! The cluster as its user sees it: a client, kubectl, helm; and as its owner does: power.

use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::command::{Output, run, run_with_input, succeeded};
use crate::{Failure, Node, Outcome};

/// Where the product is installed.
pub const SYSTEM_NAMESPACE: &str = "icbd-system";

/// A running cluster.
pub struct Cluster {
    script: PathBuf,
    name: String,
    programs: PathBuf,
    kubeconfig: PathBuf,
    /// A client with the administrator's rights.
    pub client: Client,
}

impl Cluster {
    /// Finds the cluster that `hack/test` started.
    ///
    /// # Errors
    /// When it is down.
    pub async fn connect() -> Outcome<Cluster> {
        let name = std::env::var("ICBD_E2E_CLUSTER").unwrap_or_else(|_| "test".to_owned());
        let script = checkout().join("hack/cluster");
        let ask = async |question| {
            let answer = run(&script, &["--name", &name, question]).await?;
            Ok::<_, Failure>(PathBuf::from(answer.trim()))
        };
        let kubeconfig = ask("kubeconfig").await?;
        let programs = ask("bin").await?;
        let read = Kubeconfig::read_from(&kubeconfig)?;
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        Ok(Cluster {
            script,
            name,
            programs,
            kubeconfig,
            client,
        })
    }

    /// Runs kubectl and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub async fn kubectl(&self, arguments: &[&str]) -> Outcome<String> {
        self.kubectl_with(arguments, "").await
    }

    /// Runs kubectl with `input` to read, and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> Outcome<String> {
        let output = self.try_kubectl(arguments, input).await?;
        succeeded("kubectl".as_ref(), arguments, output)
    }

    /// `kubectl apply` of a manifest, whether it is taken or refused.
    ///
    /// # Errors
    /// When kubectl cannot be run.
    pub async fn kubectl_apply(&self, manifest: &str) -> Outcome<Output> {
        self.try_kubectl(&["apply", "-f", "-"], manifest).await
    }

    async fn try_kubectl(&self, arguments: &[&str], input: &str) -> Outcome<Output> {
        let kubeconfig = self.kubeconfig.to_string_lossy();
        let arguments = [&["--kubeconfig", &kubeconfig], arguments].concat();
        run_with_input(self.programs.join("kubectl").as_os_str(), &arguments, input).await
    }

    /// Runs helm in the product's namespace, with `input` to read, and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub async fn helm(&self, arguments: &[&str], input: &str) -> Outcome<String> {
        let kubeconfig = self.kubeconfig.to_string_lossy();
        let place = ["--kubeconfig", &kubeconfig, "--namespace", SYSTEM_NAMESPACE];
        let arguments = [&place[..], arguments].concat();
        let program = self.programs.join("helm");
        let output = run_with_input(program.as_os_str(), &arguments, input).await?;
        succeeded("helm".as_ref(), &arguments, output)
    }

    /// The directory of the chart.
    pub fn chart(&self) -> String {
        checkout()
            .join("charts/icbd")
            .to_string_lossy()
            .into_owned()
    }

    /// A node, by its name.
    pub fn node<'a>(&'a self, name: &'a str) -> Node<'a> {
        Node {
            cluster: self,
            name,
        }
    }

    /// Cuts a node's power.
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn stop(&self, node: &str) -> Outcome {
        self.hack(&["stop", node]).await.map(drop)
    }

    /// Gives a node power again, and waits until it is Ready.
    ///
    /// # Errors
    /// When it does not become Ready.
    pub async fn start(&self, node: &str) -> Outcome {
        self.hack(&["start", node]).await.map(drop)
    }

    /// The directory of the cluster's disks and logs, on this machine and in every node.
    ///
    /// # Errors
    /// When the cluster has gone.
    pub async fn state(&self) -> Outcome<PathBuf> {
        Ok(PathBuf::from(self.hack(&["state"]).await?.trim()))
    }

    /// `hack/cluster` with this cluster's name.
    pub(crate) async fn hack(&self, arguments: &[&str]) -> Outcome<String> {
        let arguments = [&["--name", &self.name], arguments].concat();
        run(&self.script, &arguments).await
    }

    /// `hack/cluster`, to be run otherwise than to its end.
    pub(crate) fn hack_command(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.script);
        command.args(["--name", &self.name]);
        command
    }
}

/// The root of the checkout that these tests are of.
pub(crate) fn checkout() -> &'static Path {
    // A crate's directory always has a parent.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
}
