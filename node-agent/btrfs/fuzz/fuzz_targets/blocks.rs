//! A stream in blocks: wherever it is cut between two commands, and wherever another reader takes
//! over, the commands and the errors are those of the stream in one piece, and those of the reader of
//! whole streams. And any bytes as a block.
#![no_main]

use icbd_btrfs::receive::Inspector;
use icbd_btrfs::stream::encode::Encoder;
use icbd_btrfs::stream::{BlockReader, Position, Reader, Version};
use libfuzzer_sys::fuzz_target;

/// Bytes of a stream's header.
const HEADER: usize = 17;

fuzz_target!(|bytes: &[u8]| {
    let _ = in_blocks(&[bytes], |_| false);
    let _ = Inspector::default().inspect(bytes);
    for version in [Version::V1, Version::V2] {
        let _ = BlockReader::resume(version, Position::FIRST_COMMAND).next_command(&mut &*bytes);
        let (blocks, handed_over) = framed(bytes, version);
        let blocks: Vec<_> = blocks.iter().map(Vec::as_slice).collect();
        let stream = blocks.concat();

        let one = in_blocks(&[&stream], |_| false);
        assert_eq!(in_blocks(&blocks, |_| false), one);
        assert_eq!(in_blocks(&blocks, |block| handed_over[block]), one);
        same_as_whole(&stream, &one);
    }
});

/// The commands in print, and the error that ended them, if one did.
type Outcome = (Vec<String>, Option<String>);

/// Takes `bytes` apart into commands: a number, a length of 16 bits of which the uppermost two say
/// whether a block ends after it and whether another reader goes on, a payload.
fn framed(mut bytes: &[u8], version: Version) -> (Vec<Vec<u8>>, Vec<bool>) {
    let mut encoder = Encoder::new(version);
    let (mut blocks, mut handed_over, mut from) = (Vec::new(), Vec::new(), 0);
    while let Some((&[number, low, high], rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([low, high & 0x3f])).min(rest.len());
        let (payload, rest) = rest.split_at(length);
        encoder.raw(number.into(), payload);
        bytes = rest;
        if high & 0x40 != 0 {
            blocks.push(encoder.bytes()[from..].to_vec());
            handed_over.push(high & 0x80 != 0);
            from = encoder.bytes().len();
        }
    }
    encoder.end();
    blocks.push(encoder.bytes()[from..].to_vec());
    handed_over.push(false);
    (blocks, handed_over)
}

fn in_blocks(blocks: &[&[u8]], handed_over: impl Fn(usize) -> bool) -> Outcome {
    let mut reader = BlockReader::begin();
    let mut commands = Vec::new();
    for (number, block) in blocks.iter().enumerate() {
        let mut rest = *block;
        loop {
            let (before, whole) = (rest, reader.starts_with_command(rest));
            match reader.next_command(&mut rest) {
                Ok(Some(command)) => {
                    assert!(whole && rest.len() < before.len());
                    commands.push(format!("{} {command:?}", reader.upcoming()));
                }
                Ok(None) => break,
                Err(error) => return (commands, Some(error.to_string())),
            }
        }
        assert!(rest.is_empty());
        match reader.version() {
            Some(version) if handed_over(number) && !reader.is_ended() => {
                reader = BlockReader::resume(version, reader.upcoming());
            }
            _ => {}
        }
    }
    (commands, None)
}

/// The reader of whole streams takes less in one command, and nothing after END.
fn same_as_whole(stream: &[u8], (commands, error): &Outcome) {
    assert!(stream.len() >= HEADER);
    let mut reader = Reader::begin(stream).unwrap().unwrap();
    let mut expected = commands.iter();
    loop {
        let read = reader
            .next_command()
            .map(|command| command.map(|c| format!("{c:?}")));
        match read {
            Ok(Some(command)) => {
                let command = format!("{} {command}", reader.upcoming());
                assert_eq!(expected.next(), Some(&command));
            }
            Ok(None) => return,
            Err(said) => {
                assert_eq!(expected.next(), None);
                assert_eq!(error.as_ref(), Some(&said.to_string()));
                return;
            }
        }
    }
}
