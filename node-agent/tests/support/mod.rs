//! A node for tests: a directory that a real btrfs pool can be mounted in, a real `icbd-agent
//! serve` on loopback ports, and the operator's side of its gRPC.
// Each test binary uses its own part of this.
#![allow(dead_code, unreachable_pub)]

pub mod authority;
#[path = "../../btrfs/tests/support/mod.rs"]
pub mod btrfs;
pub mod operator;
pub mod pair;
pub mod proxy;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use icbd_btrfs::{Digest, Subvolume};
use icbd_net::{Name, grpc};
use icbd_wire::control::agent_client::AgentClient;

use authority::Authority;
pub use btrfs::{Pool, run};
pub use operator::Operator;

/// How long anything may take that a test waits for.
pub const SOON: Duration = Duration::from_secs(40);

/// The installation that tests are of.
pub const INSTALLATION: &str = "kube-system-uid/icbd-system";
/// The image that tests use, and the uid of its namespace.
pub const IMAGE: &str = "desktops/win11";
pub const NAMESPACE_UID: &str = "uid-of-desktops";

/// A node: its directory `/var/lib/icbd`, with or without a pool in it.
pub struct Node {
    pub name: &'static str,
    root: Arc<tempfile::TempDir>,
    /// The files of its agent's identity, and whose operator it obeys.
    identity: tempfile::TempDir,
    commander: icbd_net::Identity,
    /// Where its agent listens for others.
    data_at: SocketAddr,
    agent: Option<Agent>,
}

struct Agent {
    child: Child,
    control: SocketAddr,
    data: SocketAddr,
    health: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Node {
    /// A node without a pool and without an agent.
    pub fn bare(name: &'static str) -> Self {
        Self::of(name, &authority::USUAL)
    }

    /// The same, of another authority.
    pub fn of(name: &'static str, authority: &Authority) -> Self {
        let root = tempfile::Builder::new()
            .prefix("icbd-node-")
            .tempdir()
            .unwrap();
        fs::create_dir(root.path().join("pool")).unwrap();
        Self {
            name,
            root: Arc::new(root),
            identity: authority.identity(name),
            commander: authority.operator(),
            data_at: SocketAddr::from(([127, 0, 0, 1], 0)),
            agent: None,
        }
    }

    /// A node with this pool, and an agent that serves an operator who has initialised the pool.
    pub async fn ready(name: &'static str, pool: &Pool) -> (Self, Operator) {
        let mut node = Self::bare(name);
        node.mount(pool);
        node.start();
        let operator = node.operator().await;
        operator.init_pool().await;
        (node, operator)
    }

    /// The files of its agent's identity.
    pub fn identity(&self) -> &Path {
        self.identity.path()
    }

    /// Gives its agent, which runs, a new identity, with which it believes these authorities.
    pub fn renew(&self, authority: &Authority, believed: &[&Authority]) {
        let fingerprint = authority.renew(self.identity(), self.name, believed);
        self.logged(fingerprint.as_str());
    }

    /// Makes this agent see the directory of another node, as a second pod there would.
    pub fn share(&mut self, other: &Self) {
        self.root = Arc::clone(&other.root);
    }

    /// Makes its agent listen for others at this address, each time that it is started.
    pub fn listen_at(&mut self, data: SocketAddr) {
        self.data_at = data;
    }

    /// Where its pool is.
    pub fn pool(&self) -> PathBuf {
        self.root.path().join("pool")
    }

    /// Where a path below the pool is.
    pub fn at(&self, path: &str) -> PathBuf {
        self.pool().join(path)
    }

    /// The directory of the image that tests use.
    pub fn image(&self) -> PathBuf {
        self.at(IMAGE)
    }

    /// Mounts a pool.
    pub fn mount(&self, pool: &Pool) {
        run(
            "mount",
            [
                "--bind".as_ref(),
                pool.path().as_os_str(),
                self.pool().as_os_str(),
            ],
        );
    }

    /// Unmounts its pool; fails if anything is open in it.
    pub fn unmount(&self) {
        run("umount", [self.pool()]);
    }

    /// Makes an empty `live` for the image.
    pub fn make_live(&self) {
        fs::create_dir_all(self.image()).unwrap();
        let dir: OwnedFd = fs::File::open(self.image()).unwrap().into();
        icbd_btrfs::create(dir, "live").unwrap();
    }

    /// Writes a file into `live`.
    pub fn write_live(&self, file: &str, content: &[u8]) {
        fs::write(self.image().join("live").join(file), content).unwrap();
    }

    /// Whether the image has this snapshot.
    pub fn has(&self, number: u64) -> bool {
        self.image().join(number.to_string()).exists()
    }

    /// The digest of a snapshot.
    pub fn digest(&self, number: u64) -> Digest {
        digest(&self.image().join(number.to_string()))
    }

    /// The entries of the image's directory, but for `.meta`.
    pub fn entries(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.image()) else {
            return Vec::new();
        };
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name != ".meta")
            .collect();
        names.sort();
        names
    }

    /// A path in the image's records.
    pub fn meta(&self, path: &str) -> PathBuf {
        self.image().join(".meta").join(path)
    }

    /// Starts an agent.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts an agent with more arguments.
    pub fn start_with(&mut self, arguments: &[&str]) {
        let identity = self.identity().to_str().unwrap().to_owned();
        self.start_as(&[&["--identity-dir", &identity], arguments].concat());
    }

    /// Starts an agent whose arguments say where its identity comes from.
    pub fn start_as(&mut self, arguments: &[&str]) {
        assert!(self.agent.is_none(), "an agent runs already");
        let mut child = Command::new(env!("CARGO_BIN_EXE_icbd-agent"))
            .args(["serve", "--node-name", self.name, "--pool"])
            .arg(self.pool())
            .args(["--control-listen", "127.0.0.1:0", "--data-listen"])
            .arg(self.data_at.to_string())
            .args(["--health-listen", "127.0.0.1:0"])
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let listening: serde_json::Value = serde_json::from_str(&first).unwrap();
        let port = |name: &str| {
            let port = listening[name]
                .as_u64()
                .unwrap_or_else(|| panic!("no {name} in {first}"));
            SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()))
        };
        let log = Arc::new(Mutex::new(Vec::new()));
        let (name, kept) = (self.name, Arc::clone(&log));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                println!("{name}: {line}");
                kept.lock().unwrap().push(line);
            }
        });
        self.agent = Some(Agent {
            control: port("control_port"),
            data: SocketAddr::new(self.data_at.ip(), port("data_port").port()),
            health: port("health_port"),
            child,
            log,
        });
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    /// Kills the agent, as a crash of the machine would, as far as it is concerned.
    pub fn kill(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.child.kill().unwrap();
        agent.child.wait().unwrap();
    }

    /// Asks the agent to end, and waits until it has; with which exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let mut agent = self.agent.take().unwrap();
        run("kill", ["-TERM".to_owned(), agent.child.id().to_string()]);
        agent.child.wait().unwrap().code()
    }

    /// Restarts the agent after a crash; it listens on new ports.
    pub async fn restart(&mut self) -> Operator {
        self.kill();
        self.start();
        self.operator().await
    }

    /// An operator that has seen all that the agent knows.
    pub async fn operator(&self) -> Operator {
        self.stranger(INSTALLATION).await
    }

    /// An operator of another installation.
    pub async fn stranger(&self, installation: &'static str) -> Operator {
        let peer = Name::agent(authority::TRUST_DOMAIN, self.name);
        let client = grpc::dial(
            grpc::endpoint(),
            self.agent().control,
            self.commander.clone(),
            peer,
        );
        Operator::watching(self.name, Client::new(client.await.unwrap()), installation).await
    }

    pub fn data(&self) -> SocketAddr {
        self.agent().data
    }

    pub fn control(&self) -> SocketAddr {
        self.agent().control
    }

    pub fn process(&self) -> u32 {
        self.agent().child.id()
    }

    /// Whether the agent still runs.
    pub fn lives(&mut self) -> bool {
        self.agent
            .as_mut()
            .unwrap()
            .child
            .try_wait()
            .unwrap()
            .is_none()
    }

    /// Anonymous memory of the agent in bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// What the health port answers: status line and body.
    pub fn health(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.agent().health).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    /// Waits until the agent has logged a line with this in it.
    pub fn logged(&self, what: &str) {
        let start = Instant::now();
        loop {
            if self
                .agent()
                .log
                .lock()
                .unwrap()
                .iter()
                .any(|line| line.contains(what))
            {
                return;
            }
            assert!(
                start.elapsed() < SOON,
                "{} never logged {what:?}",
                self.name
            );
            std::thread::yield_now();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.agent.is_some() {
            self.kill();
        }
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.pool())
            .stderr(Stdio::null())
            .status();
    }
}

/// The digest of a subvolume.
pub fn digest(path: &Path) -> Digest {
    let subvolume = fs::File::open(path).unwrap();
    let subvolume = Subvolume::from_fd(subvolume.into(), path.as_os_str().as_encoded_bytes());
    icbd_btrfs::digest(&subvolume.unwrap()).unwrap()
}

/// Bytes that no codec makes smaller, block by block.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let part = length.min(8 << 20);
    let part: Vec<u8> = (0..part.div_ceil(8))
        .flat_map(|_| random.u64(..).to_le_bytes())
        .collect();
    part.into_iter().cycle().take(length).collect()
}

pub type Client = AgentClient<tonic::transport::Channel>;
