//! Doors under a flood, over loopback, where every address of 127.0.0.0/8 is one of this machine's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use icbd_net::door::{Door, Guests, Limits, Share, listen};
use icbd_net::{Refusal, Refused};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(30);

/// Refusals by reason.
type Counted = Arc<Mutex<BTreeMap<&'static str, usize>>>;

/// A door that opens at the word "open".
async fn door(limits: Limits) -> (Guests<TcpStream>, SocketAddr, Counted) {
    let listener = listen(([0, 0, 0, 0], 0).into()).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let counted = Counted::default();
    let count = Arc::clone(&counted);
    let refused = Refused::new(move |port, reason| {
        assert_eq!(port, "test");
        *count.lock().unwrap().entry(reason).or_default() += 1;
    });
    let door = Door::new(listener, "test", limits, Arc::new(refused));
    let guests = door.guests(
        CancellationToken::new(),
        |mut stream: TcpStream| async move {
            let mut word = [0; 4];
            stream.read_exact(&mut word).await?;
            match &word {
                b"open" => Ok((stream, None)),
                _ => Err(Refusal::new("WrongWord", "it says another word")),
            }
        },
    );
    (guests, ([127, 0, 0, 1], port).into(), counted)
}

async fn from(last: u8, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, last], 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what)
        .await
        .expect("it takes too long")
}

async fn until(what: impl Fn() -> bool) {
    soon(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

const LIMITS: Limits = Limits {
    greeting: Share { all: 8, each: 4 },
    connected: Share { all: 3, each: 2 },
    within: Duration::from_secs(60),
    lasting: None,
};

#[tokio::test]
async fn who_floods_keeps_only_itself_out() {
    let (mut guests, address, counted) = door(LIMITS).await;
    let mut flood = Vec::new();
    for _ in 0..100 {
        flood.push(from(2, address).await);
    }
    let many = |count| {
        let counted = Arc::clone(&counted);
        move || counted.lock().unwrap().get("TooMany") == Some(&count)
    };
    until(many(96)).await;

    let mut friend = from(3, address).await;
    friend.write_all(b"open and so on").await.unwrap();
    let mut guest = soon(guests.next()).await.unwrap().unwrap();
    let mut said = [0; 10];
    guest.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b" and so on");
    guest.write_all(b"welcome").await.unwrap();
    let mut heard = [0; 7];
    friend.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"welcome");

    // Those who were turned away are told so by the end of their connection.
    assert_eq!(
        soon(flood.pop().unwrap().read(&mut [0])).await.unwrap_or(0),
        0
    );
    // When the flood is over its address is as good as any.
    drop(flood);
    until(|| counted.lock().unwrap().get("HungUp") == Some(&4)).await;
    let mut again = from(2, address).await;
    again.write_all(b"open").await.unwrap();
    soon(guests.next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn connections_are_as_many_as_may_be_and_end_when_their_time_is_over() {
    let limits = Limits {
        within: Duration::from_millis(200),
        lasting: Some(Duration::from_millis(500)),
        ..LIMITS
    };
    let (mut guests, address, counted) = door(limits).await;
    let mut friends = Vec::new();
    for _ in 0..3 {
        let mut friend = from(2, address).await;
        friend.write_all(b"open").await.unwrap();
        friends.push(friend);
    }
    let mut first = soon(guests.next()).await.unwrap().unwrap();
    let second = soon(guests.next()).await.unwrap().unwrap();
    until(|| counted.lock().unwrap().get("TooMany") == Some(&1)).await;

    let _silent = from(3, address).await;
    until(|| counted.lock().unwrap().get("TooSlow") == Some(&1)).await;
    let mut wrong = from(3, address).await;
    wrong.write_all(b"oben").await.unwrap();
    until(|| counted.lock().unwrap().get("WrongWord") == Some(&1)).await;

    let over = soon(first.read(&mut [0])).await.unwrap_err();
    assert_eq!(over.kind(), std::io::ErrorKind::TimedOut);
    drop((first, second));
    let mut friend = from(2, address).await;
    friend.write_all(b"open").await.unwrap();
    soon(guests.next()).await.unwrap().unwrap();
}
