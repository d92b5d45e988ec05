//! Attempts: connecting, and asking for one thing in the protocol of the port.

use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use icbd_wire::control::agent_client::AgentClient;
use icbd_wire::control::{
    self, DescribeRequest, ExpectRequest, ImageRef, Owner, Role, TransferState, WatchRequest,
    agent_event::Event, expect_response,
};
use icbd_wire::data::{self, CodecSet, Hello, Mode, Preface, VersionRange};
use icbd_wire::enrolment::EnrolRequest;
use icbd_wire::enrolment::enrolment_client::EnrolmentClient;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::{Answer, Appearance, Attempt, Expected, Fence, Request, Sent, appearance};

/// Longer than anything on the other side takes to send somebody away.
const PATIENCE: Duration = Duration::from_secs(40);

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Attempt {
    pub(super) async fn make(self) -> Answer {
        let tcp = match timeout(PATIENCE, TcpStream::connect(self.at)).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => return Answer::Unreachable(error.to_string()),
            Err(_) => return Answer::Unreachable("nobody answers".to_owned()),
        };
        match timeout(PATIENCE, self.appear(tcp)).await {
            Ok(Ok(granted)) => Answer::Granted(granted),
            Ok(Err(error)) => Answer::Refused(in_full(&*error)),
            Err(_) => Answer::Refused("no answer at all".to_owned()),
        }
    }

    async fn appear(self, tcp: TcpStream) -> Result<String, Failure> {
        let protocol: &[u8] = match self.asking {
            Request::Send(_) => data::ALPN,
            _ => b"h2",
        };
        let shown = match &self.appearing {
            Appearance::Plaintext => return self.asking.ask(tcp).await,
            Appearance::Nobody => None,
            Appearance::Certificate(shown) => Some(shown),
        };
        let tls = appearance::shake_hands(tcp, shown, protocol).await?;
        self.asking.ask(tls).await
    }
}

impl Request {
    async fn ask(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<String, Failure> {
        match self {
            Request::Send(sent) => send(stream, &sent).await,
            Request::Enrol {
                token,
                node,
                public_key,
            } => {
                let request = EnrolRequest {
                    token,
                    node,
                    public_key,
                };
                let mut operator = EnrolmentClient::new(channel(stream).await?);
                Ok(operator.enrol(request).await?.into_inner().chain)
            }
            Request::Describe => {
                let mut agent = AgentClient::new(channel(stream).await?);
                let described = agent.describe(DescribeRequest {}).await?.into_inner();
                Ok(described.pool.unwrap_or_default().installation)
            }
            Request::Received(fence) => received(channel(stream).await?, fence).await,
            Request::Expect(fence, expected) => {
                let mut agent = AgentClient::new(channel(stream).await?);
                let request = expect_request(fence, expected);
                let answer = agent.expect(request).await?.into_inner().answer;
                match answer {
                    Some(expect_response::Answer::Accepted(_)) => Ok("accepted".to_owned()),
                    other => Err(format!("{other:?}").into()),
                }
            }
        }
    }
}

/// gRPC over a connection that is there.
async fn channel(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<Channel, Failure> {
    let mut stream = Some(TokioIo::new(stream));
    let once = service_fn(move |_: Uri| {
        let stream = stream.take();
        async move { stream.ok_or_else(|| io::Error::other("the connection is gone")) }
    });
    let endpoint = Endpoint::from_static("http://stranger");
    Ok(endpoint.connect_with_connector(once).await?)
}

/// The transfers to an agent that have ended well.
async fn received(channel: Channel, fence: Fence) -> Result<String, Failure> {
    let fence = Some(fence.into());
    let mut agent = AgentClient::new(channel);
    let mut events = agent.watch(WatchRequest { fence }).await?.into_inner();
    let mut ids = Vec::new();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Transfer(transfer))
                if transfer.role() == Role::Receiver
                    && transfer.state() == TransferState::Succeeded =>
            {
                let image = transfer.image.unwrap_or_default();
                ids.push(format!(
                    "{} {}/{}/{}",
                    transfer.id, image.namespace, image.image, transfer.number
                ));
            }
            Some(Event::Synced(_)) => break,
            _ => {}
        }
    }
    Ok(ids.join("\n"))
}

impl From<Fence> for control::Fence {
    fn from(fence: Fence) -> Self {
        Self {
            installation: fence.installation,
            lease_created: fence.lease_created,
            lease_transitions: fence.lease_transitions,
        }
    }
}

fn expect_request(fence: Fence, expected: Expected) -> ExpectRequest {
    let Expected {
        what,
        namespace_uid,
        from,
    } = expected;
    ExpectRequest {
        fence: Some(fence.into()),
        image: Some(ImageRef {
            namespace: what.namespace,
            image: what.image,
        }),
        owner: Some(Owner {
            namespace_uid,
            ..Owner::default()
        }),
        transfer: what.transfer,
        number: what.number,
        identity: what.content,
        source_node: from,
        ..ExpectRequest::default()
    }
}

/// Opens a transfer. Granted: the receiver is ready for the data.
async fn send(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    sent: &Sent,
) -> Result<String, Failure> {
    let hello = Hello {
        versions: VersionRange::OURS,
        transfer: sent.transfer.parse()?,
        namespace: sent.namespace.parse()?,
        image: sent.image.parse()?,
        snapshot: sent.number.try_into()?,
        content: sent.content.parse()?,
        parent: None,
        mode: Mode::Stream,
        codecs: CodecSet::ALL,
        expected_raw: None,
    };
    let mut message = Vec::new();
    hello.encode(&mut message);
    stream.write_all(&message).await?;
    let mut preface = [0; data::PREFACE_LEN];
    stream.read_exact(&mut preface).await?;
    let preface = Preface::decode(&preface)?;
    let mut body = vec![0; preface.body_len.into()];
    stream.read_exact(&mut body).await?;
    match data::Answer::decode(preface, &body)? {
        data::Answer::Welcome(_) => Ok("welcome".to_owned()),
        data::Answer::Refused(failure) => {
            Err(format!("{:?}: {}", failure.code, failure.message()).into())
        }
    }
}

/// An error with all that is behind it.
fn in_full(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<tonic::Status>() {
        Some(status) => format!("{:?}: {}", status.code(), status.message()),
        None => error.to_string(),
    };
    let mut inner = error.source();
    while let Some(error) = inner {
        text.push_str(": ");
        text.push_str(&error.to_string());
        inner = error.source();
    }
    text
}
