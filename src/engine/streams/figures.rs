//! What is counted about relays.

use crate::metrics::{Counter, Counters, Gauge, Histogram, Metrics, seconds};
use crate::state::relay::{Source, Why};

/// The figures of all relays of a replica. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RelayFigures {
    dials: Counters,
    closes: Counters,
    reconnects: Counters,
    checks: Counters,
    pub(super) links: Gauge,
    pub(super) serves: Gauge,
    pub(super) parts: Counter,
    pub(super) gaps_healed: Counter,
    pub(super) gaps: Counter,
    pub(super) duplicates: Counter,
    pub(super) round_trip: Histogram,
}

impl Default for RelayFigures {
    /// Counted, and shown nowhere.
    fn default() -> RelayFigures {
        RelayFigures {
            dials: Counters::default(),
            closes: Counters::default(),
            reconnects: Counters::default(),
            checks: Counters::default(),
            links: Gauge::default(),
            serves: Gauge::default(),
            parts: Counter::default(),
            gaps_healed: Counter::default(),
            gaps: Counter::default(),
            duplicates: Counter::default(),
            round_trip: seconds(),
        }
    }
}

impl RelayFigures {
    /// Shown with all the others.
    pub fn describe(metrics: &mut Metrics) -> RelayFigures {
        RelayFigures {
            dials: metrics.counters(
                "relay_dials",
                "Dials to the replica that runs a stream, by what caused them and what came of them.",
            ),
            closes: metrics.counters("relay_closes", "Relay links that ended, by why."),
            reconnects: metrics
                .counters("relay_reconnects", "Times a relay was to be dialed again, by what had failed."),
            checks: metrics.counters(
                "relay_checks",
                "Times the store was asked who runs a stream before its relay was dialed again, by what it said.",
            ),
            links: metrics.gauge("relay_links", "Links over which parts come from other replicas."),
            serves: metrics.gauge("relay_serves", "Links over which parts go to other replicas."),
            parts: metrics.counter("relay_parts", "Parts that came over relays."),
            gaps_healed: metrics
                .counter("relay_gaps_healed", "Times parts were missing on a relay and asked for again."),
            gaps: metrics
                .counter("relay_gaps", "Times parts were missing on a relay that the worker had no more."),
            duplicates: metrics.counter("relay_duplicates", "Parts that came over a relay though they were here."),
            round_trip: metrics.seconds(
                "relay_round_trip_seconds",
                "How long a relay takes there and back; a part takes half of it longer than it does here.",
            ),
        }
    }

    /// Links over which parts come, and those over which they go.
    pub fn open_links(&self) -> (i64, i64) {
        (self.links.get(), self.serves.get())
    }

    pub(super) fn dialed(&self, source: Source, result: &'static str) {
        let source = match source {
            Source::Wanted => "wanted",
            Source::Redial => "redial",
        };
        self.dials.get_or_create_owned(&vec![("source", source), ("result", result)]).inc();
    }

    pub(super) fn closed(&self, why: Option<Why>) {
        let why = why.map_or("lost", word);
        self.closes.get_or_create_owned(&vec![("reason", why)]).inc();
    }

    pub(super) fn reconnects(&self, reason: &'static str) {
        self.reconnects.get_or_create_owned(&vec![("reason", reason)]).inc();
    }

    pub(super) fn checked(&self, result: &'static str) {
        self.checks.get_or_create_owned(&vec![("result", result)]).inc();
    }
}

/// Why a link of a relay was closed, in a word.
pub(super) const fn word(why: Why) -> &'static str {
    match why {
        Why::Superseded => "superseded",
        Why::Unwanted => "unwanted",
        Why::Complete => "complete",
        Why::Silent => "silent",
        Why::Stale => "stale",
    }
}
