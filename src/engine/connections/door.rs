//! The door of the connection log: rows of one connection become one where their callers stand.
//!
//! Invariant: rows of one key are one row, and in one shard: what a drain gives has distinct keys.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher as _};
use std::sync::atomic::Ordering::Relaxed;

use crate::engine::door::Door;
use crate::engine::ledger::{Account, Ledger};
use crate::rt::{Hasher, Moment, Rt};
use crate::state::batch::Merge;
use crate::state::connection::Row;

/// The door of the connection log.
#[derive(Debug)]
pub(in crate::engine) struct ConnectionDoor {
    door: Door<Shard>,
    hasher: Hasher,
    bound: usize,
}

/// Rows in the order they came, and where each key's row is.
#[derive(Debug, Default)]
struct Shard {
    rows: Vec<Row>,
    /// By the hash of the key, or the next number that is free if another key has the same.
    index: HashMap<u64, usize, BuildHasherDefault<AlreadyHashed>>,
    accepted: u64,
    merged: u64,
}

/// A hash is hash enough.
#[derive(Debug, Default)]
struct AlreadyHashed(u64);

impl std::hash::Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only numbers of 64 bits are keys here");
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// What became of a row at the door.
pub(super) enum Added {
    /// It is the first of its key; there were so many rows before.
    New { before: usize },
    /// It became part of the one that was there.
    Merged,
    /// There is no room; it comes back.
    Full(Row),
    /// The door is closed for good; it comes back.
    Sealed(Row),
}

impl ConnectionDoor {
    pub(super) fn new(rt: &Rt, bound: usize) -> ConnectionDoor {
        ConnectionDoor { door: Door::new(Shard::default), hasher: rt.hasher(), bound }
    }

    /// Adds a row, or merges it into the one of its key.
    pub(super) fn add(&self, row: Row) -> Added {
        let hash = self.hash(&row);
        self.add_at(hash, row)
    }

    fn add_at(&self, hash: u64, row: Row) -> Added {
        // A caller that finds it full waits with its row; nobody is ahead of anybody.
        let full = self.door.held() >= self.bound;
        let Ok(mut shard) = self.door.enter(hash) else { return Added::Sealed(row) };
        let shard = &mut *shard;
        let mut place = hash;
        while let Some(held) = shard.index.get(&place) {
            let held = &mut shard.rows[*held];
            if same_key(held, &row) {
                held.merge(row);
                shard.accepted += 1;
                shard.merged += 1;
                return Added::Merged;
            }
            place = place.wrapping_add(1);
        }
        if full {
            return Added::Full(row);
        }
        shard.index.insert(place, shard.rows.len());
        shard.rows.push(row);
        shard.accepted += 1;
        Added::New { before: self.door.grew(1) }
    }

    /// Takes everything out; from here on it is the room's, and pending.
    pub(in crate::engine) fn drain(&self, ledger: &Ledger) -> Vec<Row> {
        let mut shards = Vec::new();
        self.door.each(|shard| {
            ledger.accepted.fetch_add(std::mem::take(&mut shard.accepted), Relaxed);
            ledger.merged.fetch_add(std::mem::take(&mut shard.merged), Relaxed);
            ledger.pending.fetch_add(shard.rows.len() as u64, Relaxed);
            // As much room as was needed last: whoever comes next does not wait for it to grow.
            let room = Vec::with_capacity(shard.rows.len());
            shards.push(std::mem::replace(&mut shard.rows, room));
            shard.index.clear();
        });
        let mut rows = Vec::with_capacity(shards.iter().map(Vec::len).sum());
        shards.iter_mut().for_each(|shard| rows.append(shard));
        self.door.shrank(rows.len());
        rows
    }

    /// Adds what the door knows and the books do not yet.
    pub(super) fn enter_into(&self, account: &mut Account) {
        self.door.each(|shard| {
            account.accepted += shard.accepted;
            account.merged += shard.merged;
            account.pending += shard.rows.len() as u64;
        });
    }

    /// Waits until there may be room; see [`Door::wait`].
    pub(super) fn wait(&self, rt: &Rt, deadline: Moment, hurry: impl FnOnce()) -> bool {
        self.door.wait(rt, self.bound, deadline, hurry)
    }

    pub(in crate::engine) fn held(&self) -> usize {
        self.door.held()
    }

    pub(in crate::engine) fn is_pressed(&self) -> bool {
        self.door.is_pressed()
    }

    pub(in crate::engine) fn seal(&self) {
        self.door.seal();
    }

    fn hash(&self, row: &Row) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        match row.first.connection_id {
            Some(connection) => {
                hasher.write_u128(connection.as_u128());
                hasher.write_u128(row.first.workspace_id.as_u128());
                hasher.write(row.first.agent_name.as_bytes());
            }
            None => hasher.write_u128(row.first.id.as_u128()),
        }
        hasher.finish()
    }
}

/// Whether two rows have the same [`Key`](crate::state::connection::Key).
fn same_key(one: &Row, other: &Row) -> bool {
    let (one, other) = (&one.first, &other.first);
    match (one.connection_id, other.connection_id) {
        (Some(a), Some(b)) => {
            a == b && one.workspace_id == other.workspace_id && one.agent_name == other.agent_name
        }
        (None, None) => one.id == other.id,
        _ => false,
    }
}

#[cfg(test)]
#[path = "door/tests.rs"]
mod tests;
