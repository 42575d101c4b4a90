//! Any bytes as WebSocket frames, read by either role: they mean the same however they were cut into pieces, no
//! message is longer than its bound, and what is held is bounded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towpath::wire::websocket::{Message, Reader, Role, Violation, close};

/// The largest message let in.
const MAX: u32 = 4 * 1024;

fn read_frames<'a>(
    role: Role,
    max: u32,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<Message>, Option<Violation>) {
    let (mut reader, mut messages) = (Reader::new(role, max), Vec::new());
    for piece in pieces {
        if let Err(violation) = reader.feed(piece, &mut messages) {
            return (messages, Some(violation));
        }
        assert!(reader.held() <= max as usize, "what is held is bounded");
    }
    (messages, None)
}

fuzz_target!(|data: &[u8]| {
    let (first, data) = data.split_first().map_or((0, data), |(first, rest)| (*first, rest));
    let role = if first & 1 == 0 { Role::Server } else { Role::Client };
    let step = usize::from(first >> 1).max(1);
    let whole = read_frames(role, MAX, std::iter::once(data));
    let pieces = read_frames(role, MAX, data.chunks(step));
    assert_eq!(whole, pieces, "a link means the same however it arrives");
    for message in &whole.0 {
        match message {
            Message::Text(text) => assert!(text.len() <= MAX as usize),
            Message::Binary(bytes) => assert!(bytes.len() <= MAX as usize),
            Message::Ping(payload) | Message::Pong(payload) => assert!(payload.len() <= 125),
            Message::Close(said) => {
                let code = said.as_ref().map_or(close::NORMAL, |(code, _)| *code);
                assert!((1000..5000).contains(&code) && code != close::NONE && code != close::ABNORMAL);
            }
        }
    }
});
