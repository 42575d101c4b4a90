//! What the metadata shows of itself.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::door::{MetadataDoor, Shard};
use crate::engine::flush::MetadataFigures;
use crate::engine::ledger::{Flushes, Names};
use crate::metrics::Metrics;

pub(super) fn describe(metrics: &mut Metrics, door: &Arc<MetadataDoor>) -> (Flushes, MetadataFigures) {
    let mut counter = |name, help, pick: fn(&Shard) -> u64| {
        let door = door.clone();
        metrics.counter_from(name, help, move || {
            let mut sum = 0;
            door.door.each(|shard| sum += pick(shard));
            sum
        });
    };
    counter("metadata_accepted", "Metadata values taken in.", |shard| shard.accepted);
    counter("metadata_coalesced", "Metadata values that replaced one not yet written.", |shard| {
        shard.coalesced
    });
    counter(
        "metadata_refused",
        "Metadata values refused because too many distinct keys were in memory.",
        |shard| shard.refused,
    );
    let gauge = door.clone();
    metrics.gauge_from("metadata_pending", "Metadata values in memory, not yet written.", move || {
        (gauge.held() + gauge.kept.load(Relaxed)) as i64
    });
    let names = Names {
        batches: ("metadata_flushes", "Batches of metadata values written, by why they were."),
        entries: ("metadata_flushed", "Metadata values written, by why they were."),
        seconds: ("metadata_flush_seconds", "How long writing a batch of metadata takes, by why it was."),
        sizes: ("metadata_batch_size", "Metadata values in one batch."),
        failures: ("metadata_write_failures", "Writes of metadata that failed; the values stay in memory."),
        splits: ("metadata_splits", "Times a batch was halved to find the value a store refuses."),
    };
    let more = MetadataFigures {
        keys_per_agent: metrics.sizes("metadata_keys_per_agent", "Keys an agent has in one batch."),
        rows_changed: metrics.counter("metadata_rows_changed", "Metadata rows that a write changed."),
        notices: metrics.counter("metadata_notices", "Notices sent after metadata was written."),
        noticed_agents: metrics.counter("metadata_noticed_agents", "Agents named in those notices."),
        rejected: metrics.counter("metadata_rejected", "Metadata values the store refuses; each is logged."),
        unsaved: metrics
            .counter("metadata_unsaved", "Metadata values that could not be written before a stop."),
    };
    (Flushes::describe(metrics, &names), more)
}
