//! `icbd-agent replicate`: one read-only snapshot into another btrfs directory, for hosts without
//! Kubernetes. Both ends of a transfer in one process, through the same protocol that agents speak.

mod folder;
mod limit;
mod progress;
mod snapshots;

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use icbd_btrfs::SnapshotNumber;
use icbd_wire::control::{Reason, Role};
use icbd_wire::data::{Hello, VersionRange};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use crate::error::{Error, Result, blocking};
use crate::identity::throwaway;
use crate::image::ImageId;
use crate::net::{self, Network, Stream};
use crate::transfer::{
    Bucket, CodecChoice, Home, LastSeen, Measuring, ModeChoice, Pace, Sender, Ticket, codec_name,
    read_hello, receive,
};
use folder::Folder;
use progress::Meter;
use snapshots::{Found, Pair};

/// What a transfer within a process gives itself.
const PACE: Pace = Pace {
    stall: Duration::from_secs(60),
    checkpoint: Duration::from_secs(3),
    expect: Duration::from_secs(60),
};

/// The exit status for a snapshot of that name with other content.
const CONFLICT: u8 = 3;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The read-only snapshot.
    subvolume: PathBuf,
    /// The directory on btrfs where a snapshot of the same name is to stand.
    dir: PathBuf,
    /// Send the increment to this snapshot, of which DIR holds a replica. By default the newest of
    /// those beside SUBVOLUME that DIR holds too; if there is none, everything is sent.
    #[arg(long)]
    parent: Option<PathBuf>,
    /// How blocks are compressed: auto, none, snappy, lz4, zlib or zstd.
    #[arg(long, default_value = "auto")]
    codec: CodecChoice,
    /// At most so many bytes a second on the wire, for instance 50Mi.
    #[arg(long, value_parser = limit::parse)]
    limit: Option<NonZeroU64>,
    /// Who reads the data: this process, or the kernel.
    #[arg(long, value_enum, default_value_t = ModeChoice::Extents)]
    mode: ModeChoice,
    /// Print one line of JSON about what was done.
    #[arg(long)]
    json: bool,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    mode: Option<&'static str>,
    /// The name of the parent; `None`: everything was sent.
    parent: Option<String>,
    codec: Option<&'static str>,
    /// Bytes before compression, those of earlier attempts included.
    bytes_total: u64,
    /// Bytes on the wire, in this attempt.
    bytes_sent: u64,
    /// Bytes before compression that an earlier attempt had made durable.
    resumed_at: u64,
    seconds: f64,
    peak_rss_anon: u64,
}

/// Replicates one snapshot; the process' exit status.
pub(crate) fn run(options: &Options) -> ExitCode {
    let replicated = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Error::io("start threads"))
        .and_then(|runtime| runtime.block_on(replicate(options)));
    let told = replicated.and_then(|report| match options.json {
        true => serde_json::to_string(&report)
            .map_err(io::Error::from)
            .and_then(|line| writeln!(io::stdout(), "{line}"))
            .map_err(Error::io("write to standard output")),
        false => Ok(()),
    });
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "icbd-agent: {error}");
            match error.reason() {
                Reason::Conflict => CONFLICT.into(),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

async fn replicate(options: &Options) -> Result<Report> {
    let begun = Instant::now();
    let (subvolume, dir, parent) = (
        options.subvolume.clone(),
        options.dir.clone(),
        options.parent.clone(),
    );
    let found = blocking(move || snapshots::find(&subvolume, &dir, parent.as_deref())).await?;
    let pair = match found {
        Found::ToSend(pair) => pair,
        Found::AlreadyThere => return Ok(Report::default()),
    };
    let parent = pair.parent_name();
    let meter = Meter::start(!options.json);
    let moved = transfer(options, *pair, &meter).await;
    let peak_rss_anon = meter.end();
    let moved = moved?;
    Ok(Report {
        parent,
        seconds: begun.elapsed().as_secs_f64(),
        peak_rss_anon,
        ..moved
    })
}

/// Moves the snapshot from one end to the other.
async fn transfer(options: &Options, pair: Pair, meter: &Meter) -> Result<Report> {
    let (opened, folder) = pair.ends()?;
    let resumed_at = folder.resumed_at();
    let hello = hello(options, &folder)?;
    let number = SnapshotNumber::new(1)
        .ok_or_else(|| Error::refused(Reason::InvalidArgument, "snapshot numbers start at 1"))?;
    let image = ImageId {
        namespace: hello.namespace.clone(),
        name: hello.image.clone(),
    };
    let ticket = |role| {
        let peer = "this process".to_owned();
        Arc::new(Ticket::new(
            (hello.transfer, role),
            image.clone(),
            number,
            peer,
        ))
    };
    let (source, receiver) = (ticket(Role::Source), ticket(Role::Receiver));
    let tickets = [Arc::clone(&source), Arc::clone(&receiver)];
    tokio::spawn(stop_when_asked(tickets));
    meter.watch(Arc::clone(&source));

    let (to_receiver, mut from_source) = connect().await?;
    let receiving = async {
        let hello = read_hello(&mut from_source).await?;
        receive(&receiver, PACE, from_source, &hello, folder).await
    };
    let sending = async {
        let mut stream = to_receiver;
        let bucket = options
            .limit
            .map(|limit| Arc::new(Bucket::new(limit.get())));
        let sender = Sender {
            ticket: &source,
            codec: options.codec,
            bucket: &bucket,
            stall: PACE.stall,
            // Nothing is slow between two ends of one process, but what is told to be.
            line: match bucket {
                None => LastSeen::fast(),
                Some(_) => LastSeen::default(),
            },
        };
        let Some(welcome) = sender.greet(&mut stream, &hello).await? else {
            return Ok(());
        };
        let opened = Arc::new(opened);
        // It costs a pass over the metadata, and is for the bar alone.
        let _measuring = meter
            .is_shown()
            .then(|| Measuring::start(&source, &opened, welcome.mode));
        sender.send_alone(stream, &welcome, &opened).await
    };
    let (sent, received) = tokio::join!(sending, receiving);
    // The receiver knows best why: what the source says is mostly that it was told so.
    received.and(sent)?;
    let described = source.describe();
    Ok(Report {
        mode: Some(hello.mode.name()),
        codec: Some(codec_name(described.codec())),
        bytes_total: source.done.load(Ordering::Relaxed),
        bytes_sent: described.bytes_sent,
        resumed_at,
        ..Report::default()
    })
}

/// Connects the two ends over loopback, where others could listen or speak: with identities that
/// nobody else knows.
async fn connect() -> Result<(Stream, Stream)> {
    let [source, receiver] = throwaway::pair(["source", "receiver"])?;
    let (source, receiver) = (Network::new(source), Network::new(receiver));
    let listener = net::listen((Ipv4Addr::LOCALHOST, 0).into()).await?;
    let address = listener.local_addr().map_err(Error::io("read a port"))?;
    let accept = async {
        let accepted = listener.accept().await;
        let (stream, _) = accepted.map_err(Error::io("accept a connection on loopback"))?;
        let accepted = receiver.accept(stream).await;
        let (stream, _) = accepted.map_err(|refusal| {
            Error::refused(
                Reason::PeerLost,
                format!("cannot be sure who it is: {refusal}"),
            )
        })?;
        Ok(stream)
    };
    tokio::try_join!(source.dial(address, "receiver"), accept)
}

/// What the source says first. Nobody reads its names: both ends are this process.
fn hello(options: &Options, folder: &Folder) -> Result<Hello> {
    let name = "invalid name of a transfer within this process";
    let (content, parent) = folder.wanted();
    let invalid = |_| Error::refused(Reason::InvalidArgument, name);
    Ok(Hello {
        versions: VersionRange::OURS,
        transfer: Uuid::new_v4(),
        namespace: "local".parse().map_err(invalid)?,
        image: "snapshot".parse().map_err(invalid)?,
        snapshot: NonZeroU64::MIN,
        content,
        parent,
        mode: options.mode.offered(folder.dir()),
        codecs: options.codec.offered(),
        expected_raw: None,
    })
}

/// Asked to end, the transfer is kept at a checkpoint first.
async fn stop_when_asked(tickets: [Arc<Ticket>; 2]) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    for ticket in tickets {
        let message = "interrupted; run it again to go on from here";
        ticket.stop(Reason::ShuttingDown, message);
    }
}
