//! Any bytes as the frames of a pipe: they mean the same however they were cut into pieces, and what was read
//! is read again from what it is written as.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towpath::codec::pipe::{Decoder, FrameError, Piece, encode_control, encode_greeting};

/// Everything that was said, in order; bytes that follow one another are one piece.
#[derive(Debug, PartialEq)]
enum Said {
    Data(u64, Vec<u8>),
    /// A frame, written again.
    Frame(Vec<u8>),
}

/// Sentences are cut when they are longer than this.
const TEXT_MAX: usize = 1_024;

fn written(piece: &Piece<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    match piece {
        Piece::Control(control) => encode_control(control, &mut bytes),
        Piece::Greeting(greeting) => encode_greeting(greeting, &mut bytes),
        Piece::Data { .. } => unreachable!("bytes are not written as a frame here"),
    }
    bytes
}

/// Writes a frame that was read, and reads what was written.
fn again(piece: &Piece<'_>) -> Vec<u8> {
    let bytes = written(piece);
    let (mut decoder, mut input) = (Decoder::new(), &bytes[..]);
    let read = decoder.next(&mut input).expect("what is written can be read").expect("it is whole");
    assert!(input.is_empty() && decoder.is_between_frames(), "one frame was written");
    assert_eq!(written(&read), bytes, "it is written as it was");
    assert!(bytes.len() > TEXT_MAX || &read == piece, "it means the same");
    bytes
}

fn read_frames<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Said>, Option<FrameError>) {
    let (mut decoder, mut said) = (Decoder::new(), Vec::new());
    for mut input in pieces {
        loop {
            match decoder.next(&mut input) {
                Err(error) => return (said, Some(error)),
                Ok(None) => break assert!(input.is_empty(), "nothing is left lying"),
                Ok(Some(Piece::Data { off, bytes })) => match said.last_mut() {
                    Some(Said::Data(from, before)) if from.checked_add(before.len() as u64) == Some(off) => {
                        before.extend_from_slice(bytes);
                    }
                    _ => said.push(Said::Data(off, bytes.to_vec())),
                },
                Ok(Some(piece)) => said.push(Said::Frame(again(&piece))),
            }
        }
    }
    (said, None)
}

fuzz_target!(|data: &[u8]| {
    let (step, data) = data.split_first().map_or((1, data), |(first, rest)| (usize::from(*first).max(1), rest));
    let whole = read_frames(std::iter::once(data));
    assert_eq!(whole, read_frames(data.chunks(step)), "a carrier means the same however it arrives");
});
