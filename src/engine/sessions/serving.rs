//! Calls in the room: what the tables of streams want done, in order.

use super::Sessions;
use super::calls::{Opened, Opening, Procedures, Taken};
use super::figures::count;
use super::mail::Message;
use crate::state::envelope::Tracing;
use crate::state::procedure::{Failure, Kind, Serve, UNCAUGHT_ERROR};
use crate::state::session::server::Input;
use crate::state::time::Moment;
use crate::state::value::Value;

impl<P: Procedures> Sessions<P> {
    /// Does what the streams want, in order.
    pub(super) fn serve(&mut self, now: Moment, key: u64, sink: Vec<Serve>) {
        for action in sink {
            let Some(entry) = self.sessions.get_mut(&key) else { return };
            match action {
                Serve::Say(message) => {
                    count(&self.figures.frames, "direction", "out");
                    let mut sink = self.sinks.pop().unwrap_or_default();
                    entry.session.step(now, Input::Say(message), &mut sink);
                    self.carry_out(now, key, &mut sink);
                    self.sinks.push(sink);
                }
                Serve::Open { stream, kind, procedure, init, tracing } => {
                    self.open(now, key, stream, kind, procedure, init, tracing);
                }
                Serve::Data { stream, value } => {
                    let Some(requests) = entry.requests.get_mut(&stream) else { continue };
                    match requests.data(value) {
                        Ok(Taken::More) => {}
                        Ok(Taken::HoldBack) => {
                            entry.held_by.insert(stream);
                        }
                        Err(failure) => self.fail(now, key, &stream, failure),
                    }
                }
                Serve::RequestsEnded { stream } => {
                    if let Some(requests) = entry.requests.get_mut(&stream) {
                        requests.ended();
                    }
                }
                Serve::Broken { stream, failure } => {
                    if let Some(requests) = entry.requests.get_mut(&stream) {
                        requests.broken(failure);
                    }
                }
                Serve::Finished { stream } => {
                    self.open_calls -= 1;
                    self.figures.calls.dec();
                    let finished = entry.requests.remove(&stream);
                    if let Some(mut finished) = finished {
                        finished.finished();
                    }
                    if self.sessions.get(&key).is_some_and(|entry| entry.held_by.contains(&stream)) {
                        // Whoever held the session back is gone; what waits is taken with the next wake.
                        let message = Message::Resume { session: key, stream: stream.as_str().into() };
                        self.mail.surely(message);
                    }
                }
            }
        }
    }

    fn open(
        &mut self,
        now: Moment,
        key: u64,
        stream: String,
        kind: Kind,
        procedure: usize,
        init: Value,
        tracing: Option<Tracing>,
    ) {
        let Some(entry) = self.sessions.get_mut(&key) else { return };
        count(&self.figures.opened, "kind", kind.as_str());
        let opening = Opening {
            client: &entry.client,
            tracing,
            handlers: &self.handlers,
            rt: &self.rt,
            open_calls: self.open_calls,
            mail: &self.mail,
            session: key,
            stream: &stream,
        };
        self.open_calls += 1;
        self.figures.calls.inc();
        match self.procedures.open(procedure, init, opening) {
            Opened::Running(requests) => {
                entry.requests.insert(stream, requests);
            }
            Opened::Answered(answer) => {
                let mut sink = Vec::new();
                entry.served.answer(&stream, answer, &mut sink);
                self.serve(now, key, sink);
            }
            Opened::Failed(failure) => self.fail(now, key, &stream, failure),
        }
    }

    fn fail(&mut self, now: Moment, key: u64, stream: &str, failure: Failure) {
        let Some(entry) = self.sessions.get_mut(&key) else { return };
        let uncaught = failure.code == UNCAUGHT_ERROR;
        count(&self.figures.failed, "code", if uncaught { "uncaught" } else { "refused" });
        let mut sink = Vec::new();
        entry.served.fail(stream, failure, &mut sink);
        self.serve(now, key, sink);
    }
}
