//! Who has been let in.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use super::Entry;
use crate::name::Name;

/// Who is at the other end; with tonic, an extension of each request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Where it calls from.
    pub address: SocketAddr,
    /// Who it has proved to be.
    pub name: Option<Name>,
}

/// A connection that has been let in.
pub struct Guest<S> {
    stream: S,
    caller: Caller,
    until: Option<Pin<Box<Sleep>>>,
    _entry: Entry,
}

impl<S> Guest<S> {
    pub(super) fn new(stream: S, caller: Caller, entry: Entry, lasting: Option<Duration>) -> Self {
        Self {
            stream,
            caller,
            until: lasting.map(|lasting| Box::pin(sleep(lasting))),
            _entry: entry,
        }
    }

    /// An error once its time is over.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let over = |until: &mut Pin<Box<Sleep>>| until.as_mut().poll(cx).is_ready();
        match self.until.as_mut().is_some_and(over) {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guest<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.poll_over(cx)?;
        Pin::new(&mut this.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guest<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.poll_over(cx)?;
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.poll_over(cx)?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.poll_over(cx)?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

impl<S> Connected for Guest<S> {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

/// Those who are let in, as they come: for tonic a stream of connections, for axum a listener.
pub struct Guests<S> {
    receiver: mpsc::Receiver<Guest<S>>,
    address: io::Result<SocketAddr>,
}

impl<S> Guests<S> {
    pub(super) fn new(receiver: mpsc::Receiver<Guest<S>>, address: io::Result<SocketAddr>) -> Self {
        Self { receiver, address }
    }
}

impl<S> Stream for Guests<S> {
    type Item = io::Result<Guest<S>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let guest = ready!(self.get_mut().receiver.poll_recv(cx));
        Poll::Ready(guest.map(Ok))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Listener for Guests<S> {
    type Io = Guest<S>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest<S>, SocketAddr) {
        match self.receiver.recv().await {
            Some(guest) => {
                let address = guest.caller.address;
                (guest, address)
            }
            // The door is closed: nobody comes any more.
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.address {
            Ok(address) => Ok(*address),
            Err(error) => Err(error.kind().into()),
        }
    }
}
