//! Any first bytes of a connection: a handshake message that decodes must encode to one that
//! decodes to the same. The input is tried as it is, and as the fields that follow those of a good
//! message: of a field that comes twice the last counts, so that every check is soon reached.
#![no_main]

use std::num::NonZeroU64;

use icbd_wire::data::{
    Answer, CodecSet, Failure, FailureCode, Hello, MAX_HANDSHAKE, Mode, PREFACE_LEN, Position,
    Preface, VersionRange,
};
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

fuzz_target!(|input: &[u8]| {
    decode(input);

    let hello = good_hello();
    let welcome = hello.welcome(CodecSet::ALL, Position::START).unwrap();
    let refusal = Failure::new(FailureCode::Busy, "two transfers already");
    let mut messages = [const { Vec::new() }; 3];
    hello.encode(&mut messages[0]);
    Answer::Welcome(welcome).encode(&mut messages[1]);
    Answer::Refused(refusal).encode(&mut messages[2]);
    for mut message in messages {
        message.extend_from_slice(input);
        let body_len = (message.len() - PREFACE_LEN).min(usize::from(u16::MAX)) as u16;
        message[PREFACE_LEN - 2..PREFACE_LEN].copy_from_slice(&body_len.to_le_bytes());
        decode(&message);
    }
});

fn decode(message: &[u8]) {
    let Some((start, rest)) = message.split_first_chunk::<PREFACE_LEN>() else {
        return;
    };
    let Ok(preface) = Preface::decode(start) else {
        return;
    };
    let Some(body) = rest.get(..usize::from(preface.body_len)) else {
        return;
    };
    let mut again = Vec::new();
    if let Ok(hello) = Hello::decode(preface, body) {
        hello.encode(&mut again);
        let (preface, body) = split(&again);
        assert_eq!(Hello::decode(preface, body).as_ref(), Ok(&hello));
        if let Ok(welcome) = hello.welcome(CodecSet::ALL, Position::START) {
            assert_eq!(hello.check(&welcome), Ok(()));
        }
    } else if let Ok(answer) = Answer::decode(preface, body) {
        answer.encode(&mut again);
        let (preface, body) = split(&again);
        assert_eq!(Answer::decode(preface, body), Ok(answer));
    }
}

fn split(message: &[u8]) -> (Preface, &[u8]) {
    assert!(message.len() <= MAX_HANDSHAKE);
    let (start, body) = message.split_first_chunk().unwrap();
    (Preface::decode(start).unwrap(), body)
}

fn good_hello() -> Hello {
    Hello {
        versions: VersionRange::OURS,
        transfer: Uuid::from_u128(1),
        namespace: "desktops".parse().unwrap(),
        image: "win11".parse().unwrap(),
        snapshot: NonZeroU64::MIN,
        content: Uuid::from_u128(2),
        parent: Some(Uuid::from_u128(3)),
        mode: Mode::Stream,
        codecs: CodecSet::ALL,
        expected_raw: Some(1 << 30),
    }
}
