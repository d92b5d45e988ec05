//! Which conversations the two sides allow, and which they end.
#![allow(clippy::unwrap_used, clippy::panic)]

use icbd_wire::data::{
    Ack, BlockHash, Chain, Codec, CodecSet, Data, Done, End, Failure, FailureCode, Frame,
    Heartbeat, MAX_BLOCK, Mode, OrderError, Phase, Position, ProtocolVersion, Receiving, Sending,
    Welcome,
};
use proptest::prelude::*;
use uuid::Uuid;

const BLOCK: u64 = MAX_BLOCK as u64;

fn welcome(resume: Position) -> Welcome {
    let codecs = CodecSet::of([Codec::Lz4]);
    Welcome {
        version: ProtocolVersion::V1,
        mode: Mode::Stream,
        codecs,
        resume,
    }
}

/// A block that is told from others by `seed`; its payload does not matter here.
fn block(seed: u8, raw_len: usize) -> Data<'static> {
    let hash = BlockHash::of(&[seed]);
    Data {
        codec: Codec::None,
        raw_len: raw_len as u32,
        hash,
        payload: b"payload",
    }
}

fn heartbeat() -> Frame<'static> {
    Frame::Heartbeat(Heartbeat {
        phase: Phase::Finishing,
        done: 3,
        total: None,
        starved: None,
    })
}

fn done() -> Frame<'static> {
    Frame::Done(Done {
        snapshot: Uuid::from_u128(7),
    })
}

fn ack(received: u64, durable: u64) -> Frame<'static> {
    Frame::Ack(Ack { received, durable })
}

fn abort() -> Frame<'static> {
    Frame::Abort(Failure::new(FailureCode::Cancelled, "asked to"))
}

#[test]
fn a_whole_transfer_is_in_order_on_both_sides() {
    let mut sending = Sending::new(&welcome(Position::START));
    let mut receiving = Receiving::new(&welcome(Position::START));
    for data in [block(1, MAX_BLOCK), block(2, MAX_BLOCK), block(3, 5)] {
        sending.block(&data).unwrap();
        receiving.admit(&Frame::Data(data)).unwrap();
        sending.admit(&ack(receiving.position().raw, 0)).unwrap();
    }
    receiving.admit(&heartbeat()).unwrap();
    assert!(!receiving.is_complete());
    receiving.admit(&Frame::End(sending.end())).unwrap();
    assert!(receiving.is_complete());
    let all = 2 * BLOCK + 5;
    for frame in [heartbeat(), ack(all, all), done()] {
        sending.admit(&frame).unwrap();
    }
    assert_eq!(
        sending.acked(),
        Ack {
            received: all,
            durable: all
        }
    );
}

#[test]
fn an_empty_stream_can_end_at_once() {
    let mut receiving = Receiving::new(&welcome(Position::START));
    receiving
        .admit(&Frame::End(End {
            position: Position::START,
        }))
        .unwrap();
    assert!(receiving.is_complete());
}

#[test]
fn a_resumed_transfer_ends_where_an_unbroken_one_does() {
    let blocks = [block(1, MAX_BLOCK), block(2, MAX_BLOCK), block(3, 1)];
    let mut unbroken = Sending::new(&welcome(Position::START));
    blocks.iter().for_each(|data| unbroken.block(data).unwrap());

    let mut chain = Chain::at(Position::START);
    chain.fold(blocks[0].hash, blocks[0].raw_len);
    let mut resumed = Sending::new(&welcome(chain.position()));
    assert_eq!(
        resumed.acked(),
        Ack {
            received: BLOCK,
            durable: BLOCK
        }
    );
    blocks[1..]
        .iter()
        .for_each(|data| resumed.block(data).unwrap());
    assert_eq!(resumed.end(), unbroken.end());
}

#[test]
fn the_receiver_refuses_what_a_source_must_not_send() {
    let end = |blocks: &[Data<'_>]| {
        let mut sending = Sending::new(&welcome(Position::START));
        blocks.iter().for_each(|data| sending.block(data).unwrap());
        Frame::End(sending.end())
    };
    let full = block(1, MAX_BLOCK);
    let one = Frame::Data(full);
    let zstd = Frame::Data(Data {
        codec: Codec::Zstd,
        ..full
    });
    let refused: [(&str, Vec<Frame<'_>>); 9] = [
        (
            "Data after End",
            vec![one.clone(), end(&[full]), one.clone()],
        ),
        ("End twice", vec![one.clone(), end(&[full]), end(&[full])]),
        ("End too early", vec![one.clone(), end(&[full, full])]),
        ("End too late", vec![one.clone(), one.clone(), end(&[full])]),
        (
            "End of other bytes",
            vec![one.clone(), end(&[block(9, MAX_BLOCK)])],
        ),
        ("a codec that was not agreed on", vec![zstd]),
        ("anything after Abort", vec![abort(), heartbeat()]),
        ("Ack", vec![ack(0, 0)]),
        ("Done", vec![one.clone(), end(&[full]), done()]),
    ];
    for (what, frames) in refused {
        let mut receiving = Receiving::new(&welcome(Position::START));
        let (last, before) = frames.split_last().unwrap();
        before
            .iter()
            .for_each(|frame| receiving.admit(frame).unwrap());
        assert!(receiving.admit(last).is_err(), "{what}");
    }
}

#[test]
fn the_source_refuses_what_a_receiver_must_not_send() {
    let refused: [(&str, Vec<Frame<'_>>); 9] = [
        ("Done before End", vec![done()]),
        ("Ack of what was not sent", vec![ack(BLOCK + 1, 0)]),
        ("Ack that is more durable than received", vec![ack(0, 1)]),
        ("Ack that takes back bytes", vec![ack(BLOCK, 0), ack(0, 0)]),
        (
            "Ack that takes back durability",
            vec![ack(BLOCK, BLOCK), ack(BLOCK, 0)],
        ),
        ("Data", vec![Frame::Data(block(1, 1))]),
        (
            "End",
            vec![Frame::End(End {
                position: Position::START,
            })],
        ),
        ("anything after Abort", vec![abort(), heartbeat()]),
        ("Abort twice", vec![abort(), abort()]),
    ];
    for (what, frames) in refused {
        let mut sending = Sending::new(&welcome(Position::START));
        sending.block(&block(1, MAX_BLOCK)).unwrap();
        let (last, before) = frames.split_last().unwrap();
        before
            .iter()
            .for_each(|frame| sending.admit(frame).unwrap());
        assert!(sending.admit(last).is_err(), "{what}");
    }
    let mut sending = Sending::new(&welcome(Position::START));
    sending.end();
    sending.admit(&done()).unwrap();
    assert!(sending.admit(&heartbeat()).is_err(), "anything after Done");
    assert!(
        sending.block(&block(1, 1)).is_err(),
        "its own Data after End"
    );
}

#[test]
fn a_difference_at_the_end_names_the_position() {
    let mut receiving = Receiving::new(&welcome(Position::START));
    receiving.admit(&Frame::Data(block(1, 77))).unwrap();
    let mut other = Chain::at(Position::START);
    other.fold(BlockHash::of(b"other"), 77);
    let error = receiving
        .admit(&Frame::End(End {
            position: other.position(),
        }))
        .unwrap_err();
    let OrderError::End(mismatch) = &error else {
        panic!("{error}")
    };
    assert!(mismatch.to_string().contains("raw byte 77"), "{mismatch}");
    assert_eq!(Failure::from(&error).code, FailureCode::HashMismatch);
}

proptest! {
    #[test]
    fn whatever_blocks_are_sent_both_sides_agree(
        lengths in proptest::collection::vec(1..=MAX_BLOCK, 0..20), start in any::<u64>(),
    ) {
        let start = welcome(Position { raw: start, ..Position::START });
        let (mut sending, mut receiving) = (Sending::new(&start), Receiving::new(&start));
        for raw_len in lengths {
            let data = block(raw_len as u8, raw_len);
            sending.block(&data).unwrap();
            receiving.admit(&Frame::Data(data)).unwrap();
        }
        prop_assert_eq!(sending.position(), receiving.position());
        receiving.admit(&Frame::End(sending.end())).unwrap();
    }
}
