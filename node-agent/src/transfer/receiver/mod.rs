//! The receiver's end of a transfer: whether what comes was announced and may come, and a place for
//! it; then two halves go to work: `converse` on the connection, `apply` on the disk.

mod apply;
mod converse;
pub(crate) mod home;
mod place;
mod rhythm;
mod starving;

use std::sync::Arc;

use icbd_wire::control::Reason;
use icbd_wire::data::{Answer, CodecSet, Failure, FailureCode, Hello, Mode, Position, Welcome};
use tokio::io::{AsyncRead, AsyncWrite};

use self::converse::Reception;
use self::home::Home;
use self::place::Place;
use super::Transfers;
use super::expect::Announced;
use super::link;
use super::listen::{Incoming, refuse};
use super::ticket::Ticket;
use crate::error::{Error, Result, blocking};

impl Transfers {
    /// Receives what was announced from the source that has connected.
    pub(super) async fn receive(
        &self,
        ticket: &Arc<Ticket>,
        announced: &Announced,
        incoming: Incoming,
    ) -> Result<()> {
        let Incoming { mut stream, hello } = incoming;
        let begun = match announced.is(&hello) {
            true => self.begin(announced, &hello).await,
            false => {
                let message = "the source offers another snapshot than was announced";
                Err(Error::refused(Reason::NotExpected, message))
            }
        };
        let place = match begun {
            Ok(Some(place)) => place,
            Ok(None) => {
                let mut answer = Vec::new();
                let there = Failure::new(FailureCode::AlreadyThere, "the snapshot is here already");
                Answer::Refused(there).encode(&mut answer);
                link::write(&mut stream, &answer).await?;
                return Ok(());
            }
            Err(error) => {
                refuse(&mut stream, &error).await;
                return Err(error);
            }
        };
        if let Some((_, number, _)) = &place.parent {
            let _ = ticket.parent.set(*number);
        }
        let received = receive(ticket, self.0.pace, stream, &hello, place).await;
        // Its partial is gone or its snapshot is there: the inventory is to show which.
        if let Err(error) = self.0.images.proceed(&announced.image, |_| Ok(())).await {
            tracing::warn!(%error, "cannot read the image");
        }
        received
    }

    /// Makes a place for the snapshot; `None` if it is there already.
    async fn begin(&self, announced: &Announced, hello: &Hello) -> Result<Option<Place>> {
        let (wanted, images) = (announced.clone(), self.0.images.clone());
        let bytes = hello.expected_raw.unwrap_or(0);
        self.0
            .images
            .proceed(&announced.image, move |pool| {
                Place::make(pool, &images, &wanted, bytes)
            })
            .await
    }
}

/// Welcomes a source, and receives what it sends into a home that was made ready.
pub(crate) async fn receive(
    ticket: &Arc<Ticket>,
    pace: link::Pace,
    mut stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    hello: &Hello,
    home: impl Home + 'static,
) -> Result<()> {
    if let Some(total) = hello.expected_raw {
        ticket.estimate_total(total);
    }
    // Another mode makes another stream: what came of it cannot be gone on from.
    let resume = home.resume().map(|(record, _)| record);
    let resume =
        resume.filter(|record| record.mode() == Mode::Stream || record.mode() == hello.mode);
    let (mode, resume) = match resume {
        Some(record) => (record.mode(), record.position()),
        None => (hello.mode, Position::START),
    };
    let welcome = match welcome(&mut stream, hello, mode, resume).await {
        Ok(welcome) => welcome,
        Err(error) => {
            give_up(home).await;
            return Err(error);
        }
    };
    tracing::info!(mode = mode.name(), from = resume.raw, "receiving");
    ticket.start_at(resume.raw);
    Reception::new(Arc::clone(ticket), pace, resume)
        .run(stream, welcome, home)
        .await
}

/// Tells the source to begin, where, and how.
async fn welcome(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    hello: &Hello,
    mode: Mode,
    resume: Position,
) -> Result<Welcome> {
    let welcome = match hello.welcome(CodecSet::ALL, resume) {
        Ok(welcome) => Welcome { mode, ..welcome },
        Err(error) => {
            let error = link::broken(&error);
            refuse(stream, &error).await;
            return Err(error);
        }
    };
    let mut answer = Vec::new();
    Answer::Welcome(welcome).encode(&mut answer);
    link::write(stream, &answer).await?;
    Ok(welcome)
}

/// Clears a home that nothing will come to.
async fn give_up(home: impl Home + 'static) {
    if let Err(error) = blocking(move || home.give_up()).await {
        tracing::error!(%error, "cannot clear the place of the snapshot");
    }
}
