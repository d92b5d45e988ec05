//! What must hold for the two messages that open a transfer.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::num::NonZeroU64;

use icbd_wire::data::{
    Answer, ChainHash, CodecSet, Failure, FailureCode, HandshakeError, HandshakeKind, Hello,
    ImageName, MAX_HANDSHAKE, Mode, Namespace, PREFACE_LEN, Position, Preface, ProtocolVersion,
    VersionRange, Welcome,
};
use proptest::prelude::*;
use uuid::Uuid;

fn uuids() -> impl Strategy<Value = Uuid> {
    (1..=u128::MAX).prop_map(Uuid::from_u128)
}

fn positions() -> impl Strategy<Value = Position> {
    (any::<u64>(), any::<[u8; 32]>()).prop_map(|(raw, chain)| Position {
        raw,
        chain: ChainHash::from(chain),
    })
}

prop_compose! {
    fn hellos()(
        (oldest, newest) in any::<(u32, u32)>(),
        (transfer, content) in (uuids(), uuids()),
        parent in proptest::option::of(uuids()),
        namespace in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        image in "[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?",
        snapshot in 1..=u64::MAX,
        codecs in any::<u32>(),
        mode in modes(),
        expected_raw in any::<Option<u64>>(),
    ) -> Hello {
        Hello {
            versions: VersionRange { oldest, newest },
            transfer,
            namespace: namespace.parse::<Namespace>().unwrap(),
            image: image.parse::<ImageName>().unwrap(),
            snapshot: NonZeroU64::new(snapshot).unwrap(),
            content,
            parent,
            mode,
            codecs: CodecSet::from_bits(codecs),
            expected_raw,
        }
    }
}

fn modes() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Stream), Just(Mode::Extents)]
}

fn answers() -> impl Strategy<Value = Answer> {
    let welcome = (any::<u32>(), modes(), positions()).prop_map(|(codecs, mode, resume)| {
        let (version, codecs) = (ProtocolVersion::V1, CodecSet::from_bits(codecs));
        Answer::Welcome(Welcome {
            version,
            mode,
            codecs,
            resume,
        })
    });
    let refused =
        (any::<u32>(), any::<Option<i32>>(), ".{0,600}").prop_map(|(code, errno, text)| {
            let mut failure = Failure::new(FailureCode::from_number(code % 30), text);
            failure.errno = errno;
            Answer::Refused(failure)
        });
    prop_oneof![welcome, refused]
}

fn split(message: &[u8]) -> (Preface, &[u8]) {
    let (preface, body) = message.split_first_chunk::<PREFACE_LEN>().unwrap();
    (Preface::decode(preface).unwrap(), body)
}

fn encoded(hello: &Hello) -> Vec<u8> {
    let mut message = Vec::new();
    hello.encode(&mut message);
    message
}

fn some_hello() -> Hello {
    Hello {
        versions: VersionRange::OURS,
        transfer: Uuid::from_u128(1),
        namespace: "desktops".parse().unwrap(),
        image: "win11".parse().unwrap(),
        snapshot: NonZeroU64::MIN,
        content: Uuid::from_u128(2),
        parent: None,
        mode: Mode::Stream,
        codecs: CodecSet::ALL,
        expected_raw: None,
    }
}

proptest! {
    #[test]
    fn a_hello_arrives_as_it_was_sent(hello in hellos()) {
        let message = encoded(&hello);
        prop_assert!(message.len() <= MAX_HANDSHAKE);
        let (preface, body) = split(&message);
        prop_assert_eq!(Hello::decode(preface, body).unwrap(), hello);
    }

    #[test]
    fn an_answer_arrives_as_it_was_sent(answer in answers()) {
        let mut message = Vec::new();
        answer.encode(&mut message);
        prop_assert!(message.len() <= MAX_HANDSHAKE);
        let (preface, body) = split(&message);
        prop_assert_eq!(Answer::decode(preface, body).unwrap(), answer);
    }

    #[test]
    fn a_hello_cut_anywhere_is_an_error(hello in hellos(), cut in any::<prop::sample::Index>()) {
        let message = encoded(&hello);
        let (preface, body) = split(&message);
        let body = &body[..cut.index(body.len())];
        prop_assert!(Hello::decode(preface, body).is_err());
    }

    #[test]
    fn unknown_fields_are_skipped(hello in hellos(), value in any::<[u8; 8]>()) {
        let mut message = encoded(&hello);
        message.extend([0xf9, 0x07]); // field 127, 64 bits wide
        message.extend(value);
        let body_len = u16::try_from(message.len() - PREFACE_LEN).unwrap();
        message[PREFACE_LEN - 2..PREFACE_LEN].copy_from_slice(&body_len.to_le_bytes());
        let (preface, body) = split(&message);
        prop_assert_eq!(Hello::decode(preface, body).unwrap(), hello);
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(
        start in any::<[u8; PREFACE_LEN]>(),
        kind in 1..=3u8,
        body in proptest::collection::vec(any::<u8>(), 0..MAX_HANDSHAKE - PREFACE_LEN),
    ) {
        let _ = Preface::decode(&start);
        let [l0, l1] = u16::try_from(body.len()).unwrap().to_le_bytes();
        let preface = Preface::decode(&[0x89, b'I', b'C', b'B', b'D', kind, l0, l1]).unwrap();
        let _ = Hello::decode(preface, &body);
        let _ = Answer::decode(preface, &body);
    }

    #[test]
    fn a_welcome_made_from_a_hello_passes_the_hellos_own_check(
        hello in hellos(), codecs in any::<u32>(), raw in 1..u64::MAX, chain in any::<[u8; 32]>(),
    ) {
        let resume = Position { raw, chain: chain.into() };
        for resume in [resume, Position::START] {
            match hello.welcome(CodecSet::from_bits(codecs), resume) {
                Ok(welcome) => prop_assert_eq!(hello.check(&welcome), Ok(())),
                Err(error) => {
                    let none_in_common = matches!(error, HandshakeError::NoCommonVersion { .. });
                    prop_assert!(none_in_common);
                    prop_assert!(!hello.versions.contains(ProtocolVersion::V1));
                }
            }
        }
    }
}

#[test]
fn other_protocols_are_recognised_by_their_first_bytes() {
    for start in [
        b"GET / HT",
        b"SSH-2.0-",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"PRI * HT",
        &[0; 8],
    ] {
        assert!(matches!(
            Preface::decode(start),
            Err(HandshakeError::NotThisProtocol(_))
        ));
    }
}

#[test]
fn a_length_beyond_the_cap_is_refused_before_there_is_a_body() {
    let most = (MAX_HANDSHAKE - PREFACE_LEN) as u16;
    for (len, allowed) in [(most, true), (most + 1, false), (u16::MAX, false)] {
        let [l0, l1] = len.to_le_bytes();
        let preface = Preface::decode(&[0x89, b'I', b'C', b'B', b'D', 1, l0, l1]);
        assert_eq!(preface.is_ok(), allowed, "{len}");
    }
}

#[test]
fn neither_side_takes_the_other_sides_message() {
    let hello = some_hello();
    let message = encoded(&hello);
    let (preface, body) = split(&message);
    let wrong = Err(HandshakeError::WrongKind(HandshakeKind::Hello));
    assert_eq!(Answer::decode(preface, body), wrong);

    let mut message = Vec::new();
    let welcome = hello.welcome(CodecSet::ALL, Position::START).unwrap();
    Answer::Welcome(welcome).encode(&mut message);
    let (preface, body) = split(&message);
    let wrong = Err(HandshakeError::WrongKind(HandshakeKind::Welcome));
    assert_eq!(Hello::decode(preface, body), wrong);
}

#[test]
fn a_receiver_may_choose_only_what_was_offered() {
    let offered = CodecSet::of([icbd_wire::data::Codec::Zstd]);
    let hello = Hello {
        codecs: offered,
        ..some_hello()
    };
    let good = hello.welcome(CodecSet::ALL, Position::START).unwrap();
    assert_eq!(good.codecs, offered);
    assert_eq!(hello.check(&good), Ok(()));

    let some_hash = ChainHash::from([7; 32]);
    let bad = [
        Welcome {
            codecs: CodecSet::ALL,
            ..good
        },
        Welcome {
            mode: Mode::Extents,
            ..good
        },
        Welcome {
            resume: Position {
                raw: 0,
                chain: some_hash,
            },
            ..good
        },
    ];
    for welcome in bad {
        assert!(hello.check(&welcome).is_err(), "{welcome:?}");
    }
    let future = Hello {
        versions: VersionRange {
            oldest: 2,
            newest: 3,
        },
        ..hello
    };
    assert!(future.check(&good).is_err());
}

#[test]
fn every_field_that_names_something_is_checked() {
    // Protobuf fields by number, as text and as bytes are both (number << 3 | 2), length, content.
    let field =
        |number: u8, content: &[u8]| [&[number << 3 | 2, content.len() as u8], content].concat();
    let bad: [(&str, Vec<u8>); 7] = [
        ("namespace", field(4, b"../etc")),
        ("namespace", field(4, &[b'a'; 64])),
        ("image", field(5, b"a/b")),
        ("image", field(5, &[b'a'; 51])),
        ("content", field(7, &[1; 15])),
        ("content", field(7, &[0; 16])),
        ("parent", field(8, b"")),
    ];
    for (name, field) in bad {
        // The last of two values of a field counts.
        let mut message = encoded(&some_hello());
        message.extend(field);
        let body_len = u16::try_from(message.len() - PREFACE_LEN).unwrap();
        message[PREFACE_LEN - 2..PREFACE_LEN].copy_from_slice(&body_len.to_le_bytes());
        let (preface, body) = split(&message);
        let error = Hello::decode(preface, body).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn a_stranger_of_no_common_version_is_told_both_ranges() {
    let hello = Hello {
        versions: VersionRange {
            oldest: 7,
            newest: 9,
        },
        ..some_hello()
    };
    let error = hello.welcome(CodecSet::ALL, Position::START).unwrap_err();
    let failure = Failure::from(&error);
    assert_eq!(failure.code, FailureCode::VersionMismatch);
    assert!(failure.message().contains("7 to 9"), "{failure}");
}
