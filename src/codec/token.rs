//! The token a follower comes back with: where it stood, in which stream, of which store.
//!
//! 25 bytes, big-endian: `version:1 | tag:4 | gen:4 | pos:8 | turn:4 | part:4`, written as 40
//! characters of lower-case base32hex without padding. That alphabet is in ASCII order and every field
//! is big-endian, so tokens of one stream sort as text the way their cursors sort as numbers. A token is
//! never `-1` or `now`, and needs no escaping in a URL, a header or a cookie.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::state::stream::Cursor;

/// The version this binary writes, and the only one it reads.
const VERSION: u8 = 1;
/// Bytes in a token.
const BYTES: usize = 25;
/// Characters in a written token: 25 bytes are exactly 40 groups of five bits.
pub const TOKEN_LEN: usize = 40;

const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// Which stream of which store a token speaks of.
///
/// The first four bytes of SHA-256 over store id, epoch and stream id: a token of another stream, of a
/// stream that was created again, or of a store that was restored from a backup does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tag(pub [u8; 4]);

impl Tag {
    /// The tag of a stream in one epoch of a store.
    pub fn of(store: Uuid, epoch: Uuid, stream: Uuid) -> Tag {
        let hash = Sha256::new()
            .chain_update(store.as_bytes())
            .chain_update(epoch.as_bytes())
            .chain_update(stream.as_bytes())
            .finalize();
        Tag([hash[0], hash[1], hash[2], hash[3]])
    }
}

/// A position a follower can come back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    /// The stream it belongs to.
    pub tag: Tag,
    /// Where in that stream.
    pub cursor: Cursor,
}

/// Why a text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadToken {
    /// Not 40 characters long.
    Length(usize),
    /// A character that is not one of `0-9a-v`, and where.
    Digit(usize),
    /// Written by another version of towpath.
    Version(u8),
}

impl fmt::Display for BadToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadToken::Length(len) => {
                write!(f, "a token has {TOKEN_LEN} characters, this has {len}; start with -1 or now")
            }
            BadToken::Digit(at) => write!(f, "character {at} of the token is not one of 0-9a-v"),
            BadToken::Version(version) => {
                write!(f, "the token is of version {version}, this daemon reads {VERSION}; start with -1")
            }
        }
    }
}

impl std::error::Error for BadToken {}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; BYTES];
        bytes[0] = VERSION;
        bytes[1..5].copy_from_slice(&self.tag.0);
        bytes[5..9].copy_from_slice(&self.cursor.generation.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.cursor.pos.to_be_bytes());
        bytes[17..21].copy_from_slice(&self.cursor.turn.to_be_bytes());
        bytes[21..25].copy_from_slice(&self.cursor.part.to_be_bytes());
        let mut text = [0; TOKEN_LEN];
        for (five, eight) in bytes.chunks_exact(5).zip(text.chunks_exact_mut(8)) {
            let bits = five.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
            for (at, digit) in eight.iter_mut().enumerate() {
                *digit = DIGITS[(bits >> (35 - 5 * at) & 31) as usize];
            }
        }
        f.write_str(std::str::from_utf8(&text).expect("digits are ASCII"))
    }
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Token, BadToken> {
        if text.len() != TOKEN_LEN {
            return Err(BadToken::Length(text.len()));
        }
        let mut bytes = [0; BYTES];
        for (group, (eight, five)) in
            text.as_bytes().chunks_exact(8).zip(bytes.chunks_exact_mut(5)).enumerate()
        {
            let mut bits = 0u64;
            for (at, digit) in eight.iter().enumerate() {
                let value = match digit {
                    b'0'..=b'9' => digit - b'0',
                    b'a'..=b'v' => digit - b'a' + 10,
                    _ => return Err(BadToken::Digit(group * 8 + at)),
                };
                bits = bits << 5 | u64::from(value);
            }
            five.copy_from_slice(&bits.to_be_bytes()[3..]);
        }
        let (&[version], rest) = bytes.split_first_chunk().expect("25 bytes have a first");
        if version != VERSION {
            return Err(BadToken::Version(version));
        }
        let u32_at = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().expect("four bytes"));
        Ok(Token {
            tag: Tag(rest[..4].try_into().expect("four bytes")),
            cursor: Cursor {
                generation: u32_at(4),
                pos: u64::from_be_bytes(rest[8..16].try_into().expect("eight bytes")),
                turn: u32_at(16),
                part: u32_at(20),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_token() -> impl Strategy<Value = Token> {
        (any::<[u8; 4]>(), any::<u32>(), any::<u64>(), any::<u32>(), any::<u32>()).prop_map(
            |(tag, generation, pos, turn, part)| Token {
                tag: Tag(tag),
                cursor: Cursor { generation, pos, turn, part },
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(token in any_token()) {
            let text = token.to_string();
            prop_assert_eq!(text.len(), TOKEN_LEN);
            prop_assert_eq!(text.parse(), Ok(token));
        }

        #[test]
        fn tokens_of_a_stream_sort_as_text_the_way_their_cursors_sort(one in any_token(), other in any_token()) {
            let other = Token { tag: one.tag, ..other };
            prop_assert_eq!(one.to_string().cmp(&other.to_string()), one.cursor.cmp(&other.cursor));
        }

        #[test]
        fn no_text_panics_and_what_is_read_is_written_the_same(text in "[0-9a-v]{40}|\\PC{0,60}") {
            if let Ok(token) = text.parse::<Token>() {
                prop_assert_eq!(token.to_string(), text);
            }
        }
    }

    #[test]
    fn a_known_token_keeps_its_form() {
        let cursor = Cursor { generation: 1, pos: 2, turn: 3, part: 4 };
        let token = Token { tag: Tag([0xde, 0xad, 0xbe, 0xef]), cursor };
        assert_eq!(token.to_string(), "07farfnf0000008000000000001000000c000004");
    }

    #[test]
    fn a_text_that_is_no_token_says_why() {
        assert_eq!("-1".parse::<Token>(), Err(BadToken::Length(2)));
        assert_eq!("now".parse::<Token>(), Err(BadToken::Length(3)));
        assert_eq!("x".repeat(40).parse::<Token>(), Err(BadToken::Digit(0)));
        assert_eq!("é".repeat(20).parse::<Token>(), Err(BadToken::Digit(0)));
        assert_eq!("0".repeat(40).parse::<Token>(), Err(BadToken::Version(0)));
    }

    #[test]
    fn the_tag_tells_streams_epochs_and_stores_apart() {
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let tag = Tag::of(one, one, one);
        assert_eq!(tag, Tag::of(one, one, one));
        assert_ne!(tag, Tag::of(one, one, other));
        assert_ne!(tag, Tag::of(one, other, one));
        assert_ne!(tag, Tag::of(other, one, one));
    }
}
