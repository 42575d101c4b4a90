//! What a request with a key was answered, so that the same request is answered the same again.

use super::*;

/// The answer to a keyed request, as it is remembered.
#[derive(Serialize, Deserialize)]
pub(super) enum Answer {
    Appended { first: u64, last: u64, pos: u64, generation: u32 },
    Pushed { id: u64 },
    Committed { id: u64 },
    Claimed { stream: Uuid, turn: u32, masked: [u8; 32], input: Option<InputAnswer> },
}

/// An input as a claim's answer keeps it: it is in the queue no more.
#[derive(Serialize, Deserialize)]
pub(super) struct InputAnswer {
    pub(super) id: u64,
    pub(super) json: bool,
    pub(super) role: Option<String>,
    pub(super) content: Vec<u8>,
    pub(super) at: i64,
}

impl InputAnswer {
    pub(super) fn of(input: &QueuedRow) -> InputAnswer {
        InputAnswer {
            id: input.id,
            json: input.kind == Kind::Json,
            role: input.role.clone(),
            content: input.content.to_vec(),
            at: input.at.0,
        }
    }

    pub(super) fn input(self) -> QueuedRow {
        QueuedRow {
            id: self.id,
            kind: if self.json { Kind::Json } else { Kind::Bytes },
            role: self.role,
            content: self.content.into(),
            at: Wall(self.at),
        }
    }
}

/// Which kind of request a key belongs to; the same key on another kind is another key.
#[derive(Clone, Copy)]
pub(super) enum Op {
    Append = 1,
    Push = 2,
    Commit = 3,
    Claim = 4,
    ClaimNext = 5,
}

pub(super) fn key_hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Hides a lease under the key that asks for it, so that the store alone gives neither away.
pub(super) fn mask(lease: [u8; 32], key: &str) -> [u8; 32] {
    let pad: [u8; 32] = Sha256::new().chain_update("towpath lease ").chain_update(key).finalize().into();
    std::array::from_fn(|i| lease[i] ^ pad[i])
}

/// The answer a keyed request got before, if it did within [`KEY_MEMORY`].
pub(super) fn recall(
    sql: &mut dyn Sql,
    scope: Uuid,
    op: Op,
    key: Option<&str>,
) -> Result<Option<Answer>, StoreError> {
    let Some(key) = key else { return Ok(None) };
    let row = sql.row(
        "SELECT answer FROM answers WHERE scope = ?1 AND op = ?2 AND key = ?3 AND at > towpath_after(?4)",
        args![scope, op as i64, &key_hash(key)[..], -micros(KEY_MEMORY)],
    )?;
    let Some(mut row) = row else { return Ok(None) };
    let text = row.text()?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|_| StoreError::fatal("damaged", "a remembered answer cannot be read; delete it"))
}

pub(super) fn remember(
    sql: &mut dyn Sql,
    scope: Uuid,
    op: Op,
    key: Option<&str>,
    answer: &Answer,
) -> Result<(), StoreError> {
    let Some(key) = key else { return Ok(()) };
    let text = serde_json::to_string(answer).expect("an answer is JSON");
    // One that is there has aged out, or `recall` had found it.
    sql.execute(
        "INSERT INTO answers (scope, op, key, answer, at) VALUES (?1, ?2, ?3, ?4, towpath_now()) \
         ON CONFLICT (scope, op, key) DO UPDATE SET answer = excluded.answer, at = excluded.at",
        args![scope, op as i64, &key_hash(key)[..], text.as_str()],
    )?;
    Ok(())
}

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
