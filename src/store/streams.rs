//! Streams as rows: what each operation takes, and every answer it may give.
//!
//! A change of a stream happens under its row lock and takes the next position for each thing that
//! changed; the rules are [`crate::state::stream`]'s, the lock and the rows are the database's. Every
//! outcome that changed something carries a [`Change`]: what its notice says and its tokens are made of.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{Labels, Store, StoreError};
use crate::state::stream::{Fold, LeaseHash, OnLost, Stream};
use crate::state::time::Wall;

/// The most a page of history holds unless one message is longer: 256 KiB.
pub const PAGE_BYTES: usize = 256 * 1024;

/// How long the answer to a keyed request is remembered.
pub const KEY_MEMORY: Duration = Duration::from_secs(24 * 3_600);

/// How a stream is addressed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// By its key.
    Id(Uuid),
    /// By its path name.
    Name(String),
}

/// When a stream ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Expiry {
    /// Never.
    #[default]
    Never,
    /// This long after it was last used, in whole seconds.
    Ttl(Duration),
    /// At a fixed time.
    At(Wall),
}

/// How a message's content is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A JSON document.
    Json,
    /// Bytes of the stream's content type.
    Bytes,
}

/// A message or an input about to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// How to read the content.
    pub kind: Kind,
    /// Who says it, if told.
    pub role: Option<String>,
    /// What is said.
    pub content: Arc<[u8]>,
}

/// A durable message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageRow {
    /// 1, 2, 3… in its stream.
    pub id: u64,
    /// The position it was written at.
    pub pos: u64,
    /// How to read the content.
    pub kind: Kind,
    /// Who said it, if told.
    pub role: Option<String>,
    /// What was said.
    pub content: Arc<[u8]>,
    /// The parts it stands for, when a turn committed it.
    pub fold: Option<Fold>,
    /// When it was written.
    pub at: Wall,
}

/// An input that waits for a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedRow {
    /// Its number in the stream's queue, never used again.
    pub id: u64,
    /// How to read the content.
    pub kind: Kind,
    /// Who it is from, if told.
    pub role: Option<String>,
    /// What is asked.
    pub content: Arc<[u8]>,
    /// When it was queued.
    pub at: Wall,
}

/// Limits on a stream's history; none takes the store-wide one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Keep {
    /// Messages older than this go.
    pub age: Option<Duration>,
    /// Beyond this many bytes the oldest go.
    pub bytes: Option<u64>,
}

/// What a change left behind: enough for its notice and for its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which stream.
    pub stream: Uuid,
    /// The stream's part of every token.
    pub tag: [u8; 4],
    /// Where it stands now.
    pub state: Stream,
}

/// Where a fork left its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForkedFrom {
    /// The source.
    pub source: Uuid,
    /// The position up to which it has the source's history, as it was asked for.
    pub pos: u64,
    /// How much more it took: bytes of the next row, or JSON messages.
    pub beyond: u64,
}

/// A stream's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRow {
    /// Its key.
    pub id: Uuid,
    /// Its path name.
    pub name: String,
    /// What its messages are.
    pub content_type: String,
    /// What it is found by.
    pub labels: Labels,
    /// When it ends by itself.
    pub expiry: Expiry,
    /// When that will be as things stand.
    pub expires_at: Option<Wall>,
    /// The stream's part of every token. A fork has its root's.
    pub tag: [u8; 4],
    /// Where it stands: positions, status, turn.
    pub state: Stream,
    /// When its last turn began.
    pub turn_begun_at: Option<Wall>,
    /// The last part of its last turn that is in a message.
    pub turn_folded_to: u32,
    /// The highest `Stream-Seq` taken.
    pub stream_seq: Option<String>,
    /// Where it came from, if it is a fork.
    pub forked_from: Option<ForkedFrom>,
    /// How many streams were forked from it and are still there.
    pub forks: u32,
    /// Limits of its own on its history.
    pub keep: Keep,
    /// How many bytes its messages have together.
    pub bytes: u64,
    /// When the oldest message it has was written.
    pub oldest_at: Option<Wall>,
    /// The number the last input got.
    pub last_input: u64,
    /// Deleted, and kept because others were forked from it.
    pub deleted: bool,
    /// When it was made.
    pub created_at: Wall,
    /// When it last changed.
    pub updated_at: Wall,
    /// When its status last changed.
    pub status_at: Wall,
}

impl StreamRow {
    /// What a notice about the row as it stands says.
    pub fn change(&self) -> Change {
        Change { stream: self.id, tag: self.tag, state: self.state.clone() }
    }
}

/// A stream about to be made. What is `None` is not compared when the stream exists already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewStream {
    /// Its key, time-ordered.
    pub id: Uuid,
    /// Its path name.
    pub name: String,
    /// What its messages are; none takes the fork's source's, or `application/octet-stream`.
    pub content_type: Option<String>,
    /// What it is found by.
    pub labels: Option<Labels>,
    /// When it ends by itself; none takes the fork's source's, or never.
    pub expiry: Option<Expiry>,
    /// What becomes of it when its worker is gone.
    pub on_lost: Option<OnLost>,
    /// Limits of its own on its history.
    pub keep: Keep,
    /// What it begins with.
    pub first: Vec<Draft>,
    /// Closed as soon as `first` is in.
    pub closed: Option<bool>,
    /// Made from another stream's history.
    pub fork: Option<NewFork>,
}

impl NewStream {
    /// A stream with nothing but a name.
    pub fn named(id: Uuid, name: impl Into<String>) -> NewStream {
        NewStream {
            id,
            name: name.into(),
            content_type: None,
            labels: None,
            expiry: None,
            on_lost: None,
            keep: Keep::default(),
            first: Vec::new(),
            closed: None,
            fork: None,
        }
    }
}

/// Where a fork is to leave its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFork {
    /// The stream to fork.
    pub source: Address,
    /// From which offset; none is the source's tail.
    pub at: Option<ForkAt>,
    /// How much more: bytes of the next row, or JSON messages.
    pub beyond: u64,
}

/// An offset of a stream, as its token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForkAt {
    /// Before everything.
    Start,
    /// After this position.
    Pos {
        /// The stream's part of the token.
        tag: [u8; 4],
        /// The generation the position is of.
        generation: u32,
        /// The position.
        pos: u64,
    },
}

/// What became of [`StreamStore::create`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was made.
    New(StreamRow),
    /// It was there, as asked for.
    Same(StreamRow),
    /// It is there, and differs.
    Differs(StreamRow),
    /// The name belongs to a deleted stream that is kept for its forks.
    Kept,
    /// There is no stream to fork.
    NoSource,
    /// The stream to fork is deleted.
    SourceGone,
    /// The fork's offset is not one of the source, or lies beyond its tail.
    BadForkOffset,
    /// The fork's offset lies in history that is gone: before retention, or of an older generation.
    ForkTrimmed,
    /// The fork asks for another content type than its source has, which is this.
    OtherType(String),
}

/// What became of [`StreamStore::delete`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone, and so are the deleted streams that were kept only for it.
    Gone(Uuid),
    /// It answers no more; its rows stay while forks need it.
    Kept(Uuid),
    /// There was none.
    Missing,
    /// It was deleted before, and is kept for its forks.
    Already,
}

/// A page of streams to list, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ListStreams {
    /// Only those that have all of these labels.
    pub labels: Labels,
    /// Only those whose status has one of these names; none means all.
    pub status: Vec<&'static str>,
    /// Only those after this one: the last of the page before.
    pub after: Option<Uuid>,
    /// At most so many.
    pub limit: usize,
}

/// The place of an append in its producer's sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Producer {
    /// Who, across restarts.
    pub id: String,
    /// Raised at each restart.
    pub epoch: u64,
    /// 0, 1, 2… within the epoch.
    pub seq: u64,
}

/// An append. No messages and `close` closes only.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Append {
    /// What to append.
    pub messages: Vec<Draft>,
    /// Close the stream after them.
    pub close: bool,
    /// What the writer takes the stream's content type to be.
    pub content_type: Option<String>,
    /// Its place in a producer's sequence.
    pub producer: Option<Producer>,
    /// `Stream-Seq`: must be greater than the last one.
    pub stream_seq: Option<String>,
    /// Remembered for 24 h: the same key again gets the same answer.
    pub key: Option<String>,
}

/// What became of [`StreamStore::append`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is written. `again` when it was before, under the same key.
    Done {
        /// Where the stream stands.
        change: Change,
        /// The first message's id; 0 if none was appended.
        first: u64,
        /// The last message's id.
        last: u64,
        /// The last message's position.
        pos: u64,
        /// The generation it was written in.
        generation: u32,
        /// True when nothing was written now.
        again: bool,
    },
    /// The producer wrote it before.
    Duplicate {
        /// Where the stream stands.
        change: Change,
        /// The highest sequence number taken from it in its epoch.
        seq: u64,
    },
    /// The producer was replaced by one of this epoch.
    StaleEpoch(u64),
    /// A raised epoch begins at 0.
    EpochNotAtZero,
    /// A number is missing before this one.
    Gap {
        /// The next one that would be taken.
        expected: u64,
    },
    /// The stream is closed.
    Closed(Change),
    /// `Stream-Seq` is not greater than the last.
    SeqRegressed(String),
    /// The stream's content type is another.
    OtherType(String),
    /// No such stream.
    Missing,
    /// It is deleted, and kept for its forks.
    Gone,
}

/// What became of an edit or a removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edited {
    /// Followers read everything again.
    Done(Change),
    /// There is no such message, or it was removed.
    NoMessage,
    /// No such stream.
    Missing,
    /// It is deleted, and kept for its forks.
    Gone,
}

/// What became of a push to the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Queued {
    /// It waits.
    Done {
        /// Where the stream stands.
        change: Change,
        /// Its number in the queue.
        id: u64,
        /// True when nothing was written now: the same key as before.
        again: bool,
    },
    /// The queue holds as much as it may.
    Full,
    /// The stream is closed.
    Closed(Change),
    /// No such stream.
    Missing,
    /// It is deleted, and kept for its forks.
    Gone,
}

/// What became of a removal from the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dequeued {
    /// It is gone.
    Done(Change),
    /// A worker has it, or it never was.
    NoInput,
    /// No such stream.
    Missing,
    /// It is deleted, and kept for its forks.
    Gone,
}

/// Who wants to run a stream.
#[derive(Clone, PartialEq, Eq)]
pub struct Claim {
    /// The replica.
    pub worker: Uuid,
    /// How long the lease is good unless renewed.
    pub lease_for: Duration,
    /// A fresh secret; only its hash is kept.
    pub lease: [u8; 32],
    /// Remembered for 24 h: the same key again gets the same turn and its lease.
    pub key: Option<String>,
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Claim({}, {:?}, [redacted])", self.worker, self.lease_for)
    }
}

/// A turn that was claimed.
#[derive(Clone, PartialEq, Eq)]
pub struct TurnClaimed {
    /// Where the stream stands.
    pub change: Change,
    /// Its name.
    pub name: String,
    /// The turn's number.
    pub turn: u32,
    /// Its lease: the claim's, or that of the claim that had the same key.
    pub lease: [u8; 32],
    /// The head of the queue, which is no longer in it.
    pub input: Option<QueuedRow>,
    /// True when nothing was written now: the same key as before.
    pub again: bool,
}

impl std::fmt::Debug for TurnClaimed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TurnClaimed({}, turn {}, again {})", self.name, self.turn, self.again)
    }
}

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The turn is yours.
    Turn(TurnClaimed),
    /// Someone has it, and the lease is good.
    Running {
        /// Who.
        worker: Uuid,
        /// In which turn.
        turn: u32,
    },
    /// The stream is closed: a turn could not write to it.
    Closed(Change),
    /// No such stream; nothing pending, of a claim for whatever is next.
    Missing,
    /// It is deleted, and kept for its forks.
    Gone,
}

/// What fences a write of a turn: a newer turn or another lease, and it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The turn's number.
    pub turn: u32,
    /// The hash of the secret that the claim gave.
    pub lease: LeaseHash,
}

/// What became of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Committed {
    /// The message is durable and its parts are folded.
    Done {
        /// Where the stream stands.
        change: Change,
        /// The row as it is stored, for the stream's room.
        message: MessageRow,
        /// True when nothing was written now: the same key as before.
        again: bool,
    },
    /// Another turn began, another worker has it, or it has ended.
    TurnLost,
    /// The stream is closed.
    Closed(Change),
    /// No such stream.
    Missing,
    /// It is deleted, and kept for its forks.
    Gone,
}

/// How a turn ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It did what it should.
    Done,
    /// It failed, for this reason.
    Failed(String),
    /// Its producer went silent: as the stream asks.
    Lost,
    /// Handed back by a replica that stops: another may take it.
    HandedBack,
    /// Given up, or stopped as asked: idle, whatever waits.
    Aborted,
}

/// What became of the end of a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finished {
    /// It is over; the change says what the stream is now.
    Done(Change),
    /// Another turn began, another worker has it, or it had ended.
    TurnLost,
    /// No such stream.
    Missing,
    /// It is deleted, and kept for its forks.
    Gone,
}

/// What became of an interrupt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// The worker is to stop, or what was pending no longer is.
    Done(Change),
    /// Nothing to interrupt, or asked before.
    Nothing(Change),
    /// No such stream.
    Missing,
    /// It is deleted, and kept for its forks.
    Gone,
}

/// A turn that a replica still holds after a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The stream.
    pub stream: Uuid,
    /// The turn.
    pub turn: u32,
    /// True when the worker was asked to stop.
    pub interrupting: bool,
    /// Until when the lease is good.
    pub until: Wall,
}

/// Whose leases end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// Those that have run out.
    Dead,
    /// Those of this replica: it stops, and hands its streams back.
    HandBack(Uuid),
    /// All of them: a store that only one process may use was just opened.
    All,
}

/// What a read of history asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatchUp {
    /// Messages after this position; 0 for all.
    pub after: u64,
    /// Up to this one; none fixes it at where the stream stands.
    pub upto: Option<u64>,
    /// At most so many bytes of content, but always one message; 0 for the state alone.
    pub bytes_max: usize,
}

/// A stream's whole state and one page of its history, seen at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The row.
    pub stream: StreamRow,
    /// What waits, oldest first.
    pub queue: Vec<QueuedRow>,
    /// The messages, by position; removed ones are left out.
    pub messages: Vec<MessageRow>,
    /// The position the read is fixed at: give it to the next page.
    pub upto: u64,
    /// True when there are messages after this page, up to `upto`.
    pub more: bool,
}

/// What an [`Address`] leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<T> {
    /// Here it is.
    Here(T),
    /// No such stream, or it has expired.
    Missing,
    /// It is deleted, and kept for its forks.
    Gone,
}

/// What became of a [group](StreamStore::group).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouped {
    /// Every call stands, or has failed by itself.
    Durable,
    /// A call failed, perhaps halfway, and nothing of any of them stays: make each again by itself.
    Undone,
}

/// Streams, their messages, queues and turns.
pub trait StreamStore: Store {
    /// Makes a stream, or says how the one that has the name differs.
    fn create(&mut self, new: &NewStream) -> Result<Created, StoreError>;
    /// Deletes a stream, at once or when its last fork goes.
    fn delete(&mut self, at: &Address) -> Result<Deleted, StoreError>;
    /// One page of streams, by age.
    fn list(&mut self, list: &ListStreams) -> Result<Vec<StreamRow>, StoreError>;
    /// The row alone.
    fn get(&mut self, at: &Address) -> Result<Found<StreamRow>, StoreError>;
    /// The row, the queue and a page of history in one read transaction.
    fn catch_up(&mut self, at: &Address, read: CatchUp) -> Result<Found<Page>, StoreError>;
    /// Where these streams stand; one that is gone is left out.
    fn positions(&mut self, streams: &[Uuid]) -> Result<Vec<Change>, StoreError>;

    /// Appends, closes, or both. The checks come in the order that Durable Streams prescribes: stale
    /// epoch, new epoch not at zero, sent before, closed, content type, gap, `Stream-Seq`.
    fn append(&mut self, at: &Address, append: &Append) -> Result<Appended, StoreError>;
    /// Replaces a message's content; id and position stay, and the role unless another is given.
    fn edit(&mut self, at: &Address, message: u64, draft: &Draft) -> Result<Edited, StoreError>;
    /// Removes a message; its place stays empty.
    fn remove(&mut self, at: &Address, message: u64) -> Result<Edited, StoreError>;

    /// Puts an input in the queue unless `most` are in it; a stream that does not run becomes pending.
    fn push(
        &mut self,
        at: &Address,
        input: &Draft,
        key: Option<&str>,
        most: usize,
    ) -> Result<Queued, StoreError>;
    /// Takes an input out of the queue before a worker has it.
    fn withdraw(&mut self, at: &Address, input: u64) -> Result<Dequeued, StoreError>;

    /// Begins a turn and takes the head of the queue.
    fn claim(&mut self, at: &Address, claim: &Claim) -> Result<Claimed, StoreError>;
    /// Claims the stream that has been pending longest among those with these labels.
    fn claim_next(&mut self, labels: &Labels, claim: &Claim) -> Result<Claimed, StoreError>;
    /// Renews every lease of a replica in one statement; what it lost is not in the answer. A lease
    /// that ran out and that nobody took is good again.
    fn renew(&mut self, worker: Uuid, lease_for: Duration) -> Result<Vec<Held>, StoreError>;
    /// Writes a turn's message; parts up to and with `folded_to` are in it.
    fn commit(
        &mut self,
        at: &Address,
        fence: Fence,
        message: &Draft,
        folded_to: u32,
        key: Option<&str>,
    ) -> Result<Committed, StoreError>;
    /// Ends a turn.
    fn finish(&mut self, at: &Address, fence: Fence, end: &End) -> Result<Finished, StoreError>;
    /// Asks whoever runs the stream to stop.
    fn interrupt(&mut self, at: &Address) -> Result<Interrupted, StoreError>;
    /// Ends leases, `limit` streams at most; those that changed. Call again while it is full.
    fn sweep(&mut self, which: Sweep, limit: usize) -> Result<Vec<Change>, StoreError>;

    /// Moves the expiry of streams in use; writes only what moved by a tenth of its TTL or 10 s.
    fn touch(&mut self, streams: &[Uuid]) -> Result<(), StoreError>;
    /// Deletes streams whose time has come, `limit` at most; which ones.
    fn expire(&mut self, limit: usize) -> Result<Vec<Uuid>, StoreError>;
    /// Removes history beyond what is kept, from `limit` streams at most; those that changed.
    fn trim(&mut self, keep: Keep, limit: usize) -> Result<Vec<Change>, StoreError>;
    /// Forgets answers that are older than [`KEY_MEMORY`], `limit` at most; how many.
    fn forget_keys(&mut self, limit: usize) -> Result<u64, StoreError>;

    /// Runs `work` as one group, whose calls share one commit. An error makes every outcome inside unknown.
    /// Where the database is shared or in memory, each call inside commits by itself.
    fn group(&mut self, work: &mut dyn FnMut(&mut dyn StreamStore)) -> Result<Grouped, StoreError>;

    /// Whether durable messages wait for their place in the tables: [`settle`](StreamStore::settle) gives it to them.
    fn is_ahead(&self) -> bool {
        false
    }

    /// Whether so many wait that somebody should call [`settle`](StreamStore::settle) now, on another connection: writes
    /// here go on meanwhile.
    fn is_far_ahead(&self) -> bool {
        false
    }

    /// What only a log has goes into the tables.
    fn settle(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}
