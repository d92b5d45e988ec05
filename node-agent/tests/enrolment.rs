//! An agent that gets its certificate from an operator, renews it, and follows whom to believe. The
//! operator's side here certifies what it is asked to: what it checks before is its own tests' part.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use icbd_net::door::{Door, Guests, Limits, Share};
use icbd_net::{
    Authority, Credentials, Identity, Key, Name, Pem, PublicKey, Refused, TlsStream, Validity,
};
use icbd_net::{grpc, tls};
use icbd_wire::enrolment::enrolment_server::{Enrolment, EnrolmentServer};
use icbd_wire::enrolment::{EnrolRequest, EnrolResponse};
use support::authority::TRUST_DOMAIN;
use support::{Node, Operator, Pool, SOON};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

const HOUR: Duration = Duration::from_secs(3600);
const NODE: &str = "node";
const LIMITS: Limits = Limits {
    greeting: Share { all: 8, each: 8 },
    connected: Share { all: 8, each: 8 },
    within: Duration::from_secs(10),
    lasting: None,
};

/// An operator's side of enrolment.
#[derive(Clone)]
struct Office {
    authority: Arc<Mutex<Arc<Authority>>>,
    lifetime: Duration,
    /// Who has come: the token, and the node.
    came: Arc<Mutex<Vec<(String, String)>>>,
    refuses: bool,
}

impl Office {
    fn new(lifetime: Duration) -> Self {
        Self {
            authority: Arc::new(Mutex::new(Arc::new(authority()))),
            lifetime,
            came: Arc::default(),
            refuses: false,
        }
    }

    fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.authority.lock().unwrap())
    }

    /// The operator itself, as it shows itself from now on.
    fn identity(&self) -> Identity {
        Identity::new(credentials(
            &self.authority(),
            &Name::operator(TRUST_DOMAIN),
        ))
    }

    /// Serves; where.
    async fn open(&self) -> SocketAddr {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = icbd_net::door::listen(any).await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Door::new(
            listener,
            "enrolment",
            LIMITS,
            Arc::new(Refused::new(|_, _| {})),
        );
        let office = self.clone();
        let guests: Guests<TlsStream> = door.guests(CancellationToken::new(), move |tcp| {
            let credentials = office.identity().current();
            async move {
                let stream = tls::accept_unproved(tcp, &credentials, grpc::PROTOCOL).await?;
                Ok((stream, None))
            }
        });
        let server = tonic::transport::Server::builder()
            .add_service(EnrolmentServer::new(self.clone()))
            .serve_with_incoming(guests);
        tokio::spawn(server);
        address
    }

    fn visits(&self) -> usize {
        self.came.lock().unwrap().len()
    }

    async fn wait_for_visits(&self, count: usize) {
        let waited = tokio::time::timeout(SOON, async {
            while self.visits() < count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(waited.await.is_ok(), "{} visits", self.visits());
    }
}

#[tonic::async_trait]
impl Enrolment for Office {
    async fn enrol(
        &self,
        request: Request<EnrolRequest>,
    ) -> Result<Response<EnrolResponse>, Status> {
        let EnrolRequest {
            token,
            node,
            public_key,
        } = request.into_inner();
        self.came.lock().unwrap().push((token, node.clone()));
        if self.refuses {
            return Err(Status::permission_denied("not enrolled"));
        }
        let key = PublicKey::from_bytes(&public_key).unwrap();
        let validity = Validity::from(SystemTime::now(), self.lifetime);
        let name = Name::agent(TRUST_DOMAIN, &node);
        let chain = self.authority().issue(&name, &key, validity).unwrap();
        Ok(Response::new(EnrolResponse { chain }))
    }
}

fn authority() -> Authority {
    Authority::generate(TRUST_DOMAIN, Validity::from(SystemTime::now(), HOUR)).unwrap()
}

fn credentials(by: &Authority, name: &Name) -> Credentials {
    let key = Key::generate().unwrap();
    let validity = Validity::from(SystemTime::now(), HOUR);
    let chain = by.issue(name, &key.public().unwrap(), validity).unwrap();
    Credentials::new(Pem {
        chain: chain.into(),
        key: key.pem().into(),
        authorities: by.certificate_pem().into(),
    })
    .unwrap()
}

/// What is mounted into an agent's pod.
struct Mounts(tempfile::TempDir);

impl Mounts {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("token"), "a token\n").unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn believe(&self, authorities: &[&Authority]) {
        let bundle: String = authorities.iter().map(|it| it.certificate_pem()).collect();
        self.put(&bundle);
    }

    fn put(&self, bundle: &str) {
        let new = self.path().join(".new");
        fs::write(&new, bundle).unwrap();
        fs::rename(new, self.path().join("ca.crt")).unwrap();
    }

    fn start(&self, node: &mut Node, at: SocketAddr) {
        let (dir, token) = (self.path(), self.path().join("token"));
        node.start_as(&[
            "--enrol-at",
            &at.to_string(),
            "--trust-dir",
            dir.to_str().unwrap(),
            "--token-file",
            token.to_str().unwrap(),
            "--trust-domain",
            TRUST_DOMAIN,
        ]);
    }
}

/// The operator, as this office makes it, at an agent's control port.
async fn command(office: &Office, node: &Node) -> Operator {
    let peer = Name::agent(TRUST_DOMAIN, NODE);
    let client = grpc::dial(grpc::endpoint(), node.control(), office.identity(), peer);
    let client = support::Client::new(client.await.unwrap());
    Operator::watching(NODE, client, support::INSTALLATION).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn an_agent_waits_for_its_certificate_and_says_for_what() {
    let (office, mounts, pool) = (Office::new(HOUR), Mounts::new(), Pool::new());
    let address = office.open().await;
    let mut node = Node::bare(NODE);
    node.mount(&pool);
    // Nobody is believed yet.
    mounts.start(&mut node, address);
    node.logged("read the authorities in");
    let (status, why) = node.health("/readyz");
    assert!(
        status.contains("503") && why.contains("NotEnrolled"),
        "{status} {why}"
    );
    assert!(node.health("/healthz").0.contains("200"));
    // Somebody else is believed.
    let other = authority();
    mounts.believe(&[&other]);
    node.logged("invalid peer certificate");
    assert_eq!(office.visits(), 0, "a token was shown to a stranger");
    mounts.believe(&[&office.authority()]);
    let operator = command(&office, &node).await;
    operator.init_pool().await;
    assert_eq!(
        operator.seen().trusted,
        [office.authority().fingerprint().to_string()]
    );
    assert_eq!(
        *office.came.lock().unwrap(),
        [("a token".to_owned(), NODE.to_owned())]
    );
    assert!(node.health("/readyz").0.contains("200"));
    assert_eq!(node.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn an_agent_renews_in_time_and_tells_whom_it_believes() {
    let (office, mounts, pool) = (
        Office::new(Duration::from_secs(6)),
        Mounts::new(),
        Pool::new(),
    );
    let address = office.open().await;
    let mut node = Node::bare(NODE);
    node.mount(&pool);
    mounts.believe(&[&office.authority()]);
    mounts.start(&mut node, address);
    let operator = command(&office, &node).await;
    operator.init_pool().await;
    office.wait_for_visits(3).await;

    // Authorities that cannot be used: it goes on with those that it believes, and renews.
    mounts.put("no certificate");
    node.logged("the authorities that were believed still are");
    office.wait_for_visits(office.visits() + 2).await;

    // A new authority: both are believed, then only the new one, which has to be asked then.
    let (old, new) = (office.authority(), Arc::new(authority()));
    let fingerprints = |of: &[&Authority]| -> Vec<String> {
        of.iter().map(|it| it.fingerprint().to_string()).collect()
    };
    mounts.believe(&[&old, &new]);
    let both = fingerprints(&[&old, &new]);
    operator
        .wait("both to be believed", |seen| seen.trusted == both)
        .await;
    *office.authority.lock().unwrap() = Arc::clone(&new);
    let visits = office.visits();
    mounts.believe(&[&new]);
    let one = fingerprints(&[&new]);
    operator
        .wait("one to be believed", |seen| seen.trusted == one)
        .await;
    office.wait_for_visits(visits + 1).await;
    // Who is of the old one alone is nobody any more; the connection that there was goes on.
    command(&office, &node).await;
    assert!(operator.seen().pool.capacity > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn who_is_not_enrolled_commands_nothing_and_goes_on_asking() {
    let (mut office, mounts, pool) = (Office::new(HOUR), Mounts::new(), Pool::new());
    office.refuses = true;
    let address = office.open().await;
    let mut node = Node::bare(NODE);
    node.mount(&pool);
    mounts.believe(&[&office.authority()]);
    mounts.start(&mut node, address);
    office.wait_for_visits(2).await;
    let (status, why) = node.health("/readyz");
    assert!(
        status.contains("503") && why.contains("not enrolled"),
        "{status} {why}"
    );
    assert_eq!(node.terminate(), Some(0), "it ends while it waits");
}

#[test]
fn an_agent_needs_an_identity_from_somewhere() {
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_icbd-agent"))
            .args(["serve", "--node-name", "node"])
            .args(arguments)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    for (arguments, named) in [
        (&[][..], "--identity-dir"),
        (&["--enrol-at", "icbd-operator:7442"], "--trust-dir"),
        (
            &["--identity-dir", "/a", "--enrol-at", "b:1"],
            "cannot be used with",
        ),
        (&["--trust-dir", "/a"], "--enrol-at"),
    ] {
        let (code, said) = run(arguments);
        assert!(
            code == Some(2) && said.contains(named),
            "{arguments:?}: {said}"
        );
    }
}
