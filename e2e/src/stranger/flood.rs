//! Floods: thousands of connections that want nothing.

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Flood, Flooded};

/// For a connection to come about, while thousands want one.
const CONNECT: Duration = Duration::from_secs(10);

/// The head of a TLS record with a ClientHello, whose 512 bytes then do not come; to HTTP it is a
/// request that does not end.
const BEGUN: &[u8] = &[0x16, 3, 1, 2, 0];

/// What becomes of one connection.
#[derive(Clone, Copy)]
enum End {
    NotConnected,
    SentAway,
    Left,
}

impl Flood {
    pub(super) async fn run(self) -> Vec<Flooded> {
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: limit.maximum,
            ..limit
        };
        // Where it may not, fewer connections come about, and the report says so.
        let _ = setrlimit(Resource::Nofile, raised);
        join_all(self.at.iter().map(|at| self.flood(*at))).await
    }

    async fn flood(&self, at: SocketAddr) -> Flooded {
        let stay = Duration::from_secs(self.seconds);
        let garbage: Vec<u8> = (0..4096u32).map(|n| (n * 167 % 251) as u8).collect();
        let mut connections = JoinSet::new();
        for n in 0..self.half_open.max(self.garbage) {
            if n < self.half_open {
                connections.spawn(connection(at, BEGUN.to_vec(), stay));
            }
            if n < self.garbage {
                connections.spawn(connection(at, garbage.clone(), stay));
            }
        }
        let mut flooded = Flooded {
            at,
            connected: 0,
            sent_away: 0,
        };
        while let Some(ended) = connections.join_next().await {
            match ended {
                Ok(End::SentAway) => {
                    flooded.connected += 1;
                    flooded.sent_away += 1;
                }
                Ok(End::Left) => flooded.connected += 1,
                Ok(End::NotConnected) | Err(_) => {}
            }
        }
        flooded
    }
}

/// Connects, says something, and stays.
async fn connection(at: SocketAddr, says: Vec<u8>, stay: Duration) -> End {
    let Ok(Ok(mut tcp)) = timeout(CONNECT, TcpStream::connect(at)).await else {
        return End::NotConnected;
    };
    let to_the_end = async {
        tcp.write_all(&says).await?;
        let mut heard = [0; 1024];
        while tcp.read(&mut heard).await? > 0 {}
        std::io::Result::Ok(())
    };
    match timeout(stay, to_the_end).await {
        Ok(_) => End::SentAway,
        Err(_) => End::Left,
    }
}
