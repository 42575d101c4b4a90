//! What operators see of sessions.

use crate::metrics::{Counter, Counters, Gauge, Metrics};

/// What operators see of sessions.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub(super) sessions: Gauge,
    pub(super) connected: Gauge,
    pub(super) calls: Gauge,
    pub(super) unacked_bytes: Gauge,
    pub(super) began: Counter,
    pub(super) ended: Counters,
    pub(super) disconnects: Counters,
    pub(super) handshakes: Counters,
    pub(super) resent: Counter,
    pub(super) trimmed: Counter,
    pub(super) duplicates: Counter,
    pub(super) invalid: Counter,
    pub(super) acks: Counter,
    pub(super) frames: Counters,
    pub(super) opened: Counters,
    pub(super) failed: Counters,
}

impl Figures {
    /// Describes them.
    pub fn describe(metrics: &mut Metrics) -> Figures {
        Figures {
            sessions: metrics.gauge("sessions", "River sessions that live, with or without a link."),
            connected: metrics.gauge("sessions_connected", "River sessions that a link bears."),
            calls: metrics.gauge("session_calls", "Calls of procedures that are open."),
            unacked_bytes: metrics
                .gauge("session_unacked_bytes", "Bytes sent on sessions and not yet acknowledged."),
            began: metrics.counter("sessions_began", "River sessions begun."),
            ended: metrics.counters("sessions_ended", "River sessions ended, by why."),
            disconnects: metrics.counters("session_disconnects", "Links that sessions lost, by why."),
            handshakes: metrics.counters("session_handshakes", "Handshakes, by what was answered."),
            resent: metrics.counter("session_resent", "Messages sent again after a reconnect."),
            trimmed: metrics
                .counter("session_trimmed", "Messages not sent again because the client had them."),
            duplicates: metrics.counter("session_duplicates", "Messages that had been received before."),
            invalid: metrics.counter("session_invalid", "Messages no session can go on after."),
            acks: metrics.counter("session_acks", "Acknowledgements said without being asked."),
            frames: metrics.counters("session_messages", "Messages on sessions, by direction."),
            opened: metrics.counters("session_calls_opened", "Calls of procedures, by kind."),
            failed: metrics.counters("session_calls_failed", "Calls ended by a protocol error, by its code."),
        }
    }
}

pub(super) fn count(counters: &Counters, label: &'static str, value: &'static str) {
    counters.get_or_create(&vec![(label, value)]).inc();
}
