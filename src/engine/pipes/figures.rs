//! What pipes did, counted by their threads and read by whoever scrapes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Shared;
use crate::metrics::{self, Histogram, Metrics};
use crate::state::pipe::Ending;

/// Counters of all threads.
pub(crate) struct Figures {
    opened: AtomicU64,
    ended: AtomicU64,
    lost: AtomicU64,
    found_dead: AtomicU64,
    resumed: AtomicU64,
    resume_refused: AtomicU64,
    replayed: AtomicU64,
    duplicates: AtomicU64,
    /// Pipes without a carrier.
    away: AtomicU64,
    attached_ms: AtomicU64,
    detached_ms: AtomicU64,
    blocked_ms: AtomicU64,
    /// Carriers that were carried on to another replica, and those that could not be.
    carried: AtomicU64,
    not_carried: AtomicU64,
    detection: Histogram,
    round_trip: Histogram,
    resume_refused_by: [AtomicU64; Ending::ALL.len()],
    refused: [AtomicU64; Ending::ALL.len()],
    ended_by: [AtomicU64; Ending::ALL.len()],
    held: Vec<AtomicU64>,
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl Figures {
    pub(super) fn new(threads: usize) -> Figures {
        let zero = || AtomicU64::new(0);
        Figures {
            opened: zero(),
            ended: zero(),
            lost: zero(),
            found_dead: zero(),
            resumed: zero(),
            resume_refused: zero(),
            replayed: zero(),
            duplicates: zero(),
            away: zero(),
            attached_ms: zero(),
            detached_ms: zero(),
            blocked_ms: zero(),
            carried: zero(),
            not_carried: zero(),
            detection: metrics::seconds(),
            round_trip: metrics::seconds(),
            resume_refused_by: std::array::from_fn(|_| zero()),
            refused: std::array::from_fn(|_| zero()),
            ended_by: std::array::from_fn(|_| zero()),
            held: (0..threads).map(|_| zero()).collect(),
        }
    }

    pub(super) fn opened(&self) {
        add(&self.opened, 1);
    }

    pub(super) fn ended(&self, code: Ending) {
        add(&self.ended, 1);
        add(&self.ended_by[code as usize], 1);
    }

    pub(super) fn lost(&self) {
        add(&self.lost, 1);
    }

    /// A carrier was dead that was last heard so long ago.
    pub(super) fn found_dead(&self, silent_for: Duration) {
        add(&self.found_dead, 1);
        self.detection.observe(silent_for.as_secs_f64());
    }

    pub(super) fn resumed(&self) {
        add(&self.resumed, 1);
    }

    pub(super) fn resume_refused(&self, code: Ending) {
        add(&self.resume_refused, 1);
        add(&self.resume_refused_by[code as usize], 1);
    }

    /// A carrier was let go of that had been one for so long.
    pub(super) fn attached(&self, how_long: Duration) {
        add(&self.attached_ms, how_long.as_millis() as u64);
    }

    /// A pipe has no carrier from here on.
    pub(super) fn away(&self) {
        add(&self.away, 1);
    }

    /// The local side could not write for so long.
    pub(super) fn blocked(&self, how_long: Duration) {
        add(&self.blocked_ms, how_long.as_millis() as u64);
    }

    pub(super) fn duplicates(&self, bytes: u64) {
        add(&self.duplicates, bytes);
    }

    pub(super) fn round_trip(&self, took: Duration) {
        self.round_trip.observe(took.as_secs_f64());
    }

    pub(super) fn carried_on(&self, well: bool) {
        add(if well { &self.carried } else { &self.not_carried }, 1);
    }

    pub(super) fn replayed(&self, bytes: u64) {
        add(&self.replayed, bytes);
    }

    /// A pipe that had no carrier for so long has one again, or is over.
    pub(super) fn detached(&self, how_long: Duration) {
        self.away.fetch_sub(1, Ordering::Relaxed);
        add(&self.detached_ms, how_long.as_millis() as u64);
    }

    pub(super) fn refused(&self, code: Ending) {
        add(&self.refused[code as usize], 1);
    }

    /// What one thread holds now; gives what all of them hold.
    pub(super) fn hold(&self, thread: usize, bytes: u64) -> u64 {
        self.held[thread].store(bytes, Ordering::Relaxed);
        self.held_by_all()
    }

    fn open(&self) -> u64 {
        self.opened.load(Ordering::Relaxed).saturating_sub(self.ended.load(Ordering::Relaxed))
    }

    fn held_by_all(&self) -> u64 {
        self.held.iter().map(|held| held.load(Ordering::Relaxed)).sum()
    }
}

/// Describes them.
pub(super) fn describe(shared: &Arc<Shared>, metrics: &mut Metrics) {
    let read = |pick: fn(&Figures) -> &AtomicU64| {
        let shared = shared.clone();
        move || pick(&shared.figures).load(Ordering::Relaxed)
    };
    metrics.counter_from("pipes_opened", "Pipes that began here.", read(|f| &f.opened));
    metrics.counter_from("pipes_ended", "Pipes that are over.", read(|f| &f.ended));
    metrics.counter_from("pipe_carriers_lost", "Carriers that were lost under a pipe.", read(|f| &f.lost));
    metrics.counter_from(
        "pipe_carriers_found_dead",
        "Carriers that were lost because nothing was heard of the peer.",
        read(|f| &f.found_dead),
    );
    metrics.counter_from("pipe_resumes", "Carriers that took a pipe over.", read(|f| &f.resumed));
    metrics.counter_from(
        "pipe_resumes_refused",
        "Carriers that wanted to take a pipe over and did not.",
        read(|f| &f.resume_refused),
    );
    metrics.counter_from(
        "pipe_replayed_bytes",
        "Bytes that were sent a second time after a resume.",
        read(|f| &f.replayed),
    );
    metrics.counter_from(
        "pipe_detached_milliseconds",
        "How long pipes were without a carrier, added up when it is over.",
        read(|f| &f.detached_ms),
    );
    metrics.counter_from(
        "pipe_carrier_milliseconds",
        "How long carriers bore pipes, added up when it is over.",
        read(|f| &f.attached_ms),
    );
    metrics.counter_from(
        "pipe_blocked_milliseconds",
        "How long targets could not write into a full pipe, added up when it is over.",
        read(|f| &f.blocked_ms),
    );
    metrics.counter_from(
        "pipe_duplicate_bytes",
        "Bytes that came a second time after a resume and were dropped.",
        read(|f| &f.duplicates),
    );
    metrics.counter_from(
        "pipe_carriers_carried_on",
        "Carriers that were carried on to the replica that has their pipe.",
        read(|f| &f.carried),
    );
    metrics.counter_from(
        "pipe_carriers_not_carried_on",
        "Carriers whose pipe is on a replica that could not be reached.",
        read(|f| &f.not_carried),
    );
    metrics.seconds_of(
        "pipe_detection_seconds",
        "How long a carrier had been silent when it was taken for dead.",
        shared.figures.detection.clone(),
    );
    metrics.seconds_of(
        "pipe_round_trip_seconds",
        "How long a question took to the client and back.",
        shared.figures.round_trip.clone(),
    );
    let results = shared.clone();
    metrics.counters_from(
        "pipe_resumes_by_result",
        "Carriers that wanted to take a pipe over, by what became of them.",
        "result",
        move || {
            let figures = &results.figures;
            let well = std::iter::once(("resumed", figures.resumed.load(Ordering::Relaxed)));
            // Other codes no resume is refused with.
            let codes = [Ending::UnknownPipe, Ending::Superseded, Ending::NotAllowed, Ending::Protocol];
            let refused = |code: Ending| {
                (code.as_str(), figures.resume_refused_by[code as usize].load(Ordering::Relaxed))
            };
            well.chain(codes.map(refused)).collect()
        },
    );
    let refusals = shared.clone();
    metrics.counters_from("pipe_refusals", "Carriers that were refused, by code.", "code", move || {
        let count =
            |code: &Ending| (code.as_str(), refusals.figures.refused[*code as usize].load(Ordering::Relaxed));
        Ending::ALL.iter().map(count).collect()
    });
    metrics.counter_from(
        "pipes_killed",
        "Pipes that somebody ended by hand.",
        read(|f| &f.ended_by[Ending::Killed as usize]),
    );
    metrics.counter_from(
        "pipes_expired",
        "Pipes nobody came back for in time.",
        read(|f| &f.ended_by[Ending::GraceExpired as usize]),
    );
    metrics.counter_from(
        "pipes_not_allowed",
        "Pipes that were refused because their target is not on the allow-list.",
        read(|f| &f.refused[Ending::NotAllowed as usize]),
    );
    metrics.counter_from(
        "pipes_over_limit",
        "Pipes that were refused because a limit was reached.",
        read(|f| &f.refused[Ending::Limit as usize]),
    );
    let held = shared.clone();
    metrics.gauge_from("pipe_buffered_bytes", "Memory in the buffers of all pipes.", move || {
        held.figures.held_by_all() as i64
    });
    let gauge = |read: fn(&Figures) -> u64| {
        let shared = shared.clone();
        move || read(&shared.figures) as i64
    };
    metrics.gauge_from("pipes_open", "Pipes there are now.", gauge(Figures::open));
    metrics.gauge_from(
        "pipes_attached",
        "Pipes that a carrier bears now.",
        gauge(|f| f.open().saturating_sub(f.away.load(Ordering::Relaxed))),
    );
    metrics.gauge_from(
        "pipes_detached",
        "Pipes that wait for their client to come back.",
        gauge(|f| f.away.load(Ordering::Relaxed)),
    );
}
