//! What the controllers have in common: the context that each reconcile gets, errors, and running a
//! queue of objects through a reconcile function.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use icbd_net::Pauses;
use icbd_planner::Refusal;
use kube::Resource;
use kube_runtime::applier;
use kube_runtime::controller::{Action, Config};
use kube_runtime::reflector::{ObjectRef, Store};
use thiserror::Error;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tracing::{debug, warn};

use crate::agents::Agents;
use crate::facts::Sight;
use crate::metrics::Metrics;
use crate::publish::Publisher;

/// What every reconcile works with.
pub(crate) struct Context {
    pub(crate) sight: Arc<Sight>,
    pub(crate) agents: Arc<Agents>,
    pub(crate) publisher: Publisher,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) retries: Retries,
}

/// The pauses of each object that has failed.
#[derive(Default)]
pub(crate) struct Retries(Mutex<HashMap<String, Pauses>>);

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(40);

impl Retries {
    fn succeeded(&self, object: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(object);
    }

    /// The pause after one more failure.
    fn failed(&self, object: String) -> Duration {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = || Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        failed.entry(object).or_insert_with(first).after_failure()
    }
}

/// Why a reconcile has to be tried again.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The API server refused or did not answer.
    #[error("the API server: {0}")]
    Kubernetes(#[from] kube::Error),
    /// An agent refused or did not answer; the status says so too.
    #[error("{}: {}", .0.reason, .0.message)]
    Agent(Refusal),
}

/// Objects that are reconciled at once.
const CONCURRENCY: u16 = 16;

/// Runs `reconcile` for every object that the queue names, each at most once at a time, again after
/// a pause when it fails.
pub(crate) fn run<K, F>(
    store: Store<K>,
    queue: UnboundedReceiver<ObjectRef<K>>,
    context: Arc<Context>,
    reconcile: fn(Arc<K>, Arc<Context>) -> F,
) -> BoxFuture<'static, ()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    F: Future<Output = Result<Action, Error>> + Send + 'static,
{
    let queue = UnboundedReceiverStream::new(queue).map(Ok::<_, std::convert::Infallible>);
    // kube's applier puts a span with the object's name around each.
    let timed = move |object: Arc<K>, context: Arc<Context>| {
        async move {
            let timer = context.metrics.reconcile_started(&K::kind(&()));
            let name = identify(object.as_ref());
            let result = reconcile(object, context.clone()).await;
            timer.ended(result.is_ok());
            if result.is_ok() {
                context.retries.succeeded(&name);
            }
            result
        }
        .boxed()
    };
    let config = Config::default().concurrency(CONCURRENCY);
    applier(timed, again, context, store, queue, config)
        .for_each(|result| async move {
            if let Err(error) = result {
                debug!(%error, "a reconcile did not run to its end");
            }
        })
        .boxed()
}

fn identify<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{} {}", K::kind(&()), ObjectRef::from_obj(object))
}

fn again<K: Resource<DynamicType = ()>>(
    object: Arc<K>,
    error: &Error,
    context: Arc<Context>,
) -> Action {
    let object = identify(object.as_ref());
    warn!(%error, object, "a reconcile is tried again");
    Action::requeue(context.retries.failed(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_has_its_own_pauses_and_success_starts_over() {
        let retries = Retries::default();
        let fails = |object: &str| retries.failed(object.to_owned());
        for _ in 0..40 {
            fails("a");
        }
        let last = fails("a");
        assert!(
            last >= LONGEST_PAUSE && last < 2 * LONGEST_PAUSE,
            "{last:?}"
        );
        assert!(fails("b") < 2 * FIRST_PAUSE);
        retries.succeeded("a");
        assert!(fails("a") < 2 * FIRST_PAUSE);
    }
}
