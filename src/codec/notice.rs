//! Notices as PostgreSQL carries them: text of at most 7,999 bytes.
//!
//! - a stream: `1,<id>,<pos>,<generation>,<worker or nothing>,<turn>,<d if deleted>`; the leading number
//!   is the version, and a reader that does not know it takes the notice for a lost one;
//! - metadata: ids, 22 characters each, and nothing between ([`crate::state::metadata::notices`]);
//! - a replica: its id.
//!
//! An id is its 16 bytes in base64 without padding: 22 characters.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use uuid::Uuid;

/// The most PostgreSQL takes in one notice.
pub const PAYLOAD_MAX: usize = 7_999;

const VERSION: &str = "1";

/// A payload that is not a notice of its kind, or of a version that is not known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadNotice;

/// Where a stream stood, as its notice says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamAt {
    /// Which stream.
    pub stream: Uuid,
    /// Its position.
    pub pos: u64,
    /// Its generation.
    pub generation: u32,
    /// Who runs it, while it runs.
    pub worker: Option<Uuid>,
    /// The number of its last turn.
    pub turn: u32,
    /// True when it was deleted.
    pub deleted: bool,
}

impl StreamAt {
    /// The notice as text.
    pub fn encode(&self) -> String {
        let worker = self.worker.map(id).unwrap_or_default();
        let deleted = if self.deleted { "d" } else { "" };
        format!(
            "{VERSION},{},{},{},{worker},{},{deleted}",
            id(self.stream),
            self.pos,
            self.generation,
            self.turn
        )
    }

    /// The notice a text is.
    pub fn decode(text: &str) -> Result<StreamAt, BadNotice> {
        let fields: Vec<&str> = text.split(',').collect();
        let [VERSION, stream, pos, generation, worker, turn, deleted] = fields[..] else {
            return Err(BadNotice);
        };
        Ok(StreamAt {
            stream: named(stream)?,
            pos: pos.parse().map_err(|_| BadNotice)?,
            generation: generation.parse().map_err(|_| BadNotice)?,
            worker: if worker.is_empty() { None } else { Some(named(worker)?) },
            turn: turn.parse().map_err(|_| BadNotice)?,
            deleted: match deleted {
                "" => false,
                "d" => true,
                _ => return Err(BadNotice),
            },
        })
    }
}

/// An id as notices carry it.
pub fn id(id: Uuid) -> String {
    STANDARD_NO_PAD.encode(id.as_bytes())
}

/// The id a text is.
pub fn named(text: &str) -> Result<Uuid, BadNotice> {
    let bytes = STANDARD_NO_PAD.decode(text).map_err(|_| BadNotice)?;
    Uuid::from_slice(&bytes).map_err(|_| BadNotice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_notice_says_what_it_was_told() {
        for (worker, deleted) in [(None, true), (Some(Uuid::from_u128(u128::MAX)), false)] {
            let at = StreamAt {
                stream: Uuid::from_u128(7),
                pos: u64::MAX,
                generation: u32::MAX,
                worker,
                turn: u32::MAX,
                deleted,
            };
            assert_eq!(StreamAt::decode(&at.encode()), Ok(at));
            assert!(at.encode().len() < 100);
        }
    }

    #[test]
    fn what_is_not_a_notice_is_refused() {
        let good =
            StreamAt { stream: Uuid::nil(), pos: 1, generation: 0, worker: None, turn: 0, deleted: false }
                .encode();
        for bad in [
            "",
            ",,,,,,",
            &good[1..],
            &format!("{good}x"),
            &format!("2{}", &good[1..]),
            &good.replace("A,", ","),
        ] {
            assert_eq!(StreamAt::decode(bad), Err(BadNotice), "{bad}");
        }
        assert_eq!(named("AAAA"), Err(BadNotice));
    }
}
