//! Connecting to an agent that may just be starting anew: whoever is refused comes back a little
//! later, for a while. Whether it is the right one that answers is found out afterwards, and at once.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use icbd_net::Pauses;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// How long a peer may take to answer to a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an agent may take to listen again.
const RESTART: Duration = Duration::from_secs(12);

/// What the pauses before the next attempt begin with, and grow to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Connects to `address`, more than once if need be. Dropped, it tries no more.
pub(super) async fn reach(address: SocketAddr) -> io::Result<TcpStream> {
    let give_up = Instant::now() + RESTART;
    let mut pauses = Pauses::new(PAUSE.0, PAUSE.1);
    loop {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address));
        let error = match connected.await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => {
                let message = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
                io::Error::new(io::ErrorKind::TimedOut, message)
            }
        };
        let pause = pauses.after_failure();
        if !may_pass(&error) || Instant::now() + pause > give_up {
            return Err(error);
        }
        tracing::info!(%address, %error, "nobody there yet: trying again");
        tokio::time::sleep(pause).await;
    }
}

/// Whether this is what one hears of an agent, or a pod, that is being started.
fn may_pass(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::TimedOut
    )
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn who_is_refused_comes_back_until_somebody_listens() {
        // Where nobody else listens, or connects from.
        let address = SocketAddr::from(([127, 65, 0, 1], 7441));
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let later = async {
            tokio::time::sleep(3 * PAUSE.0).await;
            let listener = TcpListener::bind(address).await.unwrap();
            listener.accept().await.unwrap()
        };
        let (connected, _) = tokio::join!(reach(address), later);
        assert_eq!(connected.unwrap().peer_addr().unwrap(), address);
    }
}
