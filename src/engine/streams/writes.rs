//! Writing to streams: what is asked of the writers, and who hears when it is done.
//!
//! After a write the notice goes out and the stream's own room is told at once, so that followers here need
//! not wait for the notice to come round. Whoever asked is answered last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use uuid::Uuid;

use crate::bus::{Bus, Notice, StreamNotice};
use crate::codec::token::{Tag, Token};
use crate::engine::reader::Pool;
use crate::engine::worker::{Inbox, Refused};
use crate::rt::Rt;
use crate::state::stream::Cursor;
use crate::store::streams::{
    Address, Append, Appended, Change, Committed, Dequeued, Draft, Edited, End, Fence, Finished, Found,
    Interrupted, MessageRow, Queued,
};
use crate::store::{StoreError, StreamStore};

use super::StreamError;
use super::room::{Message, Then};

/// Which streams have something in a room: a count for each of so many sets of them. What is written to a
/// stream of an empty set is told to no room, which would only wake to find that nobody is there.
///
/// Whoever enters a stream here does so before it reads the store, and whoever writes looks here after it has
/// committed: either the room is told, or its read finds what was written.
pub(super) struct Attended([AtomicU32; 1_024]);

impl Default for Attended {
    fn default() -> Attended {
        Attended(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

impl Attended {
    fn of(&self, stream: Uuid) -> &AtomicU32 {
        let (high, low) = stream.as_u64_pair();
        &self.0[((high ^ low) >> 16) as usize % self.0.len()]
    }

    pub(super) fn enter(&self, stream: Uuid) {
        self.of(stream).fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn leave(&self, stream: Uuid) {
        self.of(stream).fetch_sub(1, Ordering::SeqCst);
    }

    /// A room has ended: whoever tells it anything from here on is to hear so.
    pub(super) fn close(&self) {
        for set in &self.0 {
            set.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// False says that no room has anything of this stream.
    pub(super) fn may_have(&self, stream: Uuid) -> bool {
        self.of(stream).load(Ordering::SeqCst) > 0
    }
}

/// The way to the rooms of all shards.
#[derive(Clone)]
pub(super) struct Shards {
    pub(super) rooms: Arc<[Inbox<Message>]>,
    pub(super) attended: Arc<Attended>,
}

impl Shards {
    /// The room to tell of a change of a stream; none if it has nothing of it.
    pub(super) fn interested(&self, stream: Uuid) -> Option<usize> {
        self.attended.may_have(stream).then(|| self.index(stream))
    }

    /// The room a stream belongs to.
    pub(super) fn of(&self, stream: Uuid) -> &Inbox<Message> {
        &self.rooms[self.index(stream)]
    }

    /// Which one that is.
    pub(super) fn index(&self, stream: Uuid) -> usize {
        let (high, low) = stream.as_u64_pair();
        ((high ^ low) % self.rooms.len() as u64) as usize
    }

    /// Tells a stream's room what was written. A room that has no place for it learns of it from the notice
    /// or from its poll.
    pub(super) fn tell(&self, stream: Uuid, message: Message) {
        if let Err(Refused::Full(_)) = self.of(stream).try_data(message) {
            log::debug!("streams room full stream={stream}");
        }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The message's id.
    pub id: u64,
    /// Where to follow from to see what comes after it.
    pub token: Token,
}

/// Where writes are handed in. Cheap to clone: each write that is under way has one.
#[derive(Clone)]
pub(super) struct Desk(Arc<Office>);

/// What a desk knows.
pub(super) struct Office {
    pub rt: Rt,
    pub writers: Pool,
    pub bus: Arc<dyn Bus>,
    /// The rooms are there once the engine has started them.
    pub shards: Shards,
}

impl std::ops::Deref for Desk {
    type Target = Office;

    fn deref(&self) -> &Office {
        &self.0
    }
}

impl Desk {
    pub(super) fn new(rt: Rt, writers: Pool, bus: Arc<dyn Bus>, shards: Shards) -> Desk {
        Desk(Arc::new(Office { rt, writers, bus, shards }))
    }

    /// Runs a write of one stream, and then tells `then`.
    pub(super) fn ask<T: Send + 'static, A: Send + 'static>(
        &self,
        key: u64,
        run: impl FnMut(&mut dyn StreamStore) -> Result<A, StoreError> + Send + 'static,
        read: impl FnOnce(&Desk, A) -> Result<T, StreamError> + Send + 'static,
        then: Then<T>,
    ) {
        let desk = self.clone();
        self.writers.ask(key, run, move |answer| {
            then(match answer {
                Ok(answer) => read(&desk, answer),
                Err(error) => Err(StreamError::Store(error)),
            });
        });
    }

    /// Lets everybody know, here first.
    pub(super) fn announce(&self, change: &Change, message: Option<MessageRow>) {
        if self.shards.interested(change.stream).is_some() {
            self.shards.tell(change.stream, Message::Written(Box::new((change.clone(), message))));
        }
        if crate::planted!("notice before the commit") {
            return;
        }
        self.bus.publish(Notice::Stream(StreamNotice {
            stream: change.stream,
            pos: change.state.pos,
            generation: change.state.generation,
            worker: change.state.status.worker(),
            turn: change.state.turn_no,
            deleted: false,
        }));
    }

    /// Makes every replica look at a stream, whatever it may find.
    fn hint(&self, stream: Uuid, pos: u64) {
        let notice =
            StreamNotice { stream, pos, generation: u32::MAX, worker: None, turn: 0, deleted: false };
        self.bus.publish(Notice::Stream(notice));
    }

    /// Lets everybody know that a stream is gone.
    pub(super) fn announce_deleted(&self, stream: Uuid, why: super::event::Ended) {
        self.shards.tell(stream, Message::Deleted(stream, why));
        self.bus.publish(Notice::Stream(StreamNotice {
            stream,
            pos: u64::MAX,
            generation: u32::MAX,
            worker: None,
            turn: 0,
            deleted: true,
        }));
    }

    /// Appends.
    pub(super) fn append(&self, at: Address, append: Append, then: Then<Written>) {
        let key = key_of(&at);
        if crate::planted!("notice before the commit")
            && let Address::Id(stream) = at
        {
            self.hint(stream, u64::MAX);
        }
        let single = match append.messages.as_slice() {
            [draft] => Some(draft.clone()),
            _ => None,
        };
        self.ask(
            key,
            move |store| store.append(&at, &append),
            move |desk, answer| match answer {
                Appended::Done { change, last, pos, generation, again, .. } => {
                    let wall = desk.rt.wall();
                    let message = single.filter(|_| !again).map(|draft| MessageRow {
                        id: last,
                        pos,
                        kind: draft.kind,
                        role: draft.role,
                        content: draft.content,
                        fold: None,
                        at: wall,
                    });
                    if !again {
                        desk.announce(&change, message);
                    }
                    Ok(Written { id: last, token: token_at(&change, generation, pos) })
                }
                Appended::Duplicate { change, .. } => {
                    let token = token_at(&change, change.state.generation, change.state.history_pos);
                    Ok(Written { id: change.state.last_msg, token })
                }
                Appended::Closed(_) => Err(StreamError::Closed),
                Appended::Missing => Err(StreamError::Missing),
                Appended::Gone => Err(StreamError::Gone),
                Appended::OtherType(is) => Err(StreamError::OtherType { is }),
                // Only whoever counts is told that it miscounted; a plain append does not.
                Appended::StaleEpoch(_)
                | Appended::EpochNotAtZero
                | Appended::Gap { .. }
                | Appended::SeqRegressed(_) => {
                    Err(StreamError::Conflict("the producer's sequence is broken"))
                }
            },
            then,
        );
    }

    /// Appends, closes, or both, for who wants to know exactly what became of it.
    pub(super) fn write(&self, at: Address, append: Append, then: Then<Appended>) {
        let single = match append.messages.as_slice() {
            [draft] if !append.close => Some(draft.clone()),
            _ => None,
        };
        self.ask(
            key_of(&at),
            move |store| store.append(&at, &append),
            move |desk, answer| {
                if let Appended::Done { change, last, pos, again: false, .. } = &answer {
                    let (id, pos, at) = (*last, *pos, desk.rt.wall());
                    let message = single.map(|draft| MessageRow {
                        id,
                        pos,
                        kind: draft.kind,
                        role: draft.role,
                        content: draft.content,
                        fold: None,
                        at,
                    });
                    desk.announce(change, message);
                }
                Ok(answer)
            },
            then,
        );
    }

    /// Keeps streams that are in use from running out.
    pub(super) fn touch(&self, streams: Vec<Uuid>) {
        let key = streams.first().map_or(0, |stream| stream.as_u64_pair().1);
        let told = |done: Result<(), StreamError>| {
            if let Err(error) = done {
                log::warn!("expiry not moved error={error}");
            }
        };
        self.ask(key, move |store| store.touch(&streams), |_, ()| Ok(()), Box::new(told));
    }

    /// Edits a message, or removes it if there is no draft.
    pub(super) fn rewrite(&self, at: Address, message: u64, draft: Option<Draft>, then: Then<Written>) {
        self.ask(
            key_of(&at),
            move |store| match &draft {
                Some(draft) => store.edit(&at, message, draft),
                None => store.remove(&at, message),
            },
            move |desk, answer| match answer {
                Edited::Done(change) => {
                    desk.announce(&change, None);
                    let token = token_at(&change, change.state.generation, change.state.pos);
                    Ok(Written { id: message, token })
                }
                Edited::NoMessage => Err(StreamError::NoMessage { id: message }),
                Edited::Missing => Err(StreamError::Missing),
                Edited::Gone => Err(StreamError::Gone),
            },
            then,
        );
    }

    /// Queues an input.
    pub(super) fn push(&self, at: Address, input: Draft, key: Option<String>, most: usize, then: Then<u64>) {
        self.ask(
            key_of(&at),
            move |store| store.push(&at, &input, key.as_deref(), most),
            move |desk, answer| match answer {
                Queued::Done { change, id, again } => {
                    if !again {
                        desk.announce(&change, None);
                    }
                    Ok(id)
                }
                Queued::Full => Err(StreamError::QueueFull { most }),
                Queued::Closed(_) => Err(StreamError::Closed),
                Queued::Missing => Err(StreamError::Missing),
                Queued::Gone => Err(StreamError::Gone),
            },
            then,
        );
    }

    /// Takes an input out of the queue.
    pub(super) fn withdraw(&self, at: Address, input: u64, then: Then<()>) {
        self.ask(
            key_of(&at),
            move |store| store.withdraw(&at, input),
            move |desk, answer| match answer {
                Dequeued::Done(change) => {
                    desk.announce(&change, None);
                    Ok(())
                }
                Dequeued::NoInput => Err(StreamError::NoInput { id: input }),
                Dequeued::Missing => Err(StreamError::Missing),
                Dequeued::Gone => Err(StreamError::Gone),
            },
            then,
        );
    }

    /// Asks whoever runs a stream to stop.
    pub(super) fn interrupt(&self, at: Address, then: Then<()>) {
        self.ask(
            key_of(&at),
            move |store| store.interrupt(&at),
            |desk, answer| match answer {
                Interrupted::Done(change) => {
                    desk.announce(&change, None);
                    Ok(())
                }
                Interrupted::Nothing(_) => Ok(()),
                Interrupted::Missing => Err(StreamError::Missing),
                Interrupted::Gone => Err(StreamError::Gone),
            },
            then,
        );
    }

    /// Writes a turn's message.
    pub(super) fn commit(
        &self,
        stream: Uuid,
        fence: Fence,
        draft: Draft,
        folded_to: u32,
        key: Option<String>,
        then: Then<Written>,
    ) {
        let at = Address::Id(stream);
        self.ask(
            key_of(&at),
            move |store| store.commit(&at, fence, &draft, folded_to, key.as_deref()),
            move |desk, answer| match answer {
                Committed::Done { change, message, again } => {
                    let (id, pos) = (message.id, message.pos);
                    if !again {
                        desk.announce(&change, Some(message));
                    }
                    Ok(Written { id, token: token_at(&change, change.state.generation, pos) })
                }
                Committed::TurnLost => {
                    desk.look_again(stream);
                    Err(StreamError::TurnLost { turn: fence.turn })
                }
                Committed::Closed(_) => Err(StreamError::Closed),
                Committed::Missing => Err(StreamError::Missing),
                Committed::Gone => Err(StreamError::Gone),
            },
            then,
        );
    }

    /// Ends a turn.
    pub(super) fn end(&self, stream: Uuid, fence: Fence, end: End, then: Then<()>) {
        let at = Address::Id(stream);
        self.ask(
            key_of(&at),
            move |store| store.finish(&at, fence, &end),
            move |desk, answer| match answer {
                Finished::Done(change) => {
                    desk.announce(&change, None);
                    Ok(())
                }
                Finished::TurnLost => {
                    // No side effect of a run that lost its stream: only its room looks what there is.
                    desk.look_again(stream);
                    Err(StreamError::TurnLost { turn: fence.turn })
                }
                Finished::Missing => Err(StreamError::Missing),
                Finished::Gone => Err(StreamError::Gone),
            },
            then,
        );
    }

    /// Ends a turn that this replica has according to the store, and whose producer never heard of it.
    pub(super) fn end_orphan(&self, stream: Uuid, turn: u32, worker: Uuid) {
        let at = Address::Id(stream);
        let end = move |store: &mut dyn StreamStore| {
            let Found::Here(row) = store.get(&at)? else { return Ok(None) };
            let is_it = row.state.turn_no == turn;
            let run = row.state.status.run().filter(|run| is_it && run.worker == worker);
            match run.map(|run| Fence { turn, lease: run.lease }) {
                Some(fence) => store.finish(&at, fence, &End::Lost).map(Some),
                None => Ok(None),
            }
        };
        let told = |desk: &Desk, ended| {
            if let Some(Finished::Done(change)) = ended {
                desk.announce(&change, None);
            }
            Ok(())
        };
        let then = Box::new(move |done: Result<(), StreamError>| {
            if let Err(error) = done {
                log::warn!("turn that nobody has was not ended stream={stream} error={error}");
            }
        });
        self.ask(key_of(&Address::Id(stream)), end, told, then);
    }

    /// The room does not know what the store knows.
    fn look_again(&self, stream: Uuid) {
        self.shards.tell(stream, Message::LookAgain(stream));
    }
}

/// Writes of one stream go to one writer, so that they keep their order.
pub(super) fn key_of(at: &Address) -> u64 {
    match at {
        Address::Id(id) => id.as_u64_pair().1,
        // FNV-1a: which of a handful of writers it is needs no better hash.
        Address::Name(name) => name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        }),
    }
}

/// The token of a position of a stream.
pub(super) fn token_at(change: &Change, generation: u32, pos: u64) -> Token {
    Token { tag: Tag(change.tag), cursor: Cursor { generation, pos, turn: 0, part: 0 } }
}
