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
