//! Agents that prove to each other who they are, and strangers who cannot.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use icbd_wire::control::*;
use icbd_wire::data;
use rustls::{ClientConfig, RootCertStore};
use support::authority::{Authority, Issued, TRUST_DOMAIN};
use support::operator::*;
use support::{Node, Pool, noise};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const MIB: usize = 1 << 20;

/// Two nodes whose agents have identities, and a snapshot on one of them.
struct Pair {
    source: Node,
    from: Operator,
    receiver: Node,
    to: Operator,
    snapshot: SnapshotInfo,
    _pools: [Pool; 2],
}

impl Pair {
    /// Agents that these authorities vouch for.
    async fn with([source, receiver]: [&Authority; 2]) -> Self {
        let pools = [Pool::new(), Pool::new()];
        let (source, from) = ready("source", &pools[0], source).await;
        let (receiver, to) = ready("receiver", &pools[1], receiver).await;
        source.make_live();
        source.write_live("disk.img", &noise(1, 16 * MIB));
        let snapshot = from.take("one").await;
        Self {
            source,
            from,
            receiver,
            to,
            snapshot,
            _pools: pools,
        }
    }

    /// The snapshot goes from one to the other.
    async fn succeeds(&self) {
        self.sends(&Plan::full(&self.snapshot)).await;
    }

    async fn sends(&self, plan: &Plan) {
        let (sent, received) = transfer(plan, &self.from, &self.to, &self.receiver).await;
        succeeded(&sent);
        succeeded(&received);
        let number = plan.snapshot.number;
        assert_eq!(self.source.digest(number), self.receiver.digest(number));
    }

    /// Why the snapshot does not arrive, as the source says.
    async fn fails(&self) -> Transfer {
        let plan = Plan::full(&self.snapshot);
        start(&plan, &self.from, &self.to, &self.receiver).await;
        let ended = self.from.ended(&plan.transfer, Role::Source).await;
        assert_eq!(ended.state(), TransferState::Failed);
        self.to.cancel(&plan.transfer).await;
        self.to.ended(&plan.transfer, Role::Receiver).await;
        assert!(self.receiver.entries().is_empty());
        ended
    }
}

async fn ready(name: &'static str, pool: &Pool, authority: &Authority) -> (Node, Operator) {
    let mut node = Node::of(name, authority);
    node.mount(pool);
    node.start();
    let operator = node.operator().await;
    operator.init_pool().await;
    (node, operator)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_snapshot_and_its_increment_go_over_mutual_tls() {
    let authority = Authority::new("authority");
    let pair = Pair::with([&authority; 2]).await;
    pair.succeeds().await;
    pair.source.write_live("more", &noise(2, MIB));
    let two = pair.from.take("two").await;
    pair.sends(&Plan::increment(&two, &pair.snapshot)).await;
}

/// What somebody says to a data port to be taken for the source of a transfer.
fn hello(plan: &Plan) -> Vec<u8> {
    let (namespace, image) = support::IMAGE.split_once('/').unwrap();
    let hello = data::Hello {
        versions: data::VersionRange::OURS,
        transfer: plan.transfer.parse().unwrap(),
        namespace: namespace.parse().unwrap(),
        image: image.parse().unwrap(),
        snapshot: plan.snapshot.number.try_into().unwrap(),
        content: plan.snapshot.identity.parse().unwrap(),
        parent: None,
        mode: data::Mode::Stream,
        codecs: data::CodecSet::ALL,
        expected_raw: None,
    };
    let mut message = Vec::new();
    hello.encode(&mut message);
    message
}

/// A TLS client that believes an authority, and shows this.
fn client(believed: &Authority, shown: Option<Issued>) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(believed.certificate()).unwrap();
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match shown.map(Issued::for_tls) {
        None => config.with_no_client_auth(),
        Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
    };
    config.alpn_protocols = vec![data::ALPN.to_vec()];
    config
}

/// Says something to the receiver's data port over TLS; what it answers.
async fn say(client: ClientConfig, port: SocketAddr, what: &[u8]) -> io::Result<Vec<u8>> {
    let tcp = TcpStream::connect(port).await?;
    let name = format!("receiver.agent.{TRUST_DOMAIN}").try_into().unwrap();
    let mut stream = TlsConnector::from(Arc::new(client))
        .connect(name, tcp)
        .await?;
    stream.write_all(what).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The words of a refusal.
fn refusal(answer: &[u8]) -> (data::FailureCode, String) {
    let (preface, body) = answer.split_first_chunk().unwrap();
    let preface = data::Preface::decode(preface).unwrap();
    match data::Answer::decode(preface, body).unwrap() {
        data::Answer::Refused(failure) => (failure.code, failure.message().to_owned()),
        data::Answer::Welcome(welcome) => panic!("this is not welcome: {welcome:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn who_is_not_the_announced_source_is_refused_and_disturbs_nobody() {
    let (authority, foreign) = (Authority::new("authority"), Authority::new("foreign"));
    let mut pair = Pair::with([&authority; 2]).await;
    let plan = Plan::full(&pair.snapshot);
    pair.to.expect(pair.to.expect_request(&plan)).await.unwrap();
    let (port, hello) = (pair.receiver.data(), hello(&plan));

    // They do not get as far as to say anything.
    let uri = |path: &str| format!("spiffe://{TRUST_DOMAIN}/{path}");
    let dns = format!("source.agent.{TRUST_DOMAIN}");
    let mut other_protocol = client(&authority, Some(authority.agent("source")));
    other_protocol.alpn_protocols = vec![b"h2".to_vec()];
    let mut no_protocol = client(&authority, Some(authority.agent("source")));
    no_protocol.alpn_protocols.clear();
    let strangers = [
        (
            "nobody",
            client(&authority, None),
            "peer sent no certificates",
        ),
        (
            "another authority's agent",
            client(&authority, Some(foreign.agent("source"))),
            "invalid peer certificate",
        ),
        (
            "the operator",
            client(&authority, Some(authority.issue(&uri("operator"), &dns))),
            "is not an agent",
        ),
        (
            "another installation's agent",
            client(
                &authority,
                Some(authority.issue("spiffe://other.test/agent/source", &dns)),
            ),
            "is of another installation",
        ),
        ("another protocol", other_protocol, "any known protocol"),
        // The same from the same address is not logged twice in a minute, but counted.
        ("no protocol", no_protocol, "any known protocol"),
    ];
    for (who, client, why) in strangers {
        println!("{who}");
        let heard = say(client, port, &hello).await.unwrap_or_default();
        assert!(heard.is_empty(), "{who} heard {heard:?}");
        pair.receiver.logged(why);
    }

    // In the clear: one alert.
    let mut clear = std::net::TcpStream::connect(port).unwrap();
    clear.write_all(&hello).unwrap();
    let mut heard = Vec::new();
    clear.read_to_end(&mut heard).unwrap();
    assert_eq!((heard[0], heard.len()), (0x15, 7));

    // An agent of this installation hears what it would if there were no such transfer.
    let third = || client(&authority, Some(authority.agent("third")));
    let heard = say(third(), port, &hello).await.unwrap();
    let nonesuch = self::hello(&plan.again());
    let about_another = say(third(), port, &nonesuch).await.unwrap();
    assert_eq!(refusal(&heard), refusal(&about_another));
    assert_eq!(refusal(&heard).0, data::FailureCode::NotExpected);
    pair.receiver.logged("a transfer comes from the wrong node");

    assert!(pair.receiver.lives());
    assert!(pair.receiver.entries().is_empty());
    let (_, metrics) = pair.receiver.health("/metrics");
    let counted = "icbd_refused_connections_total{port=\"data\",reason=\"OtherProtocol\"} 2";
    assert!(metrics.contains(counted), "{metrics}");
    // The transfer is still expected, and comes.
    pair.from
        .send(pair.from.send_request(&plan, port))
        .await
        .unwrap();
    succeeded(&pair.from.ended(&plan.transfer, Role::Source).await);
    succeeded(&pair.to.ended(&plan.transfer, Role::Receiver).await);
    assert_eq!(pair.source.digest(1), pair.receiver.digest(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn nobody_commands_but_the_operator_of_this_installation() {
    let (authority, foreign) = (Authority::new("authority"), Authority::new("foreign"));
    let pair = Pair::with([&authority; 2]).await;
    let operator = |by: &Authority, trust_domain: &str| {
        let uri = format!("spiffe://{trust_domain}/operator");
        Some(by.issue(&uri, &format!("operator.{TRUST_DOMAIN}")))
    };
    let strangers = [
        ("nobody", None, "NoCertificate"),
        (
            "an agent",
            Some(authority.agent("source")),
            "NotTheOperator",
        ),
        (
            "the agent itself",
            Some(authority.agent("receiver")),
            "NotTheOperator",
        ),
        (
            "another authority's operator",
            operator(&foreign, TRUST_DOMAIN),
            "UnknownAuthority",
        ),
        (
            "another installation's operator",
            operator(&authority, "other.test"),
            "OtherInstallation",
        ),
    ];
    for (who, shown, reason) in strangers {
        println!("{who}");
        let mut client = client(&authority, shown);
        client.alpn_protocols = vec![b"h2".to_vec()];
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let heard = say(client, pair.receiver.control(), preface).await;
        let heard = heard.unwrap_or_default();
        assert!(heard.is_empty(), "{who} heard {heard:?}");
        pair.receiver.logged(&format!("\"reason\":\"{reason}\""));
    }
    let plain =
        tonic::transport::Channel::from_shared(format!("http://{}", pair.receiver.control()));
    let plain = plain.unwrap().connect().await;
    let called = async {
        let mut client = support::Client::new(plain.ok()?);
        client.describe(DescribeRequest {}).await.ok()
    };
    assert!(called.await.is_none(), "a call in the clear was answered");
    pair.receiver.logged("\"reason\":\"NotTls\"");
    let (_, metrics) = pair.receiver.health("/metrics");
    for line in [
        "icbd_refused_connections_total{port=\"control\",reason=\"NotTheOperator\"} 2",
        "icbd_refused_connections_total{port=\"control\",reason=\"NotTls\"} ",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    pair.succeeds().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_source_sends_to_nobody_but_the_receiver_it_was_told() {
    let (authority, foreign) = (Authority::new("authority"), Authority::new("foreign"));
    let pair = Pair::with([&authority, &foreign]).await;
    let ended = pair.fails().await;
    failed(&ended, Reason::PeerUnreachable);
    assert!(ended.message.contains("\"receiver\""), "{}", ended.message);
    assert!(
        ended.message.contains("invalid peer certificate"),
        "{}",
        ended.message
    );
    assert!(ended.transient);

    // Of the same installation, but somebody else: an address that was another's before.
    pair.receiver.renew(&authority, &[&authority]);
    let plan = Plan::full(&pair.snapshot);
    pair.to.expect(pair.to.expect_request(&plan)).await.unwrap();
    let mut request = pair.from.send_request(&plan, pair.receiver.data());
    request.receiver.as_mut().unwrap().node = "elsewhere".into();
    pair.from.send(request).await.unwrap();
    let ended = pair.from.ended(&plan.transfer, Role::Source).await;
    failed(&ended, Reason::PeerUnreachable);
    assert!(
        ended.message.contains("elsewhere.agent"),
        "{}",
        ended.message
    );
    assert!(pair.receiver.entries().is_empty());
    pair.succeeds().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn agents_change_their_identities_and_authorities_while_they_run() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let mut pair = Pair::with([&old; 2]).await;
    pair.succeeds().await;
    // Both believe both, then one has changed, then both.
    let steps: [(&Authority, &Authority, &[&Authority]); 4] = [
        (&old, &old, &[&old, &new]),
        (&new, &old, &[&old, &new]),
        (&new, &new, &[&old, &new]),
        (&new, &new, &[&new]),
    ];
    let mut number = 1;
    for (source, receiver, believed) in steps {
        pair.source.renew(source, believed);
        pair.receiver.renew(receiver, believed);
        number += 1;
        pair.snapshot = pair.from.take(&format!("snapshot-{number}")).await;
        pair.succeeds().await;
    }
    // Who has not changed is nobody now; files that are being written do no harm.
    pair.source.renew(&old, &[&old, &new]);
    fs::write(pair.receiver.identity().join("tls.key"), "half a k").unwrap();
    number += 1;
    pair.snapshot = pair.from.take(&format!("snapshot-{number}")).await;
    let plan = Plan::full(&pair.snapshot);
    start(&plan, &pair.from, &pair.to, &pair.receiver).await;
    let ended = pair.from.ended(&plan.transfer, Role::Source).await;
    assert_eq!(ended.state(), TransferState::Failed);
    pair.receiver.logged("keeps its old identity");
    pair.source.renew(&new, &[&new]);
    pair.sends(&plan.again()).await;
}

#[test]
fn an_agent_does_not_start_as_somebody_else() {
    let authority = Authority::new("authority");
    let identity = authority.identity("other-node");
    let output = Command::new(env!("CARGO_BIN_EXE_icbd-agent"))
        .args(["serve", "--node-name", "node", "--identity-dir"])
        .arg(identity.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("/agent/other-node") && said.contains("\"node\""),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn who_is_not_the_announced_source_is_refused_by_a_receiver_that_was_started_anew_too() {
    let authority = Authority::new("authority");
    let mut pair = Pair::with([&authority; 2]).await;
    let plan = Plan::full(&pair.snapshot);
    pair.to.expect(pair.to.expect_request(&plan)).await.unwrap();
    pair.receiver.kill();
    pair.receiver.start();
    // At once: what was announced may not have been found yet.
    let port = pair.receiver.data();
    let third = client(&authority, Some(authority.agent("third")));
    let heard = say(third, port, &hello(&plan)).await.unwrap();
    assert_eq!(refusal(&heard).0, data::FailureCode::NotExpected);
    pair.receiver.logged("a transfer comes from the wrong node");
    pair.to = pair.receiver.operator().await;
    let request = pair.from.send_request(&plan, port);
    pair.from.send(request).await.unwrap();
    succeeded(&pair.from.ended(&plan.transfer, Role::Source).await);
    succeeded(&pair.to.ended(&plan.transfer, Role::Receiver).await);
    assert_eq!(pair.source.digest(1), pair.receiver.digest(1));
}
