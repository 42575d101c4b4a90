use super::*;
use crate::rt::RecvTimeoutError;

/// Writes down what it is woken with.
struct Scribe {
    seen: Sender<Seen>,
    alarm: Option<Moment>,
}

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Woken(Vec<u32>),
    Ended(Vec<u32>),
    Salvaged,
}

const PANIC: u32 = 666;

impl Scribe {
    fn say(&self, seen: Seen) {
        self.seen.try_send(seen).expect("the test reads everything it causes");
    }
}

impl Room for Scribe {
    type Message = u32;
    fn wake(&mut self, now: Moment, inbox: &mut Vec<u32>) {
        assert!(!inbox.contains(&PANIC), "told to");
        if self.alarm.is_some_and(|alarm| alarm <= now) {
            self.alarm = None;
        }
        self.say(Seen::Woken(std::mem::take(inbox)));
    }
    fn deadline(&self) -> Option<Moment> {
        self.alarm
    }
    fn end(&mut self, _now: Moment, inbox: &mut Vec<u32>) {
        self.say(Seen::Ended(std::mem::take(inbox)));
    }
    fn salvage(&mut self) {
        self.say(Seen::Salvaged);
    }
}

struct Rig {
    rt: Rt,
    crew: Crew,
    worker: Worker,
    inbox: Inbox<u32>,
    seen: Receiver<Seen>,
}

fn rig(alarm: Option<Duration>) -> Rig {
    let rt = Rt::real();
    let crew = Crew::new(&rt);
    let (tx, seen) = rt.channel("seen", 1_024);
    let alarm = alarm.map(|after| rt.now() + after);
    let (worker, inbox) = Worker::spawn(&crew, "scribe", Bounds::of(8), |_| Scribe { seen: tx, alarm })
        .expect("a thread can be started");
    Rig { rt, crew, worker, inbox, seen }
}

impl Rig {
    fn next(&self) -> Result<Seen, RecvTimeoutError> {
        self.seen.recv_deadline(self.rt.now() + Duration::from_secs(10))
    }
}

#[test]
fn a_room_is_woken_with_what_arrived_and_once_by_its_alarm() {
    let rig = rig(Some(Duration::from_millis(1)));
    assert_eq!(rig.next(), Ok(Seen::Woken(vec![])));
    rig.inbox.control(7).expect("the reserve is free");
    assert_eq!(rig.next(), Ok(Seen::Woken(vec![7])));
}

#[test]
fn stopping_gives_the_room_everything_that_was_accepted() {
    let rig = rig(None);
    for number in 0..8 {
        rig.inbox.data(number, Moment::NEVER).expect("a permit comes when the room drains");
    }
    drop(rig.worker);
    let mut numbers = Vec::new();
    let mut ended = 0;
    for seen in rig.seen.iter() {
        match seen {
            Seen::Woken(some) => numbers.extend(some),
            Seen::Ended(some) => {
                numbers.extend(some);
                ended += 1;
            }
            Seen::Salvaged => panic!("nothing panicked"),
        }
    }
    assert_eq!(numbers, (0..8).collect::<Vec<_>>());
    assert_eq!(ended, 1);
    assert_eq!(rig.inbox.control(1), Err(Refused::Ended(1)));
    assert_eq!(rig.inbox.try_data(2), Err(Refused::Ended(2)));
}

#[test]
fn a_panicking_room_salvages_once_and_poisons_its_crew() {
    let rig = rig(None);
    assert_eq!(rig.crew.poisoned(), None);
    rig.inbox.control(PANIC).expect("the reserve is free");
    assert_eq!(rig.next(), Ok(Seen::Salvaged));
    drop(rig.worker);
    let cause = rig.crew.poisoned().expect("the room panicked");
    assert!(cause.contains("scribe") && cause.contains("told to"), "{cause}");
    assert_eq!(rig.inbox.control(1), Err(Refused::Ended(1)));
}

/// Waits in its wake until told to go on.
struct Sleeper {
    entered: Sender<()>,
    go_on: Receiver<()>,
}

impl Room for Sleeper {
    type Message = u32;
    fn wake(&mut self, _now: Moment, _inbox: &mut Vec<u32>) {
        self.entered.try_send(()).expect("one wake at a time");
        _ = self.go_on.recv();
    }
    fn deadline(&self) -> Option<Moment> {
        None
    }
}

#[test]
fn data_runs_out_of_permits_while_control_still_fits() {
    let rt = Rt::real();
    let crew = Crew::new(&rt);
    let (entered_tx, entered) = rt.channel("entered", 1);
    let (go, go_on) = rt.channel("go", 64);
    let bounds = Bounds { data: 2, control: 1, drain: 16 };
    let (worker, inbox) = Worker::spawn(&crew, "sleeper", bounds, |_| Sleeper { entered: entered_tx, go_on })
        .expect("a thread can be started");
    inbox.control(0).expect("the reserve is free");
    entered.recv().expect("the room wakes");
    assert_eq!(inbox.try_data(1), Ok(()));
    assert_eq!(inbox.try_data(2), Ok(()));
    assert_eq!(inbox.try_data(3), Err(Refused::Full(3)));
    assert_eq!(inbox.data(3, rt.now()), Err(Refused::Full(3)));
    assert_eq!(inbox.control(4), Ok(()));
    assert_eq!(inbox.control(5), Err(Refused::Full(5)));
    let later = rt.now() + Duration::from_secs(60);
    assert_eq!(crew.stuck(later, Duration::from_secs(5)).len(), 1, "it has been awake for a minute then");
    drop(go);
    drop(worker);
    assert_eq!(crew.stuck(later, Duration::ZERO), []);
}

#[test]
fn a_room_nobody_can_reach_any_more_waits_for_its_alarm_and_does_not_spin() {
    let rig = rig(Some(Duration::from_millis(20)));
    drop(rig.inbox);
    let next = || rig.seen.recv_deadline(rig.rt.now() + Duration::from_secs(10));
    assert_eq!(next(), Ok(Seen::Woken(vec![])), "the alarm, once");
    drop(rig.worker);
    assert_eq!(
        rig.seen.iter().collect::<Vec<_>>(),
        [Seen::Ended(vec![])],
        "and nothing between it and the end"
    );
}

// ---- rooms with an open door

/// Tells on which thread it was woken, with what, and that nobody else was inside.
struct Host {
    seen: Sender<(Option<String>, Vec<u32>)>,
    alarm: Option<Moment>,
    hold: Option<(Sender<()>, Receiver<()>)>,
    inside: Arc<AtomicBool>,
    own: Option<Inbox<u32>>,
}

/// Waits inside until the test lets it go on.
const HOLD: u32 = 1_000;
/// Brings itself another message.
const ECHO: u32 = 1_001;
/// Sets an alarm in a millisecond.
const ALARM: u32 = 1_002;

impl Room for Host {
    type Message = u32;
    fn wake(&mut self, now: Moment, inbox: &mut Vec<u32>) {
        assert!(!self.inside.swap(true, Ordering::SeqCst), "one at a time");
        assert!(!inbox.contains(&PANIC), "told to");
        if self.alarm.is_some_and(|alarm| alarm <= now) {
            self.alarm = None;
        }
        let thread = crate::rt::current_thread_name();
        self.seen.try_send((thread, inbox.clone())).expect("the test reads everything it causes");
        for message in inbox.drain(..) {
            match (message, &self.hold, &self.own) {
                (HOLD, Some((entered, go_on)), _) => {
                    entered.try_send(()).expect("one wake at a time");
                    _ = go_on.recv();
                }
                (ECHO, _, Some(own)) => own.control(7).expect("the reserve is free"),
                (ALARM, ..) => self.alarm = Some(now + Duration::from_millis(1)),
                _ => {}
            }
        }
        self.inside.store(false, Ordering::SeqCst);
    }
    fn deadline(&self) -> Option<Moment> {
        self.alarm
    }
}

struct House {
    rt: Rt,
    crew: Crew,
    worker: Worker,
    inbox: Inbox<u32>,
    seen: Receiver<(Option<String>, Vec<u32>)>,
    entered: Receiver<()>,
    go: Sender<()>,
}

fn house() -> House {
    let rt = Rt::real();
    let crew = Crew::new(&rt);
    let (tx, seen) = rt.channel("seen", 4_096);
    let (entered_tx, entered) = rt.channel("entered", 1);
    let (go, go_on) = rt.channel("go", 64);
    let (worker, inbox) = Worker::spawn_open(&crew, "host", Bounds::of(8), |own| Host {
        seen: tx,
        alarm: None,
        hold: Some((entered_tx, go_on)),
        inside: Arc::default(),
        own: Some(own.clone()),
    })
    .expect("a thread can be started");
    let house = House { rt, crew, worker, inbox, seen, entered, go };
    // Its thread is inside until it has looked once; whoever comes before that is no guest.
    while !house.is_at_rest() {
        std::thread::yield_now();
    }
    house
}

impl House {
    /// Whether a guest finds the room empty: tried with a message that means nothing.
    fn is_at_rest(&self) -> bool {
        self.inbox.entering().control(0).expect("the reserve is free");
        self.next().0 != Some("host".into())
    }
    fn next(&self) -> (Option<String>, Vec<u32>) {
        self.seen.recv_deadline(self.rt.now() + Duration::from_secs(10)).expect("it is woken in time")
    }
}

#[test]
fn whoever_brings_something_to_an_empty_room_does_it_himself() {
    let house = house();
    let me = crate::rt::current_thread_name();
    house.inbox.entering().data(1, Moment::NEVER).expect("a permit is there");
    assert_eq!(house.seen.try_recv(), Ok((me, vec![1])), "it is done when it was brought");
    house.inbox.data(2, Moment::NEVER).expect("a permit is there");
    assert_eq!(house.next(), (Some("host".into()), vec![2]), "who does not enter leaves it to the thread");
}

#[test]
fn what_comes_while_a_guest_is_inside_is_done_by_him_or_by_the_thread() {
    let house = house();
    let inbox = house.inbox.entering();
    let guest = house.rt.spawn("guest", move || inbox.control(HOLD).is_ok()).expect("a thread");
    house.entered.recv().expect("the guest is inside");
    house.inbox.entering().control(1).expect("the reserve is free");
    house.inbox.control(2).expect("the reserve is free");
    assert_eq!(house.next(), (Some("guest".into()), vec![HOLD]));
    assert!(house.seen.is_empty(), "nobody else goes in meanwhile");
    house.go.send(()).expect("the guest waits");
    assert_eq!(guest.join(), Ok(true));
    assert_eq!(house.next(), (Some("guest".into()), vec![1, 2]));
}

#[test]
fn a_guest_stays_so_long_and_leaves_the_rest_to_the_thread() {
    let house = house();
    // Each wake brings the next message, so that there is always one more.
    let inbox = house.inbox.entering();
    for _ in 0..8 {
        house.inbox.entering().control(ECHO).expect("the reserve is free");
        let rounds = [house.next().1, house.next().1].concat();
        assert_eq!(rounds, [ECHO, 7], "what the room tells itself is done as well");
    }
    let guest = house.rt.spawn("guest", move || inbox.control(HOLD).is_ok()).expect("a thread");
    house.entered.recv().expect("the guest is inside");
    for round in 0..8 {
        assert_eq!(house.next().1[0], HOLD, "round {round}");
        house.inbox.entering().control(HOLD).expect("the reserve is free");
        house.go.send(()).expect("it waits");
        house.entered.recv().expect("somebody is inside again");
    }
    let (last, _) = house.next();
    assert_eq!(last, Some("host".into()), "by now it is the thread");
    assert_eq!(guest.join(), Ok(true));
    house.go.send(()).expect("it waits");
}

#[test]
fn an_alarm_that_a_guest_sets_rings_on_the_thread() {
    let house = house();
    house.inbox.entering().control(ALARM).expect("the reserve is free");
    assert_eq!(house.next().1, [ALARM]);
    assert_eq!(house.next(), (Some("host".into()), vec![]));
}

#[test]
fn stopping_waits_for_the_guest_and_nothing_is_lost() {
    let house = house();
    let inbox = house.inbox.entering();
    let guest = house.rt.spawn("guest", move || inbox.control(HOLD).is_ok()).expect("a thread");
    house.entered.recv().expect("the guest is inside");
    house.inbox.control(5).expect("the reserve is free");
    let (worker, rt) = (house.worker, house.rt.clone());
    let stopping = rt.spawn("stopping", move || drop(worker)).expect("a thread");
    assert!(!stopping.is_finished());
    house.go.send(()).expect("the guest waits");
    assert_eq!(guest.join(), Ok(true));
    assert!(stopping.join().is_ok());
    let all: Vec<u32> = house.seen.iter().flat_map(|(_, some)| some).collect();
    assert_eq!(all, [HOLD, 5]);
    assert_eq!(house.inbox.control(1), Err(Refused::Ended(1)));
    assert_eq!(house.inbox.entering().try_data(2), Err(Refused::Ended(2)));
}

#[test]
fn a_room_that_panics_under_a_guest_is_over_and_the_guest_lives() {
    let house = house();
    house.inbox.entering().control(PANIC).expect("it was taken");
    let cause = house.crew.poisoned().expect("the room panicked");
    assert!(cause.contains("host") && cause.contains("told to"), "{cause}");
    assert_eq!(house.inbox.entering().control(1), Err(Refused::Ended(1)));
    drop(house.worker);
    assert_eq!(house.crew.stuck(house.rt.now() + Duration::from_secs(60), Duration::ZERO), []);
}

#[test]
fn many_guests_lose_and_reorder_nothing() {
    let house = house();
    let guests: Vec<_> = (0..4u32)
        .map(|guest| {
            let inbox = house.inbox.entering();
            let bring = move || (1..=100).all(|n| inbox.data(guest * 100 + n, Moment::NEVER).is_ok());
            house.rt.spawn(format!("guest-{guest}"), bring).expect("a thread")
        })
        .collect();
    for guest in guests {
        assert_eq!(guest.join(), Ok(true));
    }
    drop(house.worker);
    let all: Vec<u32> = house.seen.iter().flat_map(|(_, some)| some).collect();
    for guest in 0..4u32 {
        let its = guest * 100 + 1..=guest * 100 + 100;
        let of: Vec<u32> = all.iter().copied().filter(|n| its.contains(n)).collect();
        assert_eq!(of, its.collect::<Vec<_>>());
    }
}
