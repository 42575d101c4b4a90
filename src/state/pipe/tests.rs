use super::*;

const RESET: Ending = Ending::TargetReset;

/// One end under test, with the peer played by hand.
struct Bench {
    pipe: Pipe,
    pool: Pool,
    now: Moment,
}

impl Bench {
    fn new(side: Side) -> Bench {
        Bench::starting_at(side, 0)
    }

    fn starting_at(side: Side, start: u64) -> Bench {
        let settings = Settings { window: WINDOW_MIN, start, ..Settings::new(side) };
        Bench { pipe: Pipe::new(settings), pool: Pool::new(4), now: Moment::ZERO }
    }

    /// Attached by a first carrier whose peer allows `limit` bytes.
    fn attached(side: Side, limit: u64) -> Bench {
        let mut bench = Bench::new(side);
        bench.attach(1, 0, limit).expect("a fresh pipe");
        assert_eq!(bench.sent(), [ack(0, WINDOW_MIN)]);
        bench
    }

    fn attach(&mut self, epoch: u64, peer_recv: u64, limit: u64) -> Result<u64, Violation> {
        self.pipe.attach(self.now, epoch, peer_recv, limit, &mut self.pool)
    }

    fn write(&mut self, text: &str) -> usize {
        self.pipe.write(text.as_bytes(), &mut self.pool)
    }

    fn control(&mut self, epoch: u64, control: Control) -> Result<(), Violation> {
        self.pipe.control(self.now, epoch, control, &mut self.pool)
    }

    /// Bytes come and stay in the inbox of the pipe.
    fn data(&mut self, epoch: u64, off: u64, text: &str) -> Result<(), Violation> {
        let fresh = self.pipe.data(epoch, off, text.as_bytes())?;
        self.pipe.hold(self.now, fresh, &mut self.pool);
        Ok(())
    }

    /// The local side takes everything there is.
    fn read(&mut self) -> String {
        let bytes: Vec<u8> = self.pipe.readable(usize::MAX).flatten().copied().collect();
        self.pipe.took(self.now, bytes.len() as u64, &mut self.pool);
        String::from_utf8(bytes).expect("text was written")
    }

    /// Everything that goes on the carrier now.
    fn sent(&mut self) -> Vec<Outgoing> {
        let mut sent = vec![];
        loop {
            let wants = self.pipe.wants_to_send();
            match self.pipe.next(self.now, usize::MAX) {
                Some(outgoing) => sent.push(outgoing),
                None => break assert!(!wants, "it wants to send and has nothing"),
            }
            assert!(wants, "it has something and does not say so");
        }
        sent
    }

    fn at(&mut self, ms: u64) -> Option<u64> {
        self.now = Moment::from_millis(ms);
        self.pipe.alarm(self.now)
    }
}

fn ack(recv: u64, limit: u64) -> Outgoing {
    Outgoing::Control(Control::Ack { recv, limit })
}

fn acked(recv: u64, limit: u64) -> Control {
    Control::Ack { recv, limit }
}

fn data(off: u64, len: usize) -> Outgoing {
    Outgoing::Data { off, len }
}

fn fin(off: u64) -> Outgoing {
    Outgoing::Control(Control::Fin { off })
}

fn reset(code: Ending) -> Outgoing {
    Outgoing::Control(Control::Reset(End::new(code, "")))
}

#[test]
fn what_is_written_before_the_first_carrier_waits_for_it() {
    let mut bench = Bench::new(Side::Client);
    assert_eq!(bench.write("early"), 5);
    assert_eq!(bench.sent(), []);
    assert_eq!(bench.attach(1, 0, 100), Ok(0), "nothing of it was sent before");
    assert_eq!(bench.sent(), [ack(0, WINDOW_MIN), data(0, 5)]);
}

#[test]
fn a_resume_replays_only_what_the_peer_lacks() {
    // (what the peer says it has, what goes out again)
    for (peer_has, expected) in [(0, vec![data(0, 6)]), (2, vec![data(2, 4)]), (6, vec![])] {
        let mut bench = Bench::attached(Side::Client, 100);
        bench.write("abcdef");
        bench.sent();
        assert!(bench.pipe.detach(1));
        assert_eq!(bench.attach(2, peer_has, 100), Ok(6 - peer_has));
        let mut all = vec![ack(0, WINDOW_MIN)];
        all.extend(expected);
        assert_eq!(bench.sent(), all, "the peer has {peer_has}");
    }
}

#[test]
fn a_resume_point_that_cannot_be_true_ends_the_pipe_and_is_never_clamped() {
    let cases = [
        (1, Violation::Lost { peer_has: 1, oldest: 2 }),
        (7, Violation::FromTheFuture { peer_has: 7, sent: 6 }),
        (u64::MAX, Violation::FromTheFuture { peer_has: u64::MAX, sent: 6 }),
    ];
    for (peer_has, expected) in cases {
        let mut bench = Bench::attached(Side::Server, 6);
        bench.write("abcdefghi");
        bench.sent();
        bench.control(1, acked(2, 6)).expect("true");
        assert_eq!(bench.pipe.check_peer(peer_has), Err(expected));
        assert_eq!(bench.pipe.attached(), Some(1), "the live carrier does not feel it");
        assert_eq!(bench.attach(2, peer_has, 100), Err(expected));
    }
}

#[test]
fn duplicates_drop_themselves_and_a_gap_is_fatal() {
    let mut bench = Bench::attached(Side::Server, 0);
    bench.data(1, 0, "hello").expect("in order");
    bench.data(1, 3, "lo world").expect("overlaps");
    bench.data(1, 0, "hello").expect("all of it is known");
    bench.data(1, 11, "").expect("an empty frame says nothing");
    assert_eq!(bench.read(), "hello world");
    assert_eq!(bench.pipe.counts().duplicates, 7);
    assert_eq!(bench.data(1, 12, "x"), Err(Violation::Gap { expected: 11, came: 12 }));
    assert_eq!(bench.data(1, u64::MAX, "xy"), Err(Violation::Overflow));
}

#[test]
fn bytes_that_go_on_together_are_counted_behind_each_other() {
    let mut bench = Bench::attached(Side::Server, 0);
    let fresh = bench.pipe.data(1, 0, b"hello").expect("in order");
    let behind = bench.pipe.data_behind(5, 1, 3, b"lo world").expect("overlaps what is not kept yet");
    assert_eq!((fresh, behind), (&b"hello"[..], &b" world"[..]));
    assert_eq!(bench.pipe.data_behind(11, 1, 12, b"x"), Err(Violation::Gap { expected: 11, came: 12 }));
    bench.pipe.passed(bench.now, 5, &mut bench.pool);
    bench.pipe.hold(bench.now, behind, &mut bench.pool);
    assert_eq!((bench.pipe.received(), bench.read().as_str()), (11, " world"));
}

#[test]
fn bytes_beyond_the_limit_are_fatal_and_allocate_nothing() {
    let mut bench = Bench::attached(Side::Server, 0);
    let full = "x".repeat(WINDOW_MIN as usize);
    bench.data(1, 0, &full).expect("exactly what was allowed");
    let expected = Violation::OverLimit { limit: WINDOW_MIN, came: WINDOW_MIN + 1 };
    assert_eq!(bench.data(1, WINDOW_MIN, "y"), Err(expected));
    assert!(bench.pipe.memory() <= WINDOW_MIN as usize);
}

#[test]
fn an_acknowledgement_may_be_late_or_doubled_but_not_from_the_future() {
    let mut bench = Bench::attached(Side::Client, 4);
    bench.write("abcdef");
    assert_eq!(bench.sent(), [data(0, 4)]);
    bench.control(1, acked(3, 6)).expect("true");
    bench.control(1, acked(3, 6)).expect("again");
    bench.control(1, acked(1, 2)).expect("late, and its limit smaller");
    assert_eq!(bench.pipe.written(), (6, 3));
    assert_eq!(bench.sent(), [data(4, 2)], "a limit never shrinks");
    assert_eq!(bench.control(1, acked(7, 9)), Err(Violation::FromTheFuture { peer_has: 7, sent: 6 }));
}

#[test]
fn a_full_window_takes_nothing_more_attached_or_not_and_an_acknowledgement_opens_it() {
    let mut bench = Bench::attached(Side::Client, u64::MAX);
    let full = "x".repeat(WINDOW_MIN as usize);
    assert_eq!(bench.write(&full), full.len());
    assert_eq!((bench.write("y"), bench.pipe.room()), (0, 0));
    bench.sent();
    assert_eq!(bench.write("y"), 0, "written to a socket is not acknowledged");
    bench.pipe.detach(1);
    assert_eq!(bench.write("y"), 0);
    bench.attach(2, 10, u64::MAX).expect("true");
    assert_eq!(bench.pipe.room(), 10);
    assert_eq!(bench.write("yyyyyyyyyyyyyyy"), 10);
}

#[test]
fn the_end_of_a_direction_is_acknowledged_and_replayed_like_a_byte() {
    let mut bench = Bench::attached(Side::Server, 100);
    bench.write("bye");
    bench.pipe.finish();
    assert_eq!(bench.write("more"), 0, "nothing after the end");
    assert_eq!(bench.sent(), [data(0, 3), fin(3)]);
    bench.control(1, acked(3, 100)).expect("the bytes, not the end");
    assert!(!bench.pipe.is_done());
    bench.pipe.detach(1);
    bench.attach(2, 3, 100).expect("true");
    assert_eq!(bench.sent(), [ack(0, WINDOW_MIN), fin(3)]);
    bench.pipe.detach(2);
    bench.attach(3, 4, 100).expect("it has the end as well");
    assert_eq!(bench.sent(), [ack(0, WINDOW_MIN)]);
    bench.data(3, 0, "still here").expect("the other direction goes on");
    bench.control(3, Control::Fin { off: 10 }).expect("follows");
    assert_eq!(bench.read(), "still here");
    assert!(bench.pipe.at_end() && bench.pipe.is_done());
    assert_eq!(bench.sent(), [ack(11, 10 + WINDOW_MIN)]);
}

#[test]
fn a_pipe_without_a_byte_still_ends() {
    let mut bench = Bench::attached(Side::Client, 100);
    bench.pipe.finish();
    assert_eq!(bench.sent(), [fin(0)]);
    bench.control(1, Control::Fin { off: 0 }).expect("at once");
    bench.control(1, acked(1, 100)).expect("sent");
    assert_eq!(bench.sent(), [ack(1, WINDOW_MIN), reset(Ending::Eof)]);
    assert!(bench.pipe.goodbye_sent());
    bench.pipe.closed_after_goodbye(&mut bench.pool);
    assert_eq!(bench.pipe.over_with(), Some(&End::new(Ending::Eof, "")));
}

#[test]
fn a_reader_that_takes_its_bytes_after_the_goodbye_owes_nothing() {
    let mut bench = Bench::attached(Side::Client, 100);
    bench.pipe.finish();
    bench.data(1, 0, &"x".repeat(WINDOW_MIN as usize)).expect("allowed");
    bench.control(1, Control::Fin { off: WINDOW_MIN }).expect("follows");
    bench.sent();
    bench.control(1, acked(1, 100)).expect("sent");
    assert_eq!(bench.sent(), [reset(Ending::Eof)]);
    assert_eq!(bench.read().len() as u64, WINDOW_MIN);
    assert_eq!(bench.sent(), []);
}

#[test]
fn nothing_may_follow_the_end_of_a_direction() {
    let mut bench = Bench::attached(Side::Server, 100);
    bench.data(1, 0, "abc").expect("in order");
    assert_eq!(bench.control(1, Control::Fin { off: 4 }), Err(Violation::Gap { expected: 3, came: 4 }));
    assert_eq!(bench.control(1, Control::Fin { off: 2 }), Err(Violation::AfterFin { fin: 2, came: 3 }));
    bench.control(1, Control::Fin { off: 3 }).expect("follows");
    bench.control(1, Control::Fin { off: 3 }).expect("a replayed one says nothing new");
    bench.data(1, 1, "bc").expect("so do replayed bytes");
    assert_eq!(bench.data(1, 1, "bcd"), Err(Violation::AfterFin { fin: 3, came: 4 }));
}

#[test]
fn whatever_an_old_carrier_says_is_ignored() {
    let mut bench = Bench::attached(Side::Server, 100);
    bench.write("abc");
    bench.sent();
    bench.attach(2, 0, 100).expect("takes over without a detach");
    bench.data(1, 0, "late").expect("ignored");
    bench.control(1, acked(3, 100)).expect("ignored");
    bench.control(1, Control::Reset(End::new(RESET, ""))).expect("ignored");
    assert!(!bench.pipe.detach(1), "its loss is not the loss of the new one");
    assert_eq!((bench.pipe.received(), bench.pipe.attached()), (0, Some(2)));
    assert_eq!(bench.pipe.written(), (3, 0));
}

#[test]
fn breaking_off_is_told_on_the_next_carrier_and_holds_nothing() {
    let mut bench = Bench::attached(Side::Server, 100);
    bench.write("abc");
    bench.data(1, 0, "in flight").expect("in order");
    bench.pipe.detach(1);
    bench.pipe.abort(End::new(RESET, ""), &mut bench.pool);
    assert_eq!(bench.pipe.memory(), 0);
    bench.attach(2, 2, 100).expect("where the peer stands does not matter any more");
    assert_eq!(bench.sent(), [reset(RESET)]);
    bench.pipe.detach(2);
    bench.attach(3, 2, 100).expect("it may not have heard");
    assert_eq!(bench.sent(), [reset(RESET)]);
    bench.pipe.closed_after_goodbye(&mut bench.pool);
    assert_eq!(bench.pipe.over_with().map(|end| end.code), Some(RESET));
}

#[test]
fn a_target_that_breaks_off_is_heard_after_its_last_bytes_even_across_a_cut() {
    let mut bench = Bench::attached(Side::Server, 100);
    bench.write("last words");
    bench.pipe.break_off(End::new(RESET, ""), &mut bench.pool);
    assert_eq!(bench.write("x"), 0);
    assert_eq!(bench.sent(), [data(0, 10), reset(RESET)]);
    bench.data(1, 0, "for nobody").expect("the peer cannot know yet");
    assert_eq!(bench.pipe.unread(), 0);
    bench.pipe.detach(1);
    bench.attach(2, 4, 100).expect("true");
    assert_eq!(bench.sent(), [ack(10, 10 + WINDOW_MIN), data(4, 6), reset(RESET)]);
    assert!(bench.pipe.goodbye_sent());
    bench.pipe.closed_after_goodbye(&mut bench.pool);
    assert_eq!((bench.pipe.over_with().map(|end| end.code), bench.pipe.memory()), (Some(RESET), 0));
}

#[test]
fn a_reset_ends_the_pipe_at_once() {
    let mut bench = Bench::attached(Side::Client, 100);
    bench.write("abc");
    bench.control(1, Control::Reset(End::new(RESET, "the target broke off"))).expect("a peer may");
    assert_eq!(bench.pipe.over_with(), Some(&End::new(RESET, "the target broke off")));
    assert_eq!((bench.sent(), bench.write("x")), (vec![], 0));
    assert_eq!(bench.pipe.deadline(), None);
}

#[test]
fn a_goodbye_before_both_directions_ended_is_not_a_good_end() {
    let mut bench = Bench::attached(Side::Server, 100);
    bench.write("not acknowledged");
    bench.control(1, Control::Reset(End::new(Ending::Eof, ""))).expect("handled");
    assert_eq!(bench.pipe.over_with().map(|end| end.code), Some(Ending::Protocol));
}

#[test]
fn acknowledgements_wait_a_moment_unless_much_came_or_bytes_go_anyway() {
    let mut bench = Bench::attached(Side::Server, 1_000);
    bench.data(1, 0, "abc").expect("in order");
    assert_eq!(bench.sent(), []);
    assert_eq!(bench.pipe.deadline(), Some(Moment::from_millis(25)));
    assert_eq!(bench.at(25), None);
    assert_eq!(bench.sent(), [ack(3, WINDOW_MIN)]);

    bench.data(1, 3, "def").expect("in order");
    bench.write("reply");
    assert_eq!(bench.sent(), [ack(6, WINDOW_MIN), data(0, 5)], "ahead of the bytes");

    bench.data(1, 6, &"x".repeat(WINDOW_MIN as usize / 4)).expect("in order");
    assert_eq!(bench.sent(), [ack(6 + WINDOW_MIN / 4, WINDOW_MIN)]);

    bench.control(1, Control::Fin { off: 6 + WINDOW_MIN / 4 }).expect("follows");
    assert_eq!(bench.sent(), [ack(7 + WINDOW_MIN / 4, WINDOW_MIN)], "an end at once");
}

#[test]
fn a_reader_that_comes_back_opens_the_window_again() {
    let mut bench = Bench::attached(Side::Server, 0);
    let full = "x".repeat(WINDOW_MIN as usize);
    bench.data(1, 0, &full).expect("allowed");
    assert_eq!(bench.sent(), [ack(WINDOW_MIN, WINDOW_MIN)], "received, but nothing more allowed");
    bench.pipe.took(bench.now, 1, &mut bench.pool);
    assert_eq!(bench.sent(), [], "one byte is not worth a frame");
    bench.at(25);
    assert_eq!(bench.sent(), [ack(WINDOW_MIN, WINDOW_MIN + 1)], "but it must not be forgotten");
    bench.read();
    assert_eq!(bench.sent(), [ack(WINDOW_MIN, 2 * WINDOW_MIN)]);
}

#[test]
fn control_frames_go_ahead_of_queued_bytes() {
    let mut bench = Bench::attached(Side::Client, u64::MAX);
    bench.write(&"x".repeat(60_000));
    assert_eq!(bench.pipe.next(bench.now, 1_000), Some(data(0, 1_000)));
    bench.control(1, Control::Ping { token: 7 }).expect("a peer may");
    let pong = Outgoing::Control(Control::Pong { token: 7, recv: 0, limit: WINDOW_MIN });
    assert_eq!(bench.pipe.next(bench.now, 1_000), Some(pong));
    assert_eq!(bench.pipe.next(bench.now, 1_000), Some(data(1_000, 1_000)));
}

/// (side effects at moments) a script of silence against when it is noticed.
#[test]
fn an_idle_carrier_is_asked_after_15_s_and_dead_10_s_later() {
    let mut bench = Bench::attached(Side::Client, 100);
    assert_eq!(bench.at(14_999), None);
    assert_eq!(bench.sent(), []);
    assert_eq!(bench.at(15_000), None);
    assert_eq!(bench.sent(), [Outgoing::Control(Control::Ping { token: 1 })]);
    assert_eq!(bench.at(24_999), None);
    assert_eq!(bench.at(25_000), Some(1));
}

#[test]
fn any_byte_is_life() {
    let mut bench = Bench::attached(Side::Client, 100);
    bench.at(15_000);
    bench.sent();
    bench.now = Moment::from_millis(20_000);
    bench.pipe.heard(bench.now);
    assert_eq!(bench.at(25_000), None);
    assert_eq!(bench.at(35_000), None, "the next question 15 s after the last byte");
    assert_eq!(bench.sent(), [Outgoing::Control(Control::Ping { token: 2 })]);
    bench.control(1, Control::Pong { token: 2, recv: 0, limit: 100 }).expect("answers");
    assert_eq!(bench.pipe.round_trip(), Some(Duration::ZERO));
}

#[test]
fn with_unacknowledged_bytes_silence_is_noticed_in_six_seconds() {
    let mut bench = Bench::attached(Side::Client, 100);
    bench.at(10_000);
    bench.write("are you there");
    bench.sent();
    assert_eq!(bench.at(12_999), None);
    assert_eq!(bench.at(13_000), None);
    assert_eq!(bench.sent(), [Outgoing::Control(Control::Ping { token: 1 })]);
    assert_eq!(bench.at(16_000), Some(1));
}

#[test]
fn bytes_that_wait_for_room_at_the_peer_are_owed_as_well() {
    let mut bench = Bench::attached(Side::Client, 3);
    bench.at(10_000);
    bench.write("abcdef");
    assert_eq!(bench.sent(), [Outgoing::Data { off: 0, len: 3 }]);
    bench.pipe.heard(bench.now);
    bench.control(1, acked(3, 3)).expect("true");
    assert_eq!(bench.at(13_000), None);
    assert_eq!(bench.sent(), [Outgoing::Control(Control::Ping { token: 1 })], "the word of more may be lost");
    assert_eq!(bench.at(16_000), Some(1));
}

#[test]
fn a_peer_that_reads_and_never_acknowledges_but_lives_keeps_its_carrier() {
    let mut bench = Bench::attached(Side::Client, 100);
    bench.write("anybody");
    bench.sent();
    for second in 1..60 {
        assert_eq!(bench.at(second * 1_000), None, "at {second} s");
        for outgoing in bench.sent() {
            if let Outgoing::Control(Control::Ping { token }) = outgoing {
                bench.pipe.heard(Moment(bench.now.0 + 1));
                bench.control(1, Control::Pong { token, recv: 0, limit: 100 }).expect("true");
            }
        }
    }
    assert_eq!(bench.pipe.written(), (7, 0), "and nothing is forgotten");
}

#[test]
fn a_machine_that_woke_asks_at_once_and_waits_two_seconds() {
    let mut bench = Bench::attached(Side::Client, 100);
    bench.now = Moment::from_millis(1_000);
    bench.pipe.probe(bench.now, Duration::from_secs(2));
    assert_eq!(bench.sent(), [Outgoing::Control(Control::Ping { token: 1 })]);
    assert_eq!(bench.at(3_000), Some(1));
}

#[test]
fn large_offsets_are_offsets_like_any_other() {
    for start in [u64::from(u32::MAX) - 2, (1 << 63) - 2, u64::MAX - WINDOW_MIN - 10] {
        let mut bench = Bench::starting_at(Side::Server, start);
        bench.attach(1, start, start + 100).expect("a fresh pipe");
        assert_eq!(bench.sent(), [ack(start, start.saturating_add(WINDOW_MIN))]);
        bench.write("abcdef");
        assert_eq!(bench.sent(), [data(start, 6)]);
        bench.data(1, start, "hello").expect("in order");
        assert_eq!(bench.read(), "hello");
        bench.pipe.detach(1);
        bench.attach(2, start + 4, start + 100).expect("true");
        assert_eq!(bench.pipe.counts().replayed, 2);
    }
}

#[test]
fn at_the_last_offset_there_is_a_pipe_is_full_and_does_not_wrap() {
    let mut bench = Bench::starting_at(Side::Server, u64::MAX - 4);
    assert_eq!(bench.write("abcdef"), 4);
    bench.attach(1, u64::MAX - 4, u64::MAX).expect("a fresh pipe");
    bench.sent();
    bench.data(1, u64::MAX - 4, "abcd").expect("up to the end");
    assert_eq!(bench.data(1, u64::MAX, "e"), Err(Violation::Overflow));
    assert_eq!(bench.control(1, Control::Fin { off: u64::MAX }), Err(Violation::Overflow));
}

#[test]
fn a_smaller_window_takes_back_no_permission() {
    let mut bench = Bench::new(Side::Server);
    bench.pipe.set_window(bench.now, 4 * WINDOW_MIN);
    bench.attach(1, 0, 100).expect("a fresh pipe");
    assert_eq!(bench.sent(), [ack(0, 4 * WINDOW_MIN)]);
    bench.pipe.set_window(bench.now, WINDOW_MIN);
    bench.data(1, 0, &"x".repeat(4 * WINDOW_MIN as usize)).expect("was allowed");
    bench.read();
    assert_eq!(bench.sent(), [ack(4 * WINDOW_MIN, 5 * WINDOW_MIN)]);
}

#[test]
fn an_id_reads_as_it_prints() {
    let id = PipeId(*b"0123456789abcdef");
    assert_eq!(PipeId::parse(&id.to_string()), Some(id));
    for bad in ["", "30", "+0313233343536373839616263646566", "zz313233343536373839616263646566"] {
        assert_eq!(PipeId::parse(bad), None, "{bad}");
    }
    for (number, ending) in Ending::ALL.into_iter().enumerate() {
        assert_eq!(ending as usize, number);
        assert_eq!(Ending::from_number(number as u16), ending);
    }
}

#[test]
fn breaking_off_keeps_what_is_half_on_the_carrier_and_nothing_for_the_next_one() {
    let mut bench = Bench::attached(Side::Server, WINDOW_MIN);
    bench.write("half of it");
    assert_eq!(bench.pipe.next(bench.now, DATA_MAX), Some(Outgoing::Data { off: 0, len: 10 }));
    bench.pipe.abort(End::new(Ending::Killed, "by hand"), &mut bench.pool);
    // The head and five bytes are written: the peer waits for the other five before it can read the reset.
    let rest: Vec<u8> = bench.pipe.bytes(5, 5).flatten().copied().collect();
    assert_eq!(rest, b"of it");
    assert_eq!(bench.write("more"), 0);
    bench.pipe.detach(1);
    assert_eq!(bench.attach(2, 0, WINDOW_MIN), Ok(0), "nothing goes out again");
    assert_eq!(bench.pipe.memory(), 0);
    assert_eq!(bench.sent(), [Outgoing::Control(Control::Reset(End::new(Ending::Killed, "by hand")))]);
}

#[test]
fn bytes_are_read_in_place_only_where_they_are_new_and_allowed_and_for_somebody() {
    let window = usize::try_from(WINDOW_MIN).expect("small");
    let mut bench = Bench::attached(Side::Server, WINDOW_MIN);
    let room = |bench: &mut Bench, epoch, off, limits| {
        bench.pipe.arriving(epoch, off, limits, &mut bench.pool).map(|space| space.len())
    };
    assert_eq!(room(&mut bench, 1, 0, (1, 10)), Some(10));
    assert_eq!(room(&mut bench, 1, 0, (1, usize::MAX)), Some(window), "not above the limit");
    assert_eq!(room(&mut bench, 1, 0, (window + 1, usize::MAX)), None, "not for so little");
    assert_eq!(room(&mut bench, 2, 0, (1, 10)), None, "not from another carrier");
    assert_eq!(room(&mut bench, 1, 1, (1, 10)), None, "not behind a gap");
    let space = bench.pipe.arriving(1, 0, (1, 5), &mut bench.pool).expect("room");
    space.copy_from_slice(b"hello");
    bench.pipe.arrived(bench.now, 5, &mut bench.pool);
    assert_eq!(bench.pipe.received(), 5);
    assert_eq!(bench.pipe.readable(9).flatten().copied().collect::<Vec<u8>>(), b"hello");
    assert_eq!(room(&mut bench, 1, 0, (1, 10)), None, "not a second time");
    assert_eq!(room(&mut bench, 1, 5, (1, usize::MAX)), Some(window - 5));
    bench.pipe.took(bench.now, 5, &mut bench.pool);
    assert_eq!(room(&mut bench, 1, 5, (1, usize::MAX)), Some(window - 5), "nobody was told of more");
    bench.pipe.arrived(bench.now, 0, &mut bench.pool);
    assert_eq!(bench.pipe.memory(), 0, "nothing came, nothing is held");
    bench.control(1, Control::Fin { off: 5 }).expect("it ends there");
    assert_eq!(room(&mut bench, 1, 5, (1, 10)), None, "not after the end");

    let mut bench = Bench::attached(Side::Server, WINDOW_MIN);
    bench.pipe.break_off(End::new(Ending::TargetReset, ""), &mut bench.pool);
    assert_eq!(room(&mut bench, 1, 0, (1, 10)), None, "nobody wants them");
    let mut bench = Bench::attached(Side::Server, WINDOW_MIN);
    bench.pipe.detach(1);
    assert_eq!(room(&mut bench, 1, 0, (1, 10)), None);
}

#[test]
fn bytes_pass_unkept_only_where_they_are_next_and_allowed_and_nothing_waits_in_front() {
    let mut bench = Bench::attached(Side::Client, 100);
    let window = WINDOW_MIN as usize;
    assert!(bench.pipe.may_pass(1, 0, window));
    assert!(!bench.pipe.may_pass(1, 0, window + 1), "more than was allowed");
    assert!(!bench.pipe.may_pass(2, 0, 1), "not the carrier");
    assert!(!bench.pipe.may_pass(1, 1, 1), "a gap");
    bench.pipe.passed(bench.now, 10, &mut bench.pool);
    assert!(!bench.pipe.may_pass(1, 0, 1), "known already");
    assert!(bench.pipe.may_pass(1, 10, 1));
    bench.data(1, 10, "kept").expect("in order");
    assert!(!bench.pipe.may_pass(1, 14, 1), "something waits in front");
    assert_eq!(bench.read(), "kept");
    assert!(bench.pipe.may_pass(1, 14, 1));
    bench.control(1, Control::Fin { off: 14 }).expect("in order");
    assert!(!bench.pipe.may_pass(1, 14, 1), "after the end");
}

#[test]
fn what_could_be_sent_is_what_the_peer_allows_and_no_frame_bears_yet() {
    let mut bench = Bench::attached(Side::Client, 4);
    bench.write("abcdef");
    assert_eq!(bench.pipe.sendable(), 4);
    assert_eq!(bench.sent(), [data(0, 4)]);
    assert_eq!(bench.pipe.sendable(), 0);
    bench.control(1, acked(2, 100)).expect("true");
    assert_eq!(bench.pipe.sendable(), 2);
}
