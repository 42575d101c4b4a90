//! What may be asked of the streams.

use super::*;

/// How long a caller waits for an answer. Stores have timeouts of their own, which are shorter.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

impl Streams {
    /// The runtime it runs on.
    pub(crate) fn rt(&self) -> &Rt {
        &self.shared.rt
    }

    /// This replica.
    pub fn replica(&self) -> Uuid {
        self.shared.replica
    }

    /// What bounds it.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Waits for an answer. Woken by it, by its sender being dropped, by the deadline.
    pub(super) fn wait<T: Send + 'static>(&self, start: impl FnOnce(Then<T>)) -> Result<T, StreamError> {
        if self.shared.stopped.load(Ordering::Acquire) {
            return Err(StreamError::Stopped);
        }
        let (tx, rx) = self.shared.rt.channel("answer", 1);
        // A caller that has stopped waiting wants no answer.
        start(Box::new(move |answer| drop(tx.try_send(answer))));
        match rx.recv_deadline(self.shared.rt.now() + ANSWER_WAIT) {
            Ok(answer) => answer,
            Err(rt::RecvTimeoutError::Disconnected) => Err(StreamError::Stopped),
            Err(rt::RecvTimeoutError::Timeout) => Err(StreamError::Full),
        }
    }

    /// Hands a message to a stream's room, or tells `then` why not.
    pub(super) fn to_room(&self, stream: Uuid, message: Message) -> Result<(), StreamError> {
        self.shared.shards.of(stream).try_data(message).map_err(|refused| match refused {
            Refused::Full(_) => StreamError::Full,
            Refused::Ended(_) => StreamError::Stopped,
        })
    }

    // Streams as a whole.

    /// Makes a stream; true if it was not there before.
    pub fn create_then(&self, name: &str, create: CreateStream, then: Then<(StreamRow, bool)>) {
        if let Err(why) = check_name(name) {
            return then(Err(StreamError::BadName(why)));
        }
        let new = NewStream {
            content_type: Some(create.content_type.unwrap_or_else(|| "application/json".into())),
            labels: create.labels,
            expiry: create.expiry,
            on_lost: create.on_lost,
            ..NewStream::named(self.shared.rt.uuid_v7(), name)
        };
        let key = writes::key_of(&Address::Name(name.to_owned()));
        let read = |_: &Desk, answer| match answer {
            Created::New(row) => Ok((row, true)),
            Created::Same(row) => Ok((row, false)),
            Created::Differs(_) | Created::Kept | Created::OtherType(_) => Err(StreamError::Exists),
            // Nothing was to be forked.
            Created::NoSource | Created::SourceGone | Created::BadForkOffset | Created::ForkTrimmed => {
                Err(StreamError::Conflict("the stream to fork is not what it was said to be"))
            }
        };
        self.shared.desk.ask(key, move |store| store.create(&new), read, then);
    }

    /// Makes a stream, or finds it as it was asked for.
    pub fn create(&self, name: &str, create: CreateStream) -> Result<StreamRow, StreamError> {
        self.wait(|then| self.create_then(name, create, then)).map(|(row, _)| row)
    }

    /// Deletes a stream: its followers hear `closed`.
    pub fn delete_then(&self, at: Address, then: Then<()>) {
        let names = self.shared.names.clone();
        let read = move |desk: &Desk, answer| match answer {
            Deleted::Gone(stream) | Deleted::Kept(stream) => {
                names.forget(stream);
                desk.announce_deleted(stream, Ended::Deleted);
                Ok(())
            }
            Deleted::Missing => Err(StreamError::Missing),
            Deleted::Already => Err(StreamError::Gone),
        };
        self.shared.desk.ask(writes::key_of(&at), move |store| store.delete(&at), read, then);
    }

    /// Deletes a stream: its followers hear `closed`.
    pub fn delete(&self, name: &str) -> Result<(), StreamError> {
        self.wait(|then| self.delete_then(address(name), then))
    }

    /// A page of streams, oldest first.
    pub fn list_then(&self, list: ListStreams, then: Then<Vec<StreamRow>>) {
        let key = self.shared.numbers.load(Ordering::Relaxed);
        self.shared.readers.ask(
            key,
            move |store| store.list(&list),
            move |answer| then(answer.map_err(StreamError::Store)),
        );
    }

    /// A page of streams, oldest first.
    pub fn list(&self, list: ListStreams) -> Result<Vec<StreamRow>, StreamError> {
        self.wait(|then| self.list_then(list, then))
    }

    /// A stream as it stands, with what waits in its queue and no history.
    pub fn state_then(&self, at: Address, then: Then<Page>) {
        let read = CatchUp { after: i64::MAX as u64, upto: None, bytes_max: 1 };
        self.shared.readers.ask(
            writes::key_of(&at),
            move |store| store.catch_up(&at, read),
            move |answer| then(found(answer)),
        );
    }

    /// A stream as it stands, with what waits in its queue.
    pub fn state(&self, name: &str) -> Result<Page, StreamError> {
        self.wait(|then| self.state_then(address(name), then))
    }

    // Messages and inputs.

    pub(super) fn check_size(&self, draft: &Draft) -> Result<(), StreamError> {
        let (bytes, max) = (draft.content.len(), self.shared.limits.message_bytes_max);
        if bytes > max { Err(StreamError::TooLarge { bytes, max }) } else { Ok(()) }
    }

    /// Appends a message. With a key, the same again is not written twice.
    pub fn append_then(&self, at: Address, draft: Draft, key: Option<String>, then: Then<Written>) {
        if let Err(error) = self.check_size(&draft) {
            return then(Err(error));
        }
        self.shared.desk.append(at, Append { messages: vec![draft], key, ..Append::default() }, then);
    }

    /// Appends a message: any JSON, under a role if it has one. Tries again while the store is away, without
    /// ever writing it twice.
    pub fn append(
        &self,
        name: &str,
        role: Option<&str>,
        content: &impl serde::Serialize,
    ) -> Result<Written, StreamError> {
        let draft = draft(role, content)?;
        let key = self.shared.rt.uuid_v4().to_string();
        self.patiently(|| {
            self.wait(|then| self.append_then(address(name), draft.clone(), Some(key.clone()), then))
        })
    }

    /// Replaces a message: followers hear `reset{history}` and everything again.
    pub fn edit_then(&self, at: Address, message: u64, draft: Draft, then: Then<Written>) {
        if let Err(error) = self.check_size(&draft) {
            return then(Err(error));
        }
        self.shared.desk.rewrite(at, message, Some(draft), then);
    }

    /// Replaces a message: followers hear `reset{history}` and everything again.
    pub fn edit(
        &self,
        name: &str,
        message: u64,
        content: &impl serde::Serialize,
    ) -> Result<Written, StreamError> {
        let draft = draft(None, content)?;
        self.wait(|then| self.edit_then(address(name), message, draft, then))
    }

    /// Removes a message: followers hear `reset{history}` and everything again.
    pub fn remove_then(&self, at: Address, message: u64, then: Then<Written>) {
        self.shared.desk.rewrite(at, message, None, then);
    }

    /// Removes a message: followers hear `reset{history}` and everything again.
    pub fn remove(&self, name: &str, message: u64) -> Result<(), StreamError> {
        self.wait(|then| self.remove_then(address(name), message, then)).map(drop)
    }

    /// Queues an input; a stream that does not run waits for a worker then.
    pub fn queue_then(&self, at: Address, draft: Draft, key: Option<String>, then: Then<u64>) {
        if let Err(error) = self.check_size(&draft) {
            return then(Err(error));
        }
        self.shared.desk.push(at, draft, key, self.shared.limits.inputs_max, then);
    }

    /// Queues an input; a stream that does not run waits for a worker then.
    pub fn queue(
        &self,
        name: &str,
        role: Option<&str>,
        content: &impl serde::Serialize,
    ) -> Result<u64, StreamError> {
        let draft = draft(role, content)?;
        let key = self.shared.rt.uuid_v4().to_string();
        self.patiently(|| {
            self.wait(|then| self.queue_then(address(name), draft.clone(), Some(key.clone()), then))
        })
    }

    /// Takes an input back before a worker has it.
    pub fn unqueue_then(&self, at: Address, input: u64, then: Then<()>) {
        self.shared.desk.withdraw(at, input, then);
    }

    /// Takes an input back before a worker has it.
    pub fn unqueue(&self, name: &str, input: u64) -> Result<(), StreamError> {
        self.wait(|then| self.unqueue_then(address(name), input, then))
    }

    /// Asks the worker, wherever it runs, to stop; asking again changes nothing.
    pub fn interrupt_then(&self, at: Address, then: Then<()>) {
        self.shared.desk.interrupt(at, then);
    }

    /// Asks the worker, wherever it runs, to stop; asking again changes nothing.
    pub fn interrupt(&self, name: &str) -> Result<(), StreamError> {
        self.wait(|then| self.interrupt_then(address(name), then))
    }

    /// Tries again while the store cannot be reached, for as long as a caller waits for an answer.
    pub(super) fn patiently<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, StreamError>,
    ) -> Result<T, StreamError> {
        let rt = &self.shared.rt;
        let deadline = rt.now() + ANSWER_WAIT;
        let mut wait = Duration::from_millis(20);
        loop {
            match attempt() {
                Err(StreamError::Store(error))
                    if error.class == crate::store::Class::Retry && rt.now() + wait < deadline =>
                {
                    rt.sleep(wait);
                    wait = (wait * 2).min(Duration::from_secs(1));
                }
                answer => return answer,
            }
        }
    }

    // Turns.

    /// Claims a stream, or whichever has waited longest of those with these labels.
    pub fn claim_then(&self, what: Wanted, key: Option<String>, then: Then<Option<ClaimedTurn>>) {
        let claim = Claim {
            worker: self.shared.replica,
            lease_for: self.shared.limits.lease,
            lease: self.shared.rt.secret(),
            key,
        };
        let key = match &what {
            Wanted::Stream(at) => writes::key_of(at),
            Wanted::Next(_) => 0,
        };
        let run = move |store: &mut dyn crate::store::StreamStore| match &what {
            Wanted::Stream(at) => store.claim(at, &claim).map(|answer| (answer, false)),
            Wanted::Next(labels) => store.claim_next(labels, &claim).map(|answer| (answer, true)),
        };
        let read = |desk: &Desk, (answer, next): (Claimed, bool)| match answer {
            Claimed::Turn(claimed) => {
                let cancel = desk.rt.cancel_token();
                let lease = LeaseHash::of(&claimed.lease);
                let stream = claimed.change.stream;
                let begin = Begin {
                    change: claimed.change.clone(),
                    turn: claimed.turn,
                    lease,
                    cancel: cancel.clone(),
                };
                // Before anybody else can hear of it: parts and questions of other replicas find the turn.
                desk.shards.of(stream).try_data(Message::Begin(Box::new(begin))).map_err(|refused| {
                    match refused {
                        // The lease runs out by itself.
                        Refused::Full(_) => StreamError::Full,
                        Refused::Ended(_) => StreamError::Stopped,
                    }
                })?;
                if !claimed.again {
                    desk.announce(&claimed.change, None);
                }
                Ok(Some(ClaimedTurn {
                    stream,
                    name: claimed.name,
                    turn: claimed.turn,
                    lease: claimed.lease,
                    input: claimed.input,
                    cancel,
                }))
            }
            Claimed::Running { worker, turn } => Err(StreamError::TurnRunning { worker, turn }),
            Claimed::Closed(_) => Err(StreamError::Closed),
            Claimed::Missing if next => Ok(None),
            Claimed::Missing => Err(StreamError::Missing),
            Claimed::Gone => Err(StreamError::Gone),
        };
        self.shared.desk.ask(key, run, read, then);
    }

    /// Claims a stream and begins a turn, with the input that has waited longest.
    pub fn run(&self, name: &str) -> Result<TurnHandle, StreamError> {
        let claimed = self.wait(|then| self.claim_then(Wanted::Stream(address(name)), None, then))?;
        claimed.map(|claimed| TurnHandle::new(self.clone(), claimed)).ok_or(StreamError::Missing)
    }

    /// Claims whichever stream has been pending longest of those with these labels.
    pub fn next(&self, labels: &Labels) -> Result<Option<TurnHandle>, StreamError> {
        let claimed = self.wait(|then| self.claim_then(Wanted::Next(labels.clone()), None, then))?;
        Ok(claimed.map(|claimed| TurnHandle::new(self.clone(), claimed)))
    }

    /// Adds parts to a turn. `first` numbers the first of them, for a producer that sends again after a cut.
    pub fn parts_then(
        &self,
        stream: Uuid,
        fence: Fence,
        first: Option<u32>,
        parts: Vec<Arc<str>>,
        then: Then<Accepted>,
    ) {
        self.or_tell(stream, |then| Errand::Parts(Parts { stream, fence, first, parts, then }), then);
    }

    /// Writes a turn's message, which stands for its parts so far.
    pub fn commit_then(
        &self,
        stream: Uuid,
        fence: Fence,
        draft: Draft,
        key: Option<String>,
        then: Then<Written>,
    ) {
        if let Err(error) = self.check_size(&draft) {
            return then(Err(error));
        }
        self.or_tell(stream, |then| Errand::Commit(Commit { stream, fence, draft, key, then }), then);
    }

    /// Ends a turn.
    pub fn end_then(&self, stream: Uuid, fence: Fence, end: crate::store::streams::End, then: Then<()>) {
        self.or_tell(stream, |then| Errand::End(Ending { stream, fence, end, then }), then);
    }

    /// Says that a producer is alive.
    pub fn keepalive_then(&self, stream: Uuid, fence: Fence, then: Then<Alive>) {
        self.or_tell(stream, |then| Errand::Keepalive(Keepalive { stream, fence, then }), then);
    }

    /// Reads the parts of a turn after number `after`, and waits for some if `wait` is set and the turn has
    /// not ended.
    pub fn read_turn_then(&self, stream: Uuid, turn: u32, after: u32, wait: bool, then: Then<TurnRead>) {
        self.or_tell(stream, |then| Errand::ReadTurn(ReadTurn { stream, turn, after, wait, then }), then);
    }

    /// The number of the last part of a turn that is here, wherever it runs.
    pub fn last_part_then(&self, stream: Uuid, turn: u32, then: Then<u32>) {
        let after = u32::MAX;
        let read = Box::new(|read: Result<TurnRead, StreamError>| then(read.map(|read| read.last)));
        let ask = |then| Errand::ReadTurn(ReadTurn { stream, turn, after, wait: false, then });
        self.or_tell_from(stream, true, ask, read);
    }

    /// Gives the token that is cancelled when a turn is asked to stop.
    pub fn cancel_of_then(&self, stream: Uuid, fence: Fence, then: Then<rt::Cancel>) {
        self.or_tell(stream, |then| Errand::CancelOf(CancelOf { stream, fence, then }), then);
    }

    /// Hands a question to a room. A room that is full answers nothing, so this does.
    pub(super) fn or_tell<T: Send + 'static>(
        &self,
        stream: Uuid,
        ask: impl FnOnce(Then<T>) -> Errand,
        then: Then<T>,
    ) {
        self.or_tell_from(stream, false, ask, then);
    }

    pub(super) fn or_tell_from<T: Send + 'static>(
        &self,
        stream: Uuid,
        stays: bool,
        ask: impl FnOnce(Then<T>) -> Errand,
        then: Then<T>,
    ) {
        let slot = Arc::new(rt::Lock::new(Some(then)));
        let take = |slot: &rt::Lock<Option<Then<T>>>| slot.lock().take();
        let other = slot.clone();
        let errand = ask(Box::new(move |answer| {
            if let Some(then) = take(&other) {
                then(answer);
            }
        }));
        let message = Message::Errand(Box::new(errand), stays);
        if let Err(error) = self.to_room(stream, message)
            && let Some(then) = take(&slot)
        {
            then(Err(error));
        }
    }

    // Following.

    /// Finds a stream's id.
    pub fn resolve_then(&self, at: Address, then: Then<Uuid>) {
        let name = match at {
            Address::Id(id) => return then(Ok(id)),
            Address::Name(name) => name,
        };
        if let Some(id) = self.shared.names.get(&name) {
            return then(Ok(id));
        }
        let names = self.shared.names.clone();
        let at = Address::Name(name.clone());
        self.shared.readers.ask(
            writes::key_of(&at),
            move |store| store.get(&at),
            move |answer| {
                let id = found(answer).map(|row| row.id);
                if let Ok(id) = id {
                    names.put(name, id);
                }
                then(id);
            },
        );
    }

    /// A number for a new follower.
    pub fn next_follower(&self) -> FollowerId {
        self.shared.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Somebody follows the stream of that name: what a [`Newcomer`] is given.
    pub fn visit(&self, caller: &Caller, name: &str, how: &'static str) -> Guest {
        let visit = self.shared.visits.follower(caller, &[("stream", name), ("via", how)]);
        Guest { visit, who: slow::Who::of(caller, &self.shared.hasher) }
    }

    /// Lets somebody in. One for whom there is no room just now is told to come again.
    pub(crate) fn enter(&self, newcomer: Newcomer) {
        let stream = newcomer.stream;
        let link = match &newcomer.tap {
            Tap::Link { link, .. } => Some(link.clone()),
            Tap::Channel(_) => None,
        };
        if let Err(error) = self.to_room(stream, Message::Follow(Box::new(newcomer))) {
            log::warn!("follow refused stream={stream} error={error}");
            if let Some(link) = link {
                link.close(1013, "try again later");
            }
        }
    }

    /// Follows over a WebSocket that carries other follows too: one that ends leaves the link to the others,
    /// and says so to `ends`.
    pub fn follow_shared(
        &self,
        id: FollowerId,
        stream: Uuid,
        options: FollowOptions,
        link: LinkHandle,
        ends: Ends,
        guest: Guest,
    ) -> Result<(), StreamError> {
        let tap = Tap::Link { link, format: Format::Ws, ends: Some(ends) };
        self.follow_tap(id, stream, options, tap, guest)
    }

    pub(super) fn follow_tap(
        &self,
        id: FollowerId,
        stream: Uuid,
        options: FollowOptions,
        tap: Tap,
        guest: Guest,
    ) -> Result<(), StreamError> {
        let newcomer = Newcomer::new(id, stream, options, tap, guest);
        self.to_room(stream, Message::Follow(Box::new(newcomer)))
    }

    /// A follower's link, which belongs to somebody else, has sent a page of history.
    pub fn link_passed(&self, stream: Uuid, id: FollowerId) {
        // At most one for each page that was sent.
        drop(self.shared.shards.of(stream).control(Message::Passed(id)));
    }

    /// A follower's link, which belongs to somebody else, is gone, for this reason.
    pub fn link_gone(&self, stream: Uuid, id: FollowerId, why: Closing) {
        // Once for each follower.
        drop(self.shared.shards.of(stream).control(Message::LinkGone(id, why)));
    }

    /// Ends a follow on a link that goes on. `then` is called once nothing more comes of it.
    pub fn leave_link(
        &self,
        stream: Uuid,
        id: FollowerId,
        then: impl FnOnce() + Send + 'static,
    ) -> Result<(), StreamError> {
        self.to_room(stream, Message::Leave(id, Box::new(then)))
    }

    /// Ends a follow for this reason; its peer is told.
    pub fn end_follow(&self, stream: Uuid, id: FollowerId, why: Ended) -> Result<(), StreamError> {
        self.to_room(stream, Message::End(id, why))
    }

    /// Ends a follow.
    pub fn unfollow(&self, stream: Uuid, id: FollowerId) {
        // Full: the link is gone or will be, and the room hears of that.
        drop(self.to_room(stream, Message::Unfollow(id)));
    }

    /// Takes a link over which another replica follows the turns of a stream that run here. Its events must
    /// reach [`Streams::outlet`] under this tag, which comes from [`Streams::next_follower`].
    pub fn serve_relay(&self, tag: u64, stream: Uuid, link: LinkHandle) -> Result<(), StreamError> {
        self.to_room(stream, Message::Serve { stream, tag, link })
    }

    /// Where the links of a stream's followers tell what happens to them: one for all of a room.
    pub fn outlet(&self, stream: Uuid) -> Outlet {
        self.shared.outlets[self.shared.shards.index(stream)].clone()
    }

    /// Gives what goes on in the streams that are followed or produced on this replica, in no order.
    pub fn living_then(&self, then: impl FnOnce(Vec<Living>) + Send + 'static) {
        let shards = &self.shared.shards.rooms;
        let gathered = Arc::new(rt::Lock::new((shards.len(), Vec::new(), Some(then))));
        for inbox in shards.iter() {
            let gather = {
                let gathered = gathered.clone();
                move |found: Vec<Living>| {
                    let mut all = gathered.lock();
                    all.0 -= 1;
                    all.1.extend(found);
                    let over = (all.0 == 0).then(|| (std::mem::take(&mut all.1), all.2.take()));
                    drop(all);
                    if let Some((found, Some(then))) = over {
                        then(found);
                    }
                }
            };
            // A room that is full or has ended says nothing; what the others say still counts.
            let silent = gather.clone();
            if inbox.try_data(Message::Living(Box::new(gather))).is_err() {
                silent(Vec::new());
            }
        }
    }

    /// Tells followers that this replica is about to stop, and waits until they have all been told, at most
    /// this long: a link that is closed before would leave its peer without the word.
    pub fn drain(&self, wait: Duration) {
        let rt = &self.shared.rt;
        let (done, told) = rt.channel::<()>("drained", 1);
        for inbox in self.shared.shards.rooms.iter() {
            // Full or ended: they hear of it when their links close.
            drop(inbox.control(Message::Drain(done.clone())));
        }
        drop(done);
        // Nothing is ever sent: the last room that is through lets go of the channel.
        let _ = told.recv_deadline(rt.now() + wait);
    }
}

pub(super) fn found<T>(answer: Result<Found<T>, StoreError>) -> Result<T, StreamError> {
    match answer {
        Ok(Found::Here(it)) => Ok(it),
        Ok(Found::Missing) => Err(StreamError::Missing),
        Ok(Found::Gone) => Err(StreamError::Gone),
        Err(error) => Err(StreamError::Store(error)),
    }
}

/// A message or an input of JSON.
pub(super) fn draft(role: Option<&str>, content: &impl serde::Serialize) -> Result<Draft, StreamError> {
    let content = serde_json::to_vec(content).map_err(|error| StreamError::BadJson(error.to_string()))?;
    Ok(Draft { kind: Kind::Json, role: role.map(str::to_owned), content: content.into() })
}
