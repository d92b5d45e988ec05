//! Credentials that are replaced while they are in use.

use std::sync::Arc;

use tokio::sync::watch;

use crate::credentials::Credentials;

/// What to show and whom to believe on connections that begin now. Cheap to share: all that have a
/// clone see the same.
#[derive(Clone)]
pub struct Identity(Arc<watch::Sender<Arc<Credentials>>>);

impl Identity {
    /// Begins with these.
    pub fn new(credentials: Credentials) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(credentials))))
    }

    /// What counts now.
    pub fn current(&self) -> Arc<Credentials> {
        Arc::clone(&self.0.borrow())
    }

    /// From now on these count. Connections that are open stay as they are.
    pub fn replace(&self, credentials: Credentials) {
        self.0.send_replace(Arc::new(credentials));
    }

    /// Follows what counts, from now on.
    pub fn follow(&self) -> watch::Receiver<Arc<Credentials>> {
        self.0.subscribe()
    }
}
