//! What must hold for every frame, and for bytes that are none.
#![allow(clippy::unwrap_used, clippy::panic)]

use icbd_wire::data::{
    Ack, BlockHash, ChainHash, Codec, DATA_HEAD_LEN, Data, Done, End, FRAME_HEADER_LEN, Failure,
    FailureCode, Frame, FrameError, FrameHeader, Heartbeat, MAX_BLOCK, MAX_CONTROL_BODY,
    MAX_DATA_BODY, Phase, Position,
};
use proptest::prelude::*;
use uuid::Uuid;

fn phases() -> impl Strategy<Value = Phase> {
    use Phase::*;
    prop::sample::select(vec![Preparing, MetadataPass, Skipping, Data, Finishing])
}

fn control_frames() -> impl Strategy<Value = Frame<'static>> {
    prop_oneof![
        (
            phases(),
            any::<u64>(),
            any::<Option<u64>>(),
            any::<Option<u32>>()
        )
            .prop_map(|(phase, done, total, starved)| {
                Frame::Heartbeat(Heartbeat {
                    phase,
                    done,
                    total,
                    starved,
                })
            }),
        (any::<u64>(), any::<[u8; 32]>()).prop_map(|(raw, chain)| {
            Frame::End(End {
                position: Position {
                    raw,
                    chain: ChainHash::from(chain),
                },
            })
        }),
        any::<(u64, u64)>().prop_map(|(received, durable)| Frame::Ack(Ack { received, durable })),
        any::<u128>().prop_map(|id| Frame::Done(Done {
            snapshot: Uuid::from_u128(id)
        })),
        (0..30u32, any::<Option<i32>>(), ".{0,600}").prop_map(|(code, errno, text)| {
            let code = FailureCode::from_number(code);
            let mut failure = Failure::new(code, text);
            failure.errno = errno;
            Frame::Abort(failure)
        }),
    ]
}

fn encoded(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

fn header(kind: u8, codec: u8, reserved: u16, body: u32, raw: u32) -> [u8; FRAME_HEADER_LEN] {
    let mut bytes = [0; FRAME_HEADER_LEN];
    bytes[0] = kind;
    bytes[1] = codec;
    bytes[2..4].copy_from_slice(&reserved.to_le_bytes());
    bytes[4..8].copy_from_slice(&body.to_le_bytes());
    bytes[8..].copy_from_slice(&raw.to_le_bytes());
    bytes
}

proptest! {
    #[test]
    fn a_control_frame_arrives_as_it_was_sent(frame in control_frames()) {
        let bytes = encoded(&frame);
        prop_assert!(bytes.len() <= FRAME_HEADER_LEN + MAX_CONTROL_BODY);
        prop_assert_eq!(Frame::take(&bytes).unwrap(), Some((frame, &[][..])));
    }

    #[test]
    fn a_block_arrives_as_it_was_sent(
        raw in proptest::collection::vec(any::<u8>(), 1..5000), shrunk in any::<bool>(),
    ) {
        let (codec, payload) = match shrunk && raw.len() > 1 {
            true => (Codec::Zstd, &raw[1..]),
            false => (Codec::None, &raw[..]),
        };
        let data = Data { codec, raw_len: raw.len() as u32, hash: BlockHash::of(&raw), payload };
        let bytes = encoded(&Frame::Data(data));
        prop_assert_eq!(&bytes[..DATA_HEAD_LEN], &data.head());
        prop_assert_eq!(Frame::take(&bytes).unwrap(), Some((Frame::Data(data), &[][..])));
    }

    #[test]
    fn frames_in_a_row_come_apart_where_they_were_joined(
        frames in proptest::collection::vec(control_frames(), 0..8),
    ) {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        let mut rest = &bytes[..];
        for frame in frames {
            let (taken, after) = Frame::take(rest).unwrap().unwrap();
            prop_assert_eq!(taken, frame);
            rest = after;
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn a_frame_cut_anywhere_needs_more(frame in control_frames(), cut in any::<prop::sample::Index>()) {
        let bytes = encoded(&frame);
        prop_assert_eq!(Frame::take(&bytes[..cut.index(bytes.len())]).unwrap(), None);
    }

    #[test]
    fn no_header_gets_past_the_caps(bytes in any::<[u8; FRAME_HEADER_LEN]>(), kind in 0..8u8, codec in 0..6u8) {
        let mut likely = bytes;
        [likely[0], likely[1], likely[2], likely[3]] = [kind, codec, 0, 0];
        for bytes in [bytes, likely] {
            if let Ok(header) = FrameHeader::decode(&bytes) {
                prop_assert!(header.body_len() <= MAX_DATA_BODY);
            }
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(
        kind in 1..=6u8, body in proptest::collection::vec(any::<u8>(), 0..MAX_CONTROL_BODY),
    ) {
        let raw_len = if kind == 1 { body.len().saturating_sub(32) } else { 0 };
        let bytes = header(kind, 0, 0, body.len() as u32, raw_len as u32);
        if let Ok(header) = FrameHeader::decode(&bytes) {
            let _ = Frame::decode(header, &body);
        }
    }
}

#[test]
fn a_length_beyond_the_cap_is_refused_before_there_is_a_body() {
    let too_long = [
        header(1, 0, 0, MAX_DATA_BODY as u32 + 1, MAX_BLOCK as u32),
        header(1, 4, 0, 100, MAX_BLOCK as u32 + 1),
        header(1, 4, 0, u32::MAX, u32::MAX),
        header(2, 0, 0, MAX_CONTROL_BODY as u32 + 1, 0),
        header(6, 0, 0, u32::MAX, 0),
    ];
    for bytes in too_long {
        assert!(
            matches!(Frame::take(&bytes), Err(FrameError::TooLong { .. })),
            "{bytes:?}"
        );
    }
}

#[test]
fn a_header_that_contradicts_itself_is_refused() {
    let contradictions = [
        header(1, 0, 0, 32, 0),       // empty block
        header(1, 0, 0, 31, 1),       // no room for the hash
        header(1, 0, 0, 32 + 10, 11), // not compressed, and yet another length
        header(1, 1, 0, 32, 10),      // compressed to nothing
        header(1, 1, 0, 32 + 10, 10), // compressed to no less
        header(2, 1, 0, 4, 0),        // a heartbeat has no codec
        header(4, 0, 0, 4, 4),        // an Ack has no raw bytes
    ];
    for bytes in contradictions {
        let error = FrameHeader::decode(&bytes).unwrap_err();
        assert!(
            matches!(error, FrameError::Contradiction { .. }),
            "{bytes:?}: {error}"
        );
    }
    assert_eq!(
        FrameHeader::decode(&header(0, 0, 0, 0, 0)),
        Err(FrameError::UnknownKind(0))
    );
    assert_eq!(
        FrameHeader::decode(&header(7, 0, 0, 0, 0)),
        Err(FrameError::UnknownKind(7))
    );
    assert_eq!(
        FrameHeader::decode(&header(1, 5, 0, 40, 9)),
        Err(FrameError::UnknownCodec(5))
    );
    let reserved = FrameHeader::decode(&header(1, 0, 1, 33, 1));
    assert!(matches!(reserved, Err(FrameError::Reserved { .. })));
}

#[test]
fn frames_without_what_they_are_for_are_refused() {
    for (kind, body) in [
        (2, &[][..]),
        (2, &[8, 99]),
        (3, &[]),
        (5, &[]),
        (5, &[10, 1, 7]),
    ] {
        let header = FrameHeader::decode(&header(kind, 0, 0, body.len() as u32, 0)).unwrap();
        let error = Frame::decode(header, body).unwrap_err();
        assert!(
            matches!(error, FrameError::Field { .. }),
            "{kind} {body:?}: {error}"
        );
    }
}
