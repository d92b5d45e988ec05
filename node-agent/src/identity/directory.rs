//! An identity in files that somebody else keeps: for hosts without Kubernetes.

use std::fs;
use std::path::PathBuf;

use icbd_net::{Credentials, Identity, Pem};
use tokio::time::sleep;

use super::{Obstacle, READ_AGAIN, renewed, unusable};
use crate::error::{Error, Result, blocking};

/// A directory with the files `tls.crt`, `tls.key` and `ca.crt`.
#[derive(Clone)]
pub(crate) struct Directory {
    pub(crate) dir: PathBuf,
    /// Whose identity it is to be.
    pub(crate) node: String,
}

impl Directory {
    /// The credentials in it.
    ///
    /// # Errors
    /// A file is missing or is not what it should be; the certificate is another's.
    pub(super) async fn read(&self) -> Result<Credentials> {
        let this = self.clone();
        blocking(move || this.credentials(&this.pem()?)).await
    }

    /// Takes what has changed in it into use. While that cannot be used, the last that could stays.
    pub(super) async fn keep(&self, identity: &Identity) {
        let mut obstacle = Obstacle::default();
        loop {
            sleep(READ_AGAIN).await;
            let (this, used) = (self.clone(), identity.current());
            let read = blocking(move || {
                let pem = this.pem()?;
                let changed = pem != *used.pem();
                changed.then(|| this.credentials(&pem)).transpose()
            });
            match read.await {
                Ok(None) => obstacle.gone(),
                Ok(Some(credentials)) => {
                    renewed(&credentials);
                    identity.replace(credentials);
                    obstacle.gone();
                }
                Err(error) => obstacle.met(&error, "this agent keeps its old identity"),
            }
        }
    }

    fn pem(&self) -> Result<Pem> {
        let read = |file| {
            let path = self.dir.join(file);
            fs::read(&path).map_err(Error::io(format!("read {}", path.display())))
        };
        Ok(Pem {
            chain: read("tls.crt")?,
            key: read("tls.key")?,
            authorities: read("ca.crt")?,
        })
    }

    fn credentials(&self, pem: &Pem) -> Result<Credentials> {
        let doing = || format!("use the identity in {}", self.dir.display());
        let credentials = Credentials::new(pem.clone()).map_err(unusable(doing()))?;
        let name = credentials.name();
        if name.node() != Some(&self.node) {
            let node = &self.node;
            let why = format!("it is that of {name}, and this node is {node:?}");
            return Err(unusable(doing())(why));
        }
        Ok(credentials)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::throwaway;
    use super::*;

    fn write(
        dir: &Path,
        Pem {
            chain,
            key,
            authorities,
        }: &Pem,
    ) {
        fs::write(dir.join("tls.crt"), chain).unwrap();
        fs::write(dir.join("tls.key"), key).unwrap();
        fs::write(dir.join("ca.crt"), authorities).unwrap();
    }

    #[tokio::test]
    async fn what_is_no_identity_of_this_node_is_refused_with_the_reason() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        let directory = Directory {
            dir: dir.to_owned(),
            node: "node".to_owned(),
        };
        let unusable = async || match directory.read().await {
            Ok(_) => panic!("this is no identity"),
            Err(error) => error.to_string(),
        };
        let [this, other] = throwaway::pair(["node", "other"]).unwrap();
        let [this, other] = [this.current(), other.current()];
        assert!(unusable().await.contains("tls.crt"));
        write(dir, other.pem());
        let message = unusable().await;
        assert!(
            message.contains("spiffe://standalone/agent/other") && message.contains("\"node\""),
            "{message}"
        );
        write(dir, this.pem());
        directory.read().await.unwrap();
        fs::write(dir.join("tls.key"), &other.pem().key).unwrap();
        let message = unusable().await;
        assert!(message.contains("keys may not be consistent"), "{message}");
        for (file, wrong, reason) in [
            ("tls.key", "", "tls.key is not PEM"),
            ("tls.crt", "", "tls.crt holds no certificate"),
            ("ca.crt", "no PEM at all", "ca.crt: it holds no certificate"),
        ] {
            write(dir, this.pem());
            fs::write(dir.join(file), wrong).unwrap();
            let message = unusable().await;
            assert!(message.contains(reason), "{message}");
        }
    }
}
