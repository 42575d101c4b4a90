//! What is done every now and then for all streams of a replica: leases renewed in one statement, dead ones
//! swept, streams whose time has come deleted, history beyond what is kept removed.

use std::sync::Arc;

use uuid::Uuid;

use crate::engine::worker::{Inbox, Room};
use crate::rt::Moment;
use crate::store::streams::{Held, Keep, Sweep};

use super::event::Ended;
use super::room::Message;
use super::writes::Desk;
use super::{Limits, StreamError};

/// How many streams one sweep changes at most: a transaction stays short.
pub(super) const SWEEP_MAX: usize = 100;
/// Every so many renewals, what is kept is looked through.
const TIDY_EVERY: u32 = 6;

/// What the keeper hears.
pub(super) enum Report {
    /// The leases were renewed, or not.
    Renewed(Moment, Result<Vec<Held>, StreamError>),
    /// A sweep found this many.
    Swept(Result<usize, StreamError>),
}

/// See the [module](self).
pub(super) struct Keeper {
    desk: Desk,
    inbox: Inbox<Report>,
    replica: Uuid,
    limits: Limits,
    next: Moment,
    rounds: u32,
}

impl Keeper {
    pub(super) fn new(desk: Desk, inbox: Inbox<Report>, replica: Uuid, limits: Limits) -> Keeper {
        let next = desk.rt.now() + limits.renew_every;
        Keeper { desk, inbox, replica, limits, next, rounds: 0 }
    }

    fn renew(&self, now: Moment) {
        let (worker, lease, inbox) = (self.replica, self.limits.lease, self.inbox.clone());
        self.desk.ask(
            0,
            move |store| store.renew(worker, lease),
            |_, held| Ok(held),
            Box::new(move |held| report(&inbox, Report::Renewed(now, held))),
        );
    }

    fn sweep(&self, which: Sweep) {
        let inbox = self.inbox.clone();
        self.desk.ask(
            0,
            move |store| store.sweep(which, SWEEP_MAX),
            |desk, changes| {
                changes.iter().for_each(|change| desk.announce(change, None));
                Ok(changes.len())
            },
            Box::new(move |swept| report(&inbox, Report::Swept(swept))),
        );
    }

    fn tidy(&self) {
        let told = |what: &'static str| {
            Box::new(move |done: Result<(), StreamError>| {
                if let Err(error) = done {
                    log::warn!("{what} failed error={error}");
                }
            })
        };
        let expire = |desk: &Desk, gone: Vec<Uuid>| {
            gone.into_iter().for_each(|stream| desk.announce_deleted(stream, Ended::Expired));
            Ok(())
        };
        self.desk.ask(0, |store| store.expire(SWEEP_MAX), expire, told("deleting expired streams"));
        let trim = |desk: &Desk, changes: Vec<crate::store::streams::Change>| {
            changes.iter().for_each(|change| desk.announce(change, None));
            Ok(())
        };
        self.desk.ask(0, |store| store.trim(Keep::default(), SWEEP_MAX), trim, told("trimming history"));
        self.desk.ask(0, |store| store.forget_keys(10 * SWEEP_MAX), |_, _| Ok(()), told("forgetting keys"));
    }
}

/// Brings an answer home; a keeper that has ended wants none.
fn report(inbox: &Inbox<Report>, report: Report) {
    drop(inbox.control(report));
}

impl Room for Keeper {
    type Message = Report;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<Report>) {
        for report in inbox.drain(..) {
            match report {
                Report::Renewed(asked, Ok(held)) => {
                    let shards = &self.desk.shards;
                    for (n, room) in shards.rooms.iter().enumerate() {
                        let of_it = held.iter().filter(|held| shards.index(held.stream) == n);
                        let of_it: Arc<[Held]> = of_it.cloned().collect();
                        // Full: its turns hear of it the next time.
                        drop(room.control(Message::Renewed(of_it, asked)));
                    }
                }
                Report::Swept(Ok(SWEEP_MAX..)) => self.sweep(Sweep::Dead),
                Report::Swept(Ok(_)) => {}
                Report::Renewed(_, Err(error)) => log::warn!("leases not renewed error={error}"),
                Report::Swept(Err(error)) => log::warn!("leases not swept error={error}"),
            }
        }
        if self.next <= now {
            self.next = now + self.limits.renew_every;
            self.renew(now);
            self.sweep(Sweep::Dead);
            self.rounds += 1;
            if self.rounds.is_multiple_of(TIDY_EVERY) {
                self.tidy();
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        Some(self.next)
    }

    /// What still runs here is handed back, so that others need not wait for its leases to die.
    fn end(&mut self, _now: Moment, _inbox: &mut Vec<Report>) {
        let (replica, limit) = (self.replica, SWEEP_MAX);
        self.desk.ask(
            0,
            move |store| {
                let mut all = Vec::new();
                loop {
                    let changes = store.sweep(Sweep::HandBack(replica), limit)?;
                    let more = changes.len() == limit;
                    all.extend(changes);
                    if !more {
                        return Ok(all);
                    }
                }
            },
            |desk, changes| {
                changes.iter().for_each(|change| desk.announce(change, None));
                if !changes.is_empty() {
                    log::info!("streams handed back count={}", changes.len());
                }
                Ok(())
            },
            Box::new(|done| {
                if let Err(error) = done {
                    log::warn!("streams not handed back error={error}");
                }
            }),
        );
    }
}
