//! What the connection log shows of itself.

use std::sync::Arc;

use super::door::ConnectionDoor;
use crate::engine::ledger::{Account, Flushes, Ledger, Names, describe_account, describe_queues};
use crate::metrics::{Counter, Metrics};
use crate::rt::Rt;

/// Where every record is: what the books say, and what is still at the door.
pub(super) fn account(door: &ConnectionDoor, ledger: &Ledger) -> Account {
    let mut account = ledger.account();
    door.enter_into(&mut account);
    account
}

pub(super) struct Figures {
    pub(super) flushes: Flushes,
    pub(super) retried: Counter,
    pub(super) full: Counter,
    pub(super) own_lost: Counter,
}

pub(super) fn describe(
    metrics: &mut Metrics,
    rt: &Rt,
    door: &Arc<ConnectionDoor>,
    ledger: &Arc<Ledger>,
) -> Figures {
    describe_queues(metrics, rt, ledger);
    let (door, ledger) = (door.clone(), ledger.clone());
    describe_account(metrics, move || account(&door, &ledger));
    let names = Names {
        batches: ("connections_flushes", "Batches of connection rows written, by why they were."),
        entries: ("connections_flushed", "Connection rows written by flushes, by why they were."),
        seconds: ("connections_flush_seconds", "How long a flush of connection rows takes, by why it was."),
        sizes: ("connections_batch_size", "Connection rows in one flush."),
        failures: (
            "connections_write_failures",
            "Writes of connection rows that failed and are tried again.",
        ),
        splits: ("connections_splits", "Times a batch was halved to find the row a store refuses."),
    };
    Figures {
        flushes: Flushes::describe(metrics, &names),
        retried: metrics.counter("connections_retries", "Batches of connection rows tried again."),
        full: metrics.counter("connections_refused", "Connection records refused because there was no room."),
        own_lost: metrics.counter(
            "connections_own_lost",
            "Records of towpath's own links dropped, with memory and spool full.",
        ),
    }
}
