//! A network between two agents that does what networks do: it counts, and when told to it cuts,
//! stalls or alters what passes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What passes in bad times, in bytes a second.
pub const SLOW: u64 = 2 << 20;

/// What becomes of what passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// Connections break.
    Cut,
    /// Nothing passes any more.
    Stall,
    /// It passes, at no more than [`SLOW`].
    Slow,
    /// A bit of what the source says is another.
    Corrupt,
}

/// Stands between a source and a receiver.
pub struct Proxy {
    pub address: SocketAddr,
    /// Bytes from the source to the receiver.
    passed: Arc<AtomicU64>,
    to: Arc<Mutex<SocketAddr>>,
    weather: watch::Sender<Weather>,
}

impl Proxy {
    pub async fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            passed: Arc::default(),
            to: Arc::new(Mutex::new(to)),
            weather: watch::Sender::new(Weather::Fair),
        };
        let (passed, to) = (Arc::clone(&proxy.passed), Arc::clone(&proxy.to));
        let weather = proxy.weather.subscribe();
        tokio::spawn(async move {
            while let Ok((source, _)) = listener.accept().await {
                let to = *to.lock().unwrap();
                if let Ok(receiver) = TcpStream::connect(to).await {
                    let passed = Arc::clone(&passed);
                    tokio::spawn(connect(source, receiver, passed, weather.clone()));
                }
            }
        });
        proxy
    }

    /// New connections go there.
    pub fn lead_to(&self, to: SocketAddr) {
        *self.to.lock().unwrap() = to;
    }

    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

async fn connect(
    source: TcpStream,
    receiver: TcpStream,
    passed: Arc<AtomicU64>,
    mut weather: watch::Receiver<Weather>,
) {
    let _ = (source.set_nodelay(true), receiver.set_nodelay(true));
    let ((from_source, to_source), (from_receiver, to_receiver)) =
        (source.into_split(), receiver.into_split());
    let cut = weather.clone();
    let forth = forward(from_source, to_receiver, passed, weather.clone());
    let back = forward(from_receiver, to_source, Arc::default(), weather.clone());
    tokio::select! {
        () = async { tokio::join!(forth, back); } => {}
        _ = weather.wait_for(|weather| *weather == Weather::Cut) => {}
    }
    drop(cut);
}

async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    passed: Arc<AtomicU64>,
    mut weather: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if weather
            .wait_for(|weather| *weather != Weather::Stall)
            .await
            .is_err()
        {
            return;
        }
        if *weather.borrow() == Weather::Corrupt {
            buffer[count / 2] ^= 1;
        }
        if *weather.borrow() == Weather::Slow {
            // The line is so slow, or becomes faster.
            let line = Duration::from_secs_f64(count as f64 / SLOW as f64);
            let faster = weather.wait_for(|weather| *weather != Weather::Slow);
            let _ = tokio::time::timeout(line, faster).await.is_ok();
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        passed.fetch_add(count as u64, Ordering::Relaxed);
    }
    let _ = to.shutdown().await;
}
