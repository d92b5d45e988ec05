//! The receiver's end of a transfer: whether what comes was announced and may come, and a place for
//! it; then two halves go to work: `converse` on the connection, `apply` on the disk.

mod apply;
mod converse;

use std::sync::Arc;

use icbd_btrfs::{SnapshotNumber, Subvolume};
use icbd_wire::control::Reason;
use icbd_wire::data::{Answer, CodecSet, Failure, FailureCode, Hello, Position, Welcome};
use tokio::net::TcpStream;
use uuid::Uuid;

use self::converse::Arriving;
use super::expect::Announced;
use super::link;
use super::listen::{Incoming, refuse};
use super::ticket::Ticket;
use super::{Transfers, codec};
use crate::error::{Error, Result};
use crate::image::arrival::{self, Verdict};
use crate::image::{ImageDir, Meta};

/// A place for a snapshot in its image: recorded, and empty.
struct Place {
    image: ImageDir,
    meta: Meta,
    /// Which snapshots the stream may build on.
    parent: Option<(Uuid, SnapshotNumber, Subvolume)>,
}

impl Transfers {
    /// Receives what was announced from the source that has connected.
    pub(super) async fn receive(
        &self,
        ticket: &Arc<Ticket>,
        announced: Announced,
        incoming: Incoming,
    ) -> Result<()> {
        let Incoming { mut stream, hello } = incoming;
        let begun = match announced.is(&hello) {
            true => {
                self.begin(&announced, hello.expected_raw.unwrap_or(0))
                    .await
            }
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
        if let Some(total) = hello.expected_raw {
            ticket.set_total(total);
        }
        let welcome = match welcome(&mut stream, &hello).await {
            Ok(welcome) => welcome,
            Err(error) => {
                self.give_up(place, announced).await;
                return Err(error);
            }
        };
        let codec = welcome
            .codecs
            .iter()
            .last()
            .map(codec::named)
            .unwrap_or_default();
        ticket.start(codec);
        tracing::info!("receiving");
        Arriving::new(Arc::clone(ticket), self.0.stall)
            .run(stream, welcome, place, announced, self.0.images.clone())
            .await
    }

    /// Makes a place for the snapshot; `None` if it is there already.
    async fn begin(&self, announced: &Announced, bytes: u64) -> Result<Option<Place>> {
        let (wanted, images) = (announced.clone(), self.0.images.clone());
        self.0
            .images
            .proceed(&announced.image, move |pool| {
                if !images.is_settled(pool) {
                    let message = "the pool has just come and is being looked at";
                    return Err(Error::refused(Reason::PoolUnavailable, message));
                }
                let image = ImageDir::make(pool, &wanted.image)?;
                let meta = Meta::make(&image)?;
                if wanted.judge(pool, &image, &meta, bytes)? == Verdict::AlreadyThere {
                    return Ok(None);
                }
                let parent = wanted.parent.map(|parent| {
                    let number = arrival::find(&image, parent)?;
                    let subvolume = Subvolume::open(&image, number.to_string())
                        .map_err(Error::btrfs(image.at(number)))?;
                    Ok::<_, Error>((parent, number, subvolume))
                });
                let parent = parent.transpose()?;
                arrival::begin(&image, &meta, wanted.number, &wanted.arrival)?;
                Ok(Some(Place {
                    image,
                    meta,
                    parent,
                }))
            })
            .await
    }

    /// Clears a place that nothing will come to.
    async fn give_up(&self, place: Place, announced: Announced) {
        let Announced { image, number, .. } = announced;
        let cleared = self
            .0
            .images
            .proceed(&image, move |_| {
                arrival::give_up(&place.image, &place.meta, number)
            })
            .await;
        if let Err(error) = cleared {
            tracing::error!(%error, "cannot clear the place of the snapshot");
        }
    }
}

/// Tells the source to begin, and how.
async fn welcome(stream: &mut TcpStream, hello: &Hello) -> Result<Welcome> {
    let welcome = hello
        .welcome(CodecSet::ALL, Position::START)
        .map_err(|error| link::broken(&error));
    let welcome = match welcome {
        Ok(welcome) => welcome,
        Err(error) => {
            refuse(stream, &error).await;
            return Err(error);
        }
    };
    let mut answer = Vec::new();
    Answer::Welcome(welcome).encode(&mut answer);
    link::write(stream, &answer).await?;
    Ok(welcome)
}
