//! What pipes did, counted by their threads and read by whoever scrapes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Shared;
use crate::metrics::Metrics;
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
    detached_ms: AtomicU64,
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
            detached_ms: zero(),
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

    pub(super) fn found_dead(&self) {
        add(&self.found_dead, 1);
    }

    pub(super) fn resumed(&self, well: bool) {
        add(if well { &self.resumed } else { &self.resume_refused }, 1);
    }

    pub(super) fn replayed(&self, bytes: u64) {
        add(&self.replayed, bytes);
    }

    pub(super) fn detached(&self, how_long: Duration) {
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
        "How long resumed pipes had been without a carrier, added up.",
        read(|f| &f.detached_ms),
    );
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
    let open = shared.clone();
    metrics.gauge_from("pipes_open", "Pipes there are now.", move || {
        let ended = open.figures.ended.load(Ordering::Relaxed);
        open.figures.opened.load(Ordering::Relaxed).saturating_sub(ended) as i64
    });
}
