//! What this agent is to other agents: its name, the certificate that proves it, and whose
//! certificates it believes. How a connection uses them is `net`'s business; which peer may do what,
//! that of `transfer`.

mod credentials;
mod name;
pub(crate) mod throwaway;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result, blocking};
use credentials::Pem;

pub(crate) use credentials::Credentials;
pub(crate) use name::AgentName;

/// An agent's identity, which may be renewed while the agent runs.
pub(crate) struct Identity {
    node: String,
    /// Where it is renewed; `None`: never.
    dir: Option<PathBuf>,
    current: Mutex<Arc<Credentials>>,
}

impl Identity {
    /// The identity of the agent on `node`, from the files `tls.crt`, `tls.key` and `ca.crt`.
    ///
    /// # Errors
    /// A file is missing or is not what it should be; the certificate is another node's.
    pub(crate) fn load(dir: &Path, node: &str) -> Result<Self> {
        let doing = format!("use the identity in {}", dir.display());
        let credentials = Pem::read(dir)
            .and_then(|pem| Credentials::new(pem, node))
            .map_err(unusable(doing))?;
        Ok(Self::of(node, Some(dir.to_owned()), credentials))
    }

    fn of(node: &str, dir: Option<PathBuf>, credentials: Credentials) -> Self {
        Self {
            node: node.to_owned(),
            dir,
            current: Mutex::new(Arc::new(credentials)),
        }
    }

    /// What to show and believe on a connection that begins now. Files that have changed are taken
    /// into use by this; while they cannot be used, the last that could stay.
    pub(crate) async fn credentials(self: &Arc<Self>) -> Arc<Credentials> {
        let this = Arc::clone(self);
        if let Err(error) = blocking(move || this.renew()).await {
            tracing::warn!(%error, "this agent keeps its old identity");
        }
        self.current()
    }

    fn current(&self) -> Arc<Credentials> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    fn renew(&self) -> Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let doing = || format!("use the renewed identity in {}", dir.display());
        let pem = Pem::read(dir).map_err(unusable(doing()))?;
        if pem == self.current().pem {
            return Ok(());
        }
        let credentials = Credentials::new(pem, &self.node).map_err(unusable(doing()))?;
        tracing::info!(name = %credentials.name, "the identity was renewed");
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(credentials);
        Ok(())
    }
}

fn unusable<E>(doing: String) -> impl FnOnce(E) -> Error
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    |error| Error::io(doing)(std::io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The identity of a node, as a directory.
    fn write(dir: &Path, identity: &Identity) {
        let credentials = identity.current();
        let Pem {
            chain,
            key,
            authorities,
        } = &credentials.pem;
        fs::write(dir.join("tls.crt"), chain).unwrap();
        fs::write(dir.join("tls.key"), key).unwrap();
        fs::write(dir.join("ca.crt"), authorities).unwrap();
    }

    fn unusable(dir: &Path) -> String {
        match Identity::load(dir, "node") {
            Ok(_) => panic!("this is no identity"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_no_identity_of_this_node_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let [this, other] = throwaway::pair(["node", "other"]).unwrap();
        assert!(unusable(dir.path()).contains("cannot read tls.crt"));
        write(dir.path(), &other);
        let message = unusable(dir.path());
        assert!(
            message.contains("spiffe://standalone/agent/other") && message.contains("\"node\""),
            "{message}"
        );
        write(dir.path(), &this);
        Identity::load(dir.path(), "node").unwrap();
        fs::write(dir.path().join("tls.key"), &other.current().pem.key).unwrap();
        assert!(unusable(dir.path()).contains("keys may not be consistent"));
        for (file, wrong, reason) in [
            ("tls.key", "", "tls.key is not PEM"),
            ("tls.crt", "", "tls.crt holds no certificate"),
            ("ca.crt", "no PEM at all", "ca.crt holds no certificate"),
        ] {
            write(dir.path(), &this);
            fs::write(dir.path().join(file), wrong).unwrap();
            let message = unusable(dir.path());
            assert!(message.contains(reason), "{message}");
        }
    }

    #[tokio::test]
    async fn an_identity_is_renewed_and_kept_while_the_new_one_is_not_whole() {
        let dir = tempfile::tempdir().unwrap();
        let [old, other] = throwaway::pair(["node", "other"]).unwrap();
        write(dir.path(), &old);
        let identity = Arc::new(Identity::load(dir.path(), "node").unwrap());
        let first = identity.credentials().await;
        assert!(Arc::ptr_eq(&first, &identity.credentials().await));

        let [new, _] = throwaway::pair(["node", "other"]).unwrap();
        fs::write(dir.path().join("tls.crt"), &new.current().pem.chain).unwrap();
        assert!(Arc::ptr_eq(&first, &identity.credentials().await));
        write(dir.path(), &other);
        assert!(Arc::ptr_eq(&first, &identity.credentials().await));
        write(dir.path(), &new);
        assert!(identity.credentials().await.pem == new.current().pem);
        fs::remove_file(dir.path().join("ca.crt")).unwrap();
        assert!(identity.credentials().await.pem == new.current().pem);
    }
}
