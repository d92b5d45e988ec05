//! Any bytes through the send stream parser. Twice: as a whole stream, where most end at the first
//! checksum, and as the payloads of commands with right checksums, which reach every attribute. What
//! is accepted must come back the same when written and read again.
#![no_main]

use icbd_btrfs::stream::encode::{Encoder, payload};
use icbd_btrfs::stream::{Command, Reader, Version};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    for version in [Version::V1, Version::V2] {
        read(&framed(bytes, version));
    }
});

/// Takes `bytes` apart into commands: a number, a length of 16 bits, a payload.
fn framed(mut bytes: &[u8], version: Version) -> Vec<u8> {
    let mut encoder = Encoder::new(version);
    while let Some((&[number, low, high], rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (payload, rest) = rest.split_at(length);
        encoder.raw(number.into(), payload);
        bytes = rest;
    }
    encoder.end()
}

fn read(bytes: &[u8]) {
    let Ok(Some(mut reader)) = Reader::begin(bytes) else {
        return;
    };
    let version = reader.version();
    while let Ok(Some(command)) = reader.next_command() {
        same_again(&command, version);
    }
}

fn same_again(command: &Command<'_>, version: Version) {
    let mut encoder = Encoder::new(version);
    encoder.raw(command.kind().number(), &payload(command, version));
    let mut reader = Reader::begin(encoder.bytes()).unwrap().unwrap();
    assert_eq!(reader.next_command().unwrap().as_ref(), Some(command));
}
