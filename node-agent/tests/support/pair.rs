//! Two agents that know each other by certificates, as in an installation: a source with an image,
//! and a receiver.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use icbd_wire::control::*;

use super::operator::*;
use super::{Node, Pool, SOON, noise};

const MIB: u64 = 1 << 20;

/// How the two send: as `--send-mode` has it.
pub const MODES: [&str; 2] = ["extents", "stream"];

pub struct Pair {
    pub source: Node,
    pub from: Operator,
    pub receiver: Node,
    pub to: Operator,
    /// The source's is the first.
    pub pools: [Pool; 2],
}

impl Pair {
    /// The agents of these pools, and an image without content. What arrives is kept every second.
    pub async fn new(mode: &str, pools: [Pool; 2]) -> Self {
        let (mut source, mut receiver) = (Node::bare("source"), Node::bare("receiver"));
        let nodes = [&mut source, &mut receiver];
        for (node, pool) in nodes.into_iter().zip(&pools) {
            node.mount(pool);
            node.start_with(&["--send-mode", mode, "--checkpoint-seconds", "1"]);
        }
        let (from, to) = (source.operator().await, receiver.operator().await);
        from.init_pool().await;
        to.init_pool().await;
        source.make_live();
        Self {
            source,
            from,
            receiver,
            to,
            pools,
        }
    }

    pub async fn start(&self, plan: &Plan) {
        start(plan, &self.from, &self.to, &self.receiver).await;
    }

    /// Starts a transfer, and waits until it has moved so much and a checkpoint of it is recorded.
    pub async fn midway(&self, plan: &Plan, bytes: u64) {
        self.start(plan).await;
        self.to.moved(&plan.transfer, Role::Receiver, bytes).await;
        let record = self.arrival(plan.snapshot.number);
        let begun = Instant::now();
        while fs::read_to_string(&record).is_ok_and(|record| !record.contains("\"chain\"")) {
            assert!(begun.elapsed() < SOON, "no checkpoint");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!self.receiver.has(plan.snapshot.number));
    }

    fn arrival(&self, number: u64) -> std::path::PathBuf {
        self.receiver.meta(&format!("arriving/{number}.json"))
    }

    /// How a transfer has ended at the source and at the receiver.
    pub async fn ended(&self, plan: &Plan) -> [Transfer; 2] {
        let sent = self.from.ended(&plan.transfer, Role::Source).await;
        [sent, self.to.ended(&plan.transfer, Role::Receiver).await]
    }

    /// Sends a snapshot, which arrives.
    pub async fn replicated(&self, plan: &Plan) -> Transfer {
        self.start(plan).await;
        let [sent, received] = self.ended(plan).await;
        succeeded(&sent);
        succeeded(&received);
        self.is_there(plan.snapshot.number);
        sent
    }

    /// The next attempt succeeds without what had come before, and leaves nothing but the snapshot.
    pub async fn resumes(&self, plan: &Plan) {
        let plan = Plan {
            limit: None,
            ..plan.again()
        };
        let answer = self.to.expect(self.to.expect_request(&plan)).await.unwrap();
        let expect_response::Answer::Accepted(accepted) = answer else {
            panic!("{answer:?}")
        };
        let resume_at = accepted.resume_at;
        assert!(resume_at > 0, "nothing was kept");
        let sent = self.replicated(&plan).await;
        assert!(
            sent.bytes_sent + resume_at < sent.bytes_done + MIB,
            "from {resume_at}: {sent:?}"
        );
    }

    /// What an attempt has left that failed: a checkpoint, its record, and nothing half-made.
    pub fn is_kept(&self, number: u64) {
        let entries = self.receiver.entries();
        let kept = |name: &String| name.starts_with(&format!(".checkpoint-{number}-"));
        assert_eq!(
            entries.iter().filter(|name| kept(name)).count(),
            1,
            "{entries:?}"
        );
        let others = entries.iter().filter(|name| !kept(name));
        assert!(
            others
                .clone()
                .all(|name| name.parse::<u64>().is_ok_and(|it| it < number)),
            "{entries:?}"
        );
        assert!(self.arrival(number).exists());
    }

    /// The snapshot has its replica, and nothing stands beside the replicas.
    pub fn is_there(&self, number: u64) {
        assert_eq!(self.source.digest(number), self.receiver.digest(number));
        let wanted: Vec<_> = (1..=number).map(|number| number.to_string()).collect();
        assert_eq!(self.receiver.entries(), wanted);
        let arriving = fs::read_dir(self.receiver.meta("arriving")).unwrap();
        assert_eq!(arriving.count(), 0);
    }

    /// Gives `live` a file of bytes that no codec makes smaller.
    pub fn write_noise(&self, file: &str, bytes: u64) {
        write_noise(&self.source.image().join("live").join(file), bytes);
    }
}

/// Writes a file of bytes that no codec makes smaller; large ones repeat themselves.
pub fn write_noise(path: &Path, bytes: u64) {
    let part = noise(1, bytes.min(8 * MIB) as usize);
    let file = File::create(path).unwrap();
    for at in (0..bytes).step_by(part.len()) {
        let length = (bytes - at).min(part.len() as u64) as usize;
        file.write_all_at(&part[..length], at).unwrap();
    }
}
