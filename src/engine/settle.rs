//! Writing connection rows until each of them is stored, buried, or known to have to wait.

use crate::state::connection::Row;
use crate::state::retry::Failure;
use crate::state::time::Wall;
use crate::store::connections::{ConnectionStore, DeadLetter};
use crate::store::{Class, StoreError};

/// What became of some rows.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// How many the store has.
    pub(super) stored: usize,
    /// How many it refuses; they are in its dead letters.
    pub(super) dead: usize,
    /// How often a batch was halved.
    pub(super) splits: usize,
    /// Those that have to wait, and why.
    pub(super) left: Option<(Vec<Row>, StoreError)>,
}

/// Writes `rows`, whose keys are distinct. A statement that fails because of some row is halved until
/// the bad ones are alone; those are buried with what the database said.
pub(super) fn settle(store: &mut dyn ConnectionStore, rows: Vec<Row>, at: Wall) -> Settled {
    let mut done = Settled::default();
    let mut letters = Vec::new();
    let mut bad = Vec::new();
    let mut ranges = Vec::new();
    ranges.push(0..rows.len());
    let mut failed = None;
    while let Some(range) = ranges.pop() {
        if range.is_empty() {
            continue;
        }
        match store.upsert(&rows[range.clone()]) {
            Ok(()) => done.stored += range.len(),
            Err(error) if error.class == Class::Split && range.len() == 1 => {
                letters.push(letter(&rows[range.start], &error, at));
                bad.push(range.start);
            }
            Err(error) if error.class == Class::Split => {
                done.splits += 1;
                let middle = range.start + range.len() / 2;
                ranges.push(middle..range.end);
                ranges.push(range.start..middle);
            }
            Err(error) => {
                ranges.push(range);
                failed = Some(error);
                break;
            }
        }
    }
    let mut waiting: Vec<usize> = ranges.into_iter().flatten().collect();
    if !letters.is_empty() {
        match store.bury(&letters) {
            Ok(()) => done.dead = letters.len(),
            Err(error) => {
                waiting.append(&mut bad);
                failed = failed.or(Some(error));
            }
        }
    }
    if let Some(error) = failed {
        waiting.sort_unstable();
        let mut waiting = waiting.into_iter().peekable();
        let left =
            rows.into_iter().enumerate().filter_map(|(place, row)| waiting.next_if_eq(&place).map(|_| row));
        done.left = Some((left.collect(), error));
    }
    done
}

fn letter(row: &Row, error: &StoreError, at: Wall) -> DeadLetter {
    let record = serde_json::to_string(row).unwrap_or_else(|error| format!("\"{error}\""));
    DeadLetter { id: row.id(), record, error: format!("{}: {}", error.code, error.text), at }
}

/// Whether a failure is the batch's own, or everybody's.
pub(super) fn failure(error: &StoreError) -> Failure {
    match error.code {
        "unreachable" | "shutting_down" => Failure::Unreachable,
        _ => Failure::Conflict,
    }
}
