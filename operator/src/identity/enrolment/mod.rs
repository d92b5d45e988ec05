//! The enrolment port: where agents get their certificates, at every replica, leader or not.
//!
//! Who asks is a stranger until Kubernetes has vouched for its token. What a stranger can cost is
//! bounded: connections by the door, requests by [`rate`], questions to Kubernetes by a few at a time.
//! Of why it is refused it hears one sentence, always the same.

mod checks;
mod rate;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use icbd_net::door::{Caller, Door, Limits, Share};
use icbd_net::{Name, PublicKey, Refusal, Refused, Validity, grpc, tls};
use icbd_wire::enrolment::enrolment_server::{Enrolment, EnrolmentServer};
use icbd_wire::enrolment::{AUDIENCE, EnrolRequest, EnrolResponse};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::info;

use super::keeper::Standing;
use super::own::{Own, within};
use checks::{Bearer, Found, Reviewed};
use rate::{Pace, Rate};

pub(crate) use checks::Rules;

/// What logs and metrics call the port.
const PORT: &str = "enrolment";

/// An agent comes once a day, stays for one call, and never has two connections; but a proxy may
/// make many agents come from one address.
const DOOR: Limits = Limits {
    greeting: Share { all: 64, each: 8 },
    connected: Share { all: 256, each: 16 },
    within: Duration::from_secs(10),
    lasting: Some(Duration::from_secs(40)),
};

/// How often is listened to all, and to one address.
const ALL: Pace = Pace {
    burst: 300,
    every: Duration::from_millis(40),
};
const EACH: Pace = Pace {
    burst: 20,
    every: Duration::from_secs(2),
};
const ADDRESSES: usize = 4096;

/// How many tokens are under review at a time.
const REVIEWS: usize = 8;
/// How long a call may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// How long a connection is kept: those who come once have no use for more.
const CONNECTION: Duration = Duration::from_secs(30);
const LARGEST_MESSAGE: usize = 32 << 10;

/// All that a stranger hears.
const REFUSED: &str = "no certificate is given; the operator's log says why";

/// How often an Event tells of the same reason again.
const EVENT_AGAIN: Duration = Duration::from_secs(60);

/// Gives certificates.
pub(super) struct Office {
    pub(super) client: Client,
    pub(super) rules: Rules,
    pub(super) trust_domain: String,
    /// How long certificates are valid.
    pub(super) lifetime: Duration,
    pub(super) standing: watch::Receiver<Standing>,
    /// Counts and logs calls that were refused.
    pub(super) refused: Refused,
    /// Is told of a refusal that a person should hear of.
    pub(super) news: Box<dyn Fn(&'static str, String) + Send + Sync>,
}

/// Listens, and serves until `closing`. Nobody is let in before the operator has a certificate.
pub(super) async fn serve(
    office: Office,
    listener: TcpListener,
    own: Own,
    refused: Arc<Refused>,
    closing: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let door = Door::new(listener, PORT, DOOR, refused);
    let guests = door.guests(closing.clone(), move |tcp| {
        let own = own.clone();
        async move {
            let identity = own.identity(Duration::ZERO).await.ok_or_else(|| {
                Refusal::new("NoAuthority", "the operator has no certificate of its own")
            })?;
            let stream = tls::accept_unproved(tcp, &identity.current(), grpc::PROTOCOL).await?;
            Ok((stream, None))
        }
    });
    let service = EnrolmentServer::new(Desk::new(office))
        .max_decoding_message_size(LARGEST_MESSAGE)
        .max_encoding_message_size(LARGEST_MESSAGE);
    tonic::transport::Server::builder()
        .timeout(ANSWER_WITHIN)
        .concurrency_limit_per_connection(2)
        .max_concurrent_streams(2)
        .max_connection_age(CONNECTION)
        .max_connection_age_grace(ANSWER_WITHIN / 4)
        .initial_stream_window_size(2 * LARGEST_MESSAGE as u32)
        .initial_connection_window_size(4 * LARGEST_MESSAGE as u32)
        .http2_max_header_list_size(16 << 10)
        .add_service(service)
        .serve_with_incoming_shutdown(guests, closing.cancelled_owned())
        .await
}

/// Why a call ends without a certificate, besides that the caller is not one of us.
enum Ended {
    Refused(Refusal),
    TooFast(Refusal),
    Unavailable(Refusal),
}

impl From<Refusal> for Ended {
    fn from(refusal: Refusal) -> Self {
        Ended::Refused(refusal)
    }
}

struct Desk {
    office: Office,
    rate: Rate,
    reviews: Semaphore,
    told: Mutex<HashMap<&'static str, Instant>>,
}

#[tonic::async_trait]
impl Enrolment for Desk {
    async fn enrol(
        &self,
        request: Request<EnrolRequest>,
    ) -> Result<Response<EnrolResponse>, Status> {
        let Some(caller) = request.extensions().get::<Caller>() else {
            return Err(Status::internal("the caller has no address"));
        };
        let peer = caller.address;
        let answer = self.answer(peer, &request.into_inner()).await;
        let (refusal, status) = match answer {
            Ok(chain) => return Ok(Response::new(EnrolResponse { chain })),
            Err(Ended::Refused(refusal)) => (refusal, Status::permission_denied(REFUSED)),
            Err(Ended::TooFast(refusal)) => {
                let status = Status::resource_exhausted("too many ask; ask again later");
                (refusal, status)
            }
            Err(Ended::Unavailable(refusal)) => {
                let status =
                    Status::unavailable("no certificate can be given now; ask again later");
                (refusal, status)
            }
        };
        self.office.refused.tell(PORT, peer, &refusal);
        self.tell_people(peer, refusal);
        Err(status)
    }
}

impl Desk {
    fn new(office: Office) -> Self {
        Desk {
            office,
            rate: Rate::new(ALL, EACH, ADDRESSES),
            reviews: Semaphore::new(REVIEWS),
            told: Mutex::default(),
        }
    }

    /// Checks, cheapest first, and gives a certificate.
    async fn answer(&self, peer: SocketAddr, request: &EnrolRequest) -> Result<String, Ended> {
        let Office {
            rules, standing, ..
        } = &self.office;
        if !self.rate.admits(peer.ip(), Instant::now()) {
            let why = "it asks too often, or too many ask";
            return Err(Ended::TooFast(Refusal::new("TooFast", why)));
        }
        checks::request(request)?;
        if standing.borrow().signer.is_none() {
            return Err(no_authority());
        }
        let review = self.review(&request.token).await?;
        checks::token(&Reviewed {
            rules,
            request,
            review: &review,
        })?;
        let bearer = Bearer::of(&review)?;
        let (pod, node) = self.look_at(&bearer).await?;
        checks::bearer(&Found {
            rules,
            bearer: &bearer,
            pod: pod.as_ref(),
            node: node.as_ref(),
        })?;
        self.issue(&bearer, &request.public_key)
    }

    async fn review(&self, token: &str) -> Result<TokenReviewStatus, Ended> {
        let Ok(_turn) = self.reviews.acquire().await else {
            return Err(no_authority());
        };
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.office.client.clone());
        let answer = api.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|error| no_answer("review a token", &error))?;
        Ok(answer.status.unwrap_or_default())
    }

    async fn look_at(&self, bearer: &Bearer) -> Result<(Option<Pod>, Option<Node>), Ended> {
        let Office { client, rules, .. } = &self.office;
        let pods: Api<Pod> = Api::namespaced(client.clone(), &rules.namespace);
        let nodes: Api<Node> = Api::all(client.clone());
        let (pod, node) = tokio::join!(pods.get_opt(&bearer.pod), nodes.get_opt(&bearer.node));
        Ok((
            pod.map_err(|error| no_answer("read a pod", &error))?,
            node.map_err(|error| no_answer("read a node", &error))?,
        ))
    }

    /// Of the request the key alone counts.
    fn issue(&self, bearer: &Bearer, key: &[u8]) -> Result<String, Ended> {
        let Office {
            standing,
            trust_domain,
            lifetime,
            ..
        } = &self.office;
        let signer = standing.borrow().signer.clone().ok_or_else(no_authority)?;
        let key = PublicKey::from_bytes(key)
            .map_err(|error| Refusal::new("BadKey", error.to_string()))?;
        let name = Name::agent(trust_domain, &bearer.node);
        let validity = within(&signer, Validity::from(SystemTime::now(), *lifetime));
        let chain = signer
            .issue(&name, &key, validity)
            .map_err(|error| Refusal::new("BadName", error.to_string()))?;
        info!(%name, pod = bearer.pod, authority = %signer.fingerprint(), "gave a certificate");
        Ok(chain)
    }

    /// An Event for what a person should look into, each reason now and then.
    fn tell_people(&self, peer: SocketAddr, refusal: Refusal) {
        let Refusal { reason, why } = refusal;
        if !is_for_people(reason) {
            return;
        }
        let now = Instant::now();
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let last = told.get(reason);
            if last.is_some_and(|at| now.duration_since(*at) < EVENT_AGAIN) {
                return;
            }
            told.insert(reason, now);
        }
        let note = format!(
            "no certificate is given to {}: {why}",
            peer.ip().to_canonical()
        );
        (self.office.news)(reason, note);
    }
}

/// Whether this is more than noise on the network: somebody came with a token, or something is set
/// up wrongly. Of an authority that is lost the leader tells.
fn is_for_people(reason: &str) -> bool {
    !matches!(
        reason,
        "TooFast" | "BadRequest" | "BadToken" | "BadKey" | "NoAuthority"
    )
}

fn no_authority() -> Ended {
    let why = "there is no certificate authority to sign with";
    Ended::Unavailable(Refusal::new("NoAuthority", why))
}

fn no_answer(what: &str, error: &kube::Error) -> Ended {
    let why = format!("cannot {what}: {error}");
    Ended::Unavailable(Refusal::new("KubernetesUnavailable", why))
}
