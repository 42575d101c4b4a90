use super::*;
use proptest::prelude::*;

/// Byte number `offset` of every test: each offset has a byte of its own, not only modulo 256.
fn byte(offset: u64) -> u8 {
    (offset ^ (offset >> 8) ^ (offset >> 16)) as u8
}

fn bytes(from: u64, count: usize) -> Vec<u8> {
    (from..from + count as u64).map(byte).collect()
}

fn collect(replay: &Replay, from: u64, max: usize) -> Vec<u8> {
    replay.since(from, max).expect("it is there").flatten().copied().collect()
}

#[test]
fn an_empty_log_holds_no_memory_and_neither_does_one_that_was_acknowledged() {
    let mut pool = Pool::new(4);
    let mut replay = Replay::new(0, 1 << 20);
    assert_eq!(replay.memory(), 0);
    assert_eq!(replay.push(&bytes(0, 100_000), &mut pool), 100_000);
    assert_eq!(replay.memory(), 2 * CHUNK);
    assert_eq!(replay.ack(65_536, &mut pool), Ok(65_536));
    assert_eq!(replay.memory(), CHUNK);
    assert_eq!(replay.ack(100_000, &mut pool), Ok(34_464));
    assert_eq!((replay.memory(), pool.free()), (0, 2));
}

#[test]
fn a_full_log_takes_no_more_until_something_is_acknowledged() {
    let mut pool = Pool::new(4);
    let mut replay = Replay::new(0, 10);
    assert_eq!(replay.push(b"0123456789ab", &mut pool), 10);
    assert_eq!(replay.push(b"ab", &mut pool), 0);
    assert_eq!(replay.space(&mut pool).len(), 0);
    assert_eq!(replay.ack(1, &mut pool), Ok(1));
    assert_eq!(replay.push(b"ab", &mut pool), 1);
    assert_eq!(collect(&replay, 1, 99), b"123456789a");
}

#[test]
fn what_was_let_go_of_and_what_was_never_sent_are_told_apart() {
    let mut pool = Pool::new(0);
    let mut replay = Replay::new(5, 100);
    assert_eq!(replay.push(b"hello", &mut pool), 5);
    assert_eq!(replay.ack(7, &mut pool), Ok(2));
    assert_eq!(replay.since(6, 9).err(), Some(ReplayError::Evicted { wanted: 6, oldest: 7 }));
    assert_eq!(replay.since(11, 9).err(), Some(ReplayError::Future { wanted: 11, end: 10 }));
    assert_eq!(replay.since(10, 9).expect("the end itself").count(), 0);
    assert_eq!(replay.ack(11, &mut pool), Err(ReplayError::Future { wanted: 11, end: 10 }));
    assert_eq!(replay.ack(6, &mut pool), Ok(0), "an old acknowledgement says nothing new");
    assert_eq!(collect(&replay, 7, 2), b"ll");
}

#[test]
fn offsets_near_the_end_of_their_range_are_safe() {
    for start in [u64::from(u32::MAX) - 3, (1 << 63) - 3, u64::MAX - 6] {
        let mut pool = Pool::new(1);
        let mut replay = Replay::new(start, 100);
        let taken = replay.push(b"0123456789", &mut pool);
        assert_eq!(taken as u64, 10.min(u64::MAX - start));
        assert_eq!(collect(&replay, start + 4, 2), b"45");
        assert_eq!(replay.ack(start + 5, &mut pool), Ok(5));
    }
}

#[test]
fn bytes_can_be_read_in_place() {
    let mut pool = Pool::new(4);
    let mut replay = Replay::new(0, 3 * CHUNK as u64);
    replay.space(&mut pool)[..3].copy_from_slice(b"abc");
    replay.commit(3, &mut pool);
    assert_eq!(replay.space(&mut pool).len(), CHUNK - 3);
    assert_eq!(collect(&replay, 0, 9), b"abc");
    replay.ack(3, &mut pool).expect("sent");
    assert_eq!(replay.space(&mut pool).len(), CHUNK, "a fresh chunk starts at its beginning");
    replay.tidy(&mut pool);
    assert_eq!(replay.memory(), 0, "nothing came, nothing is held");
}

#[test]
fn bytes_can_be_read_into_many_chunks_at_once_and_what_was_not_needed_goes_back() {
    let mut pool = Pool::new(8);
    let mut replay = Replay::new(0, 4 * CHUNK as u64);
    assert_eq!(replay.push(&bytes(0, 10), &mut pool), 10);
    for (max, lengths, come) in [
        (CHUNK, vec![CHUNK - 10, 10], 3),
        (2 * CHUNK, vec![CHUNK - 13, CHUNK, 13], CHUNK),
        // No more than there is room for.
        (9 * CHUNK, vec![CHUNK - 13, CHUNK, CHUNK], 3 * CHUNK - 13),
        (9 * CHUNK, vec![], 0),
    ] {
        let from = replay.end();
        let mut spaces: Vec<&mut [u8]> = replay.spaces(max, &mut pool).collect();
        let given: Vec<usize> = spaces.iter().map(|space| space.len()).collect();
        assert_eq!(given, lengths);
        let came = bytes(from, come);
        let mut rest = &came[..];
        for space in &mut spaces {
            let count = rest.len().min(space.len());
            space[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
        }
        replay.commit(come, &mut pool);
        assert_eq!(collect(&replay, 0, usize::MAX), bytes(0, from as usize + come));
        assert_eq!(replay.memory(), (from as usize + come).div_ceil(CHUNK) * CHUNK);
    }
}

#[test]
fn a_pool_keeps_no_more_than_it_may() {
    let mut pool = Pool::new(2);
    let mut replay = Replay::new(0, 1 << 30);
    assert_eq!(replay.push(&bytes(0, 5 * CHUNK), &mut pool), 5 * CHUNK);
    replay.clear(&mut pool);
    assert_eq!((pool.free(), replay.memory(), replay.len()), (2, 0, 0));
}

#[derive(Clone, Debug)]
enum Op {
    Push(usize),
    InPlace(usize),
    Ack(u64),
    Since(u64, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![0..40usize, 60_000..70_000usize];
    prop_oneof![
        size.clone().prop_map(Op::Push),
        size.clone().prop_map(Op::InPlace),
        (0..200_000u64).prop_map(Op::Ack),
        (0..300_000u64, size).prop_map(|(offset, max)| Op::Since(offset, max)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    /// The model is a vector that never forgets, and two offsets.
    #[test]
    fn it_agrees_with_a_vector_that_never_forgets(
        start in prop_oneof![Just(0), Just(u64::from(u32::MAX) - 50_000)],
        bound in prop_oneof![Just(1u64), Just(100), Just(65_536), Just(200_000)],
        ops in prop::collection::vec(op(), 0..40),
    ) {
        let mut pool = Pool::new(3);
        let mut replay = Replay::new(start, bound);
        let (mut acked, mut end) = (start, start);
        for op in ops {
            match op {
                Op::Push(count) => {
                    let taken = replay.push(&bytes(end, count), &mut pool) as u64;
                    prop_assert_eq!(taken, (count as u64).min(bound - (end - acked)));
                    end += taken;
                }
                Op::InPlace(count) => {
                    let mut came = 0;
                    for space in replay.spaces(count, &mut pool) {
                        space.copy_from_slice(&bytes(end + came as u64, space.len()));
                        came += space.len();
                    }
                    prop_assert_eq!(came as u64, (count as u64).min(bound - (end - acked)));
                    // A read seldom fills all it was given.
                    let count = came - came / 3;
                    replay.commit(count, &mut pool);
                    replay.tidy(&mut pool);
                    end += count as u64;
                    prop_assert!(end - acked <= bound);
                }
                Op::Ack(upto) => {
                    let upto = start + upto;
                    let expected = if upto > end {
                        Err(ReplayError::Future { wanted: upto, end })
                    } else {
                        Ok(upto.saturating_sub(acked))
                    };
                    prop_assert_eq!(replay.ack(upto, &mut pool), expected);
                    acked = acked.max(upto.min(if upto > end { acked } else { end }));
                }
                Op::Since(offset, max) => {
                    let offset = start + offset;
                    match replay.since(offset, max) {
                        Ok(slices) => {
                            let got: Vec<u8> = slices.flatten().copied().collect();
                            prop_assert!(offset >= acked && offset <= end);
                            prop_assert_eq!(got, bytes(offset, max.min((end - offset) as usize)));
                        }
                        Err(ReplayError::Evicted { .. }) => prop_assert!(offset < acked),
                        Err(ReplayError::Future { .. }) => prop_assert!(offset > end),
                    }
                }
            }
            prop_assert_eq!((replay.acked(), replay.end()), (acked, end));
            let needed = (end - acked).div_ceil(CHUNK as u64) + 1;
            prop_assert!(replay.memory() as u64 <= needed * CHUNK as u64);
            prop_assert!(acked != end || replay.memory() == 0);
        }
    }
}

#[test]
fn bytes_move_to_another_log_with_their_chunk() {
    let mut pool = Pool::new(9);
    let (mut from, mut to) = (Replay::new(0, 1 << 20), Replay::new(7, 1 << 20));
    assert_eq!(from.push(&bytes(0, 3 * CHUNK + 10), &mut pool), 3 * CHUNK + 10);
    assert_eq!(from.ack(100, &mut pool), Ok(100));
    let lies = from.since(100, 1).expect("it is there").next().expect("a byte").as_ptr();
    assert_eq!(to.pull(&mut from, &mut pool), (3 * CHUNK + 10 - 100) as u64);
    assert_eq!(to.since(7, 1).expect("it is there").next().expect("a byte").as_ptr(), lies);
    assert_eq!((from.memory(), from.len()), (0, 0));
    assert_eq!((to.acked(), to.len()), (7, (3 * CHUNK + 10 - 100) as u64));
    assert_eq!(collect(&to, 7, usize::MAX), bytes(100, 3 * CHUNK + 10 - 100));
    assert_eq!(to.memory(), 4 * CHUNK, "the last ten bytes are not worth a chunk of another log");
    assert_eq!(pool.free(), 1);
}

#[test]
fn a_pool_lends_and_levels_what_it_has() {
    let (mut one, mut other) = (Pool::new(6), Pool::new(2));
    let mut log = Replay::new(0, 1 << 20);
    assert_eq!(log.push(&bytes(0, 6 * CHUNK), &mut one), 6 * CHUNK);
    log.clear(&mut one);
    assert_eq!(one.free(), 6);
    one.level(&mut other);
    assert_eq!((one.free(), other.free()), (4, 2), "no more than it may");
    let drawn = one.draw(3);
    assert_eq!((drawn.free(), one.free()), (3, 1));
    other.level(&mut one);
    assert_eq!((one.free(), other.free()), (1, 2), "one more or less is level");
    one.put_back(drawn);
    assert_eq!((one.free(), one.draw(99).free()), (4, 4));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Whatever is moved when, what comes out behind two logs is what went in, and no log is over its bound.
    #[test]
    fn what_passes_through_two_logs_stays_whole(
        bounds in (prop_oneof![Just(100u64), Just(200_000)], prop_oneof![Just(70_000u64), Just(300_000)]),
        ops in prop::collection::vec((0..4u8, prop_oneof![0..40usize, 30_000..140_000usize]), 0..60),
    ) {
        let mut pool = Pool::new(3);
        let (mut one, mut two) = (Replay::new(0, bounds.0), Replay::new(0, bounds.1));
        for (op, count) in ops {
            match op {
                0 => {
                    let end = one.end();
                    prop_assert!(one.push(&bytes(end, count), &mut pool) <= count);
                }
                1 => {
                    let (before, room) = (one.len(), two.room());
                    prop_assert_eq!(two.pull(&mut one, &mut pool), before.min(room));
                }
                2 => {
                    let (before, room) = (one.len(), two.room());
                    prop_assert!(two.pull_chunks(&mut one, &mut pool) <= before.min(room));
                }
                _ => {
                    let upto = two.end().min(two.acked() + count as u64);
                    prop_assert!(two.ack(upto, &mut pool).is_ok());
                }
            }
            prop_assert!(one.len() <= bounds.0 && two.len() <= bounds.1);
            prop_assert_eq!(one.acked(), two.end());
            prop_assert!(collect(&two, two.acked(), usize::MAX) == bytes(two.acked(), two.len() as usize));
            prop_assert!(collect(&one, one.acked(), usize::MAX) == bytes(one.acked(), one.len() as usize));
            prop_assert!(!one.is_empty() || one.memory() == 0);
            prop_assert!(!two.is_empty() || two.memory() == 0);
        }
    }
}
