//! The facade costs nothing: its channels and select against bare crossbeam.

use crossbeam_channel as bare;
use towpath::rt::Rt;

use crate::pairs::{Bench, Case, Sample};

const MESSAGES: u64 = 4_000_000;
const BATCH: u64 = 1_000;

pub(crate) fn run(bench: &mut Bench) {
    let rt = Rt::real();
    let case = Case { name: "rt/send-receive", floor: "crossbeam", unit: "messages", goal: 0.95 };
    bench.pair(
        &case,
        || {
            let (tx, rx) = bare::bounded::<u64>(BATCH as usize);
            Sample::take(|| {
                let mut sum = 0;
                for _ in 0..MESSAGES / BATCH {
                    (0..BATCH).for_each(|number| tx.try_send(number).expect("there is room"));
                    sum += std::iter::from_fn(|| rx.try_recv().ok()).sum::<u64>();
                }
                std::hint::black_box(sum);
                MESSAGES
            })
        },
        || {
            let (tx, rx) = rt.channel::<u64>("bench", BATCH as usize);
            Sample::take(|| {
                let mut sum = 0;
                for _ in 0..MESSAGES / BATCH {
                    (0..BATCH).for_each(|number| tx.try_send(number).expect("there is room"));
                    sum += std::iter::from_fn(|| rx.try_recv().ok()).sum::<u64>();
                }
                std::hint::black_box(sum);
                MESSAGES
            })
        },
    );
    let case = Case { name: "rt/select", floor: "crossbeam", unit: "selects", goal: 0.95 };
    const SELECTS: u64 = 1_000_000;
    bench.pair(
        &case,
        || {
            let (_stop, stopped) = bare::bounded::<()>(1);
            let (tx, rx) = bare::bounded::<u64>(1);
            Sample::take(|| {
                for number in 0..SELECTS {
                    tx.try_send(number).expect("there is room");
                    let mut select = bare::Select::new_biased();
                    select.recv(&stopped);
                    let inbox = select.recv(&rx);
                    assert_eq!(select.ready(), inbox);
                    assert_eq!(rx.try_recv(), Ok(number));
                }
                SELECTS
            })
        },
        || {
            let (_stop, stopped) = rt.channel::<()>("stop", 1);
            let (tx, rx) = rt.channel::<u64>("bench", 1);
            Sample::take(|| {
                for number in 0..SELECTS {
                    tx.try_send(number).expect("there is room");
                    let mut select = rt.select_biased();
                    select.recv(&stopped);
                    let inbox = select.recv(&rx);
                    assert_eq!(select.ready(None), Some(inbox));
                    assert_eq!(rx.try_recv(), Ok(number));
                }
                SELECTS
            })
        },
    );
}
