//! What operators see of the sessions that a program holds as a client.

use crate::metrics::{Counter, Counters, Gauge, Metrics};
use crate::state::session::Event;

/// What operators see of the sessions that a program holds as a client; several clients may share them.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub(super) connected: Gauge,
    pub(super) calls: Gauge,
    pub(super) dials: Counter,
    pub(super) failed_dials: Counter,
    pub(super) ended: Counters,
    disconnects: Counters,
    handshakes: Counters,
    outages: Counter,
    resent: Counter,
    trimmed: Counter,
    duplicates: Counter,
    invalid: Counter,
    acks: Counter,
}

impl Figures {
    /// Describes them.
    pub fn describe(metrics: &mut Metrics) -> Figures {
        Figures {
            connected: metrics.gauge("client_sessions_connected", "Own sessions that a link bears."),
            calls: metrics.gauge("client_calls", "Own calls that are open."),
            dials: metrics.counter("client_dials", "Attempts to find a link for a session."),
            failed_dials: metrics.counter("client_dials_failed", "Attempts that found none."),
            ended: metrics.counters("client_sessions_ended", "Own sessions ended, by why."),
            disconnects: metrics.counters("client_disconnects", "Links lost or not found, by why."),
            handshakes: metrics.counters("client_handshakes", "Handshakes, by what was answered."),
            outages: metrics.counter("client_outages", "Outages that outlasted the budget of dials."),
            resent: metrics.counter("client_resent", "Messages sent again after a reconnect."),
            trimmed: metrics.counter("client_trimmed", "Messages not sent again: the server had them."),
            duplicates: metrics.counter("client_duplicates", "Messages that had been received before."),
            invalid: metrics.counter("client_invalid", "Messages no session can go on after."),
            acks: metrics.counter("client_acks", "Acknowledgements said without being asked."),
        }
    }

    pub(super) fn tell(&self, event: &Event) {
        let handshake = |result| count(&self.handshakes, "result", result);
        match event {
            Event::Connected { resent, trimmed } => {
                handshake("welcome");
                self.resent.inc_by(*resent as u64);
                self.trimmed.inc_by(*trimmed as u64);
            }
            Event::Disconnected { cause } => count(&self.disconnects, "cause", cause.as_str()),
            Event::HandshakeFailed(_) => handshake("failed"),
            Event::Mismatch(_) => handshake("mismatch"),
            Event::RetriesExceeded => drop(self.outages.inc()),
            Event::Duplicate => drop(self.duplicates.inc()),
            Event::InvalidMessage(_) => drop(self.invalid.inc()),
            Event::AckSaid => drop(self.acks.inc()),
        }
    }
}

pub(super) fn count(counters: &Counters, label: &'static str, value: &'static str) {
    counters.get_or_create(&vec![(label, value)]).inc();
}
