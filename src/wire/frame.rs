//! Outgoing bytes, encoded once and shared by every link they go to.
//!
//! A frame is one allocation: the bytes in front (a WebSocket header, a chunk size), the payload, and
//! the bytes behind. Cloning it counts a reference. A link that speaks another encoding than the frame
//! was made for (a masked client, an HTTP/1.0 body) makes its own copy from the payload, so any frame
//! may go to any link.

use std::fmt;
use std::sync::Arc;

/// What a [`Frame`] was encoded as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// A WebSocket text message in one unmasked frame.
    Text,
    /// A WebSocket binary message in one unmasked frame.
    Binary,
    /// One chunk of a chunked HTTP body.
    Chunk,
    /// Nothing around the payload.
    Raw,
}

/// Shared bytes on their way out. See the [module](self).
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    bytes: Arc<[u8]>,
    start: u8,
    end: u8,
    encoding: Encoding,
}

/// The longest a WebSocket header without a mask, or a chunk size with its line end, gets.
const FRONT_MAX: usize = 18;

impl Frame {
    /// A WebSocket text message.
    pub fn text(payload: &str) -> Frame {
        Frame::websocket(0x81, payload.as_bytes(), Encoding::Text)
    }

    /// A WebSocket binary message.
    pub fn binary(payload: &[u8]) -> Frame {
        Frame::websocket(0x82, payload, Encoding::Binary)
    }

    /// One chunk of a chunked body: a piece of a stream, an SSE event. An empty payload is an empty
    /// frame, never the chunk that ends the body (a link writes that when it is closed).
    pub fn chunk(payload: &[u8]) -> Frame {
        if payload.is_empty() {
            return Frame { bytes: Arc::from([]), start: 0, end: 0, encoding: Encoding::Chunk };
        }
        let size = format!("{:x}\r\n", payload.len());
        Frame::build(size.as_bytes(), payload, b"\r\n", Encoding::Chunk)
    }

    /// Bytes as they are.
    pub fn raw(payload: &[u8]) -> Frame {
        Frame { bytes: Arc::from(payload), start: 0, end: 0, encoding: Encoding::Raw }
    }

    /// Bytes as they are, from a buffer that is given away.
    pub fn raw_owned(payload: Vec<u8>) -> Frame {
        Frame { bytes: Arc::from(payload), start: 0, end: 0, encoding: Encoding::Raw }
    }

    fn websocket(first: u8, payload: &[u8], encoding: Encoding) -> Frame {
        let mut head = [0u8; 10];
        let len = super::websocket::write_header(&mut head, first, payload.len(), None);
        Frame::build(&head[..len], payload, b"", encoding)
    }

    fn build(front: &[u8], payload: &[u8], behind: &[u8], encoding: Encoding) -> Frame {
        debug_assert!(front.len() <= FRONT_MAX);
        let mut bytes = Vec::with_capacity(front.len() + payload.len() + behind.len());
        bytes.extend_from_slice(front);
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(behind);
        Frame { bytes: Arc::from(bytes), start: front.len() as u8, end: behind.len() as u8, encoding }
    }

    /// What it was encoded as.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The bytes as they go on a wire of its own encoding.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What it carries.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[usize::from(self.start)..self.bytes.len() - usize::from(self.end)]
    }

    /// How many bytes it occupies on a wire of its own encoding.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it carries nothing at all.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl fmt::Debug for Frame {
    /// Length and encoding only: payloads may hold what users wrote.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({:?}, {} bytes)", self.encoding, self.payload().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_knows_its_payload_under_every_encoding() {
        for frame in
            [Frame::text("hello"), Frame::binary(b"hello"), Frame::chunk(b"hello"), Frame::raw(b"hello")]
        {
            assert_eq!(frame.payload(), b"hello", "{frame:?}");
        }
        assert_eq!(Frame::chunk(b"hello").bytes(), b"5\r\nhello\r\n");
        assert_eq!(Frame::text("hello").bytes(), b"\x81\x05hello");
    }

    #[test]
    fn an_empty_chunk_does_not_end_a_body() {
        assert!(Frame::chunk(b"").bytes().is_empty());
    }

    #[test]
    fn long_payloads_carry_long_lengths() {
        let long = vec![b'x'; 70_000];
        assert_eq!(&Frame::binary(&long).bytes()[..10], &[0x82, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]);
        assert_eq!(&Frame::binary(&long[..300]).bytes()[..4], &[0x82, 126, 1, 0x2c]);
        assert_eq!(Frame::binary(&long).payload(), &long[..]);
    }

    #[test]
    fn a_frame_prints_no_payload() {
        assert_eq!(format!("{:?}", Frame::text("canary")), "Frame(Text, 6 bytes)");
    }
}
