//! Any bytes after the handshake, as each side would take them: a frame that decodes must encode
//! to one that decodes to the same, and the order of frames is judged without a panic.
#![no_main]

use icbd_wire::data::{
    CodecSet, Decompressor, Frame, MAX_DATA_BODY, Mode, Position, ProtocolVersion, Receiving,
    Sending, Welcome,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let welcome = Welcome {
        version: ProtocolVersion::NEWEST,
        mode: Mode::Stream,
        codecs: CodecSet::ALL,
        resume: Position::START,
    };
    let mut receiving = Receiving::new(&welcome);
    let mut sending = Sending::new(&welcome);
    let mut decompressor = Decompressor::new();
    let mut rest = input;
    while let Ok(Some((frame, after))) = Frame::take(rest) {
        let mut again = Vec::new();
        frame.encode(&mut again);
        assert!(again.len() <= MAX_DATA_BODY + 12);
        assert_eq!(Frame::take(&again), Ok(Some((frame.clone(), &[][..]))));
        if let Frame::Data(data) = &frame {
            let _ = decompressor.open(data);
        }
        let _ = receiving.admit(&frame);
        let _ = sending.admit(&frame);
        rest = after;
    }
});
