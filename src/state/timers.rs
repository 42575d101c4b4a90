//! Timers as a table: one moment for each kind of alarm a machine has.
//!
//! A machine names its alarms in an enum, so that a reader sees all of them in one place, and asks
//! one question for all: when is the next one?
//!
//! ```
//! use towpath::state::time::Moment;
//! use towpath::state::timers::{Key, Timers};
//!
//! #[derive(Clone, Copy, Debug, PartialEq)]
//! enum Alarm { Redial, Probe }
//! impl Key<2> for Alarm {
//!     const ALL: [Alarm; 2] = [Alarm::Redial, Alarm::Probe];
//!     fn index(self) -> usize { self as usize }
//! }
//!
//! let mut timers = Timers::<Alarm, 2>::new();
//! timers.set(Alarm::Probe, Moment(15));
//! timers.set(Alarm::Redial, Moment(5));
//! assert_eq!(timers.next(), Some(Moment(5)));
//! assert_eq!(timers.due(Moment(20)), Some(Alarm::Redial));
//! assert_eq!(timers.due(Moment(20)), Some(Alarm::Probe));
//! assert_eq!(timers.due(Moment(20)), None);
//! ```

use super::time::Moment;
use std::marker::PhantomData;

/// An enum that names the `N` alarms of a machine.
pub trait Key<const N: usize>: Copy {
    /// Every alarm, each at its own [`index`](Key::index).
    const ALL: [Self; N];
    /// Where the alarm stands in [`ALL`](Key::ALL).
    fn index(self) -> usize;
}

/// The alarms of one machine.
#[derive(Clone, Debug)]
pub struct Timers<K, const N: usize> {
    at: [Option<Moment>; N],
    keys: PhantomData<K>,
}

impl<K: Key<N>, const N: usize> Timers<K, N> {
    /// No alarm is set.
    pub const fn new() -> Timers<K, N> {
        Timers { at: [None; N], keys: PhantomData }
    }

    /// Sets an alarm, in place of what it was set to.
    pub fn set(&mut self, key: K, at: Moment) {
        self.at[key.index()] = Some(at);
    }

    /// Sets an alarm unless it is set to something earlier.
    pub fn set_by(&mut self, key: K, at: Moment) {
        let slot = &mut self.at[key.index()];
        *slot = Moment::earliest(*slot, Some(at));
    }

    /// The alarm will not ring.
    pub fn stop(&mut self, key: K) {
        self.at[key.index()] = None;
    }

    /// No alarm will ring.
    pub fn stop_all(&mut self) {
        self.at = [None; N];
    }

    /// What an alarm is set to.
    pub fn get(&self, key: K) -> Option<Moment> {
        self.at[key.index()]
    }

    /// When the earliest alarm rings.
    pub fn next(&self) -> Option<Moment> {
        self.at.iter().copied().fold(None, Moment::earliest)
    }

    /// Takes the earliest alarm that has come; of two at one moment the first in the table. Call it
    /// until it gives nothing: an alarm that rings may set another.
    pub fn due(&mut self, now: Moment) -> Option<K> {
        let next = self.next().filter(|next| *next <= now);
        let index = self.at.iter().position(|at| at.is_some() && *at == next)?;
        self.at[index] = None;
        Some(K::ALL[index])
    }
}

impl<K: Key<N>, const N: usize> Default for Timers<K, N> {
    fn default() -> Self {
        Timers::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Alarm {
        One,
        Two,
        Three,
    }

    impl Key<3> for Alarm {
        const ALL: [Alarm; 3] = [Alarm::One, Alarm::Two, Alarm::Three];
        fn index(self) -> usize {
            self as usize
        }
    }

    #[test]
    fn alarms_ring_in_order_and_once() {
        let mut timers = Timers::<Alarm, 3>::new();
        timers.set(Alarm::Three, Moment(2));
        timers.set(Alarm::Two, Moment(1));
        timers.set(Alarm::One, Moment(2));
        assert_eq!(timers.due(Moment(0)), None);
        assert_eq!(timers.due(Moment(2)), Some(Alarm::Two));
        assert_eq!(timers.due(Moment(2)), Some(Alarm::One), "the first in the table on a tie");
        assert_eq!(timers.due(Moment(2)), Some(Alarm::Three));
        assert_eq!(timers.due(Moment(2)), None);
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn set_by_only_moves_an_alarm_forward() {
        let mut timers = Timers::<Alarm, 3>::new();
        timers.set_by(Alarm::One, Moment(5));
        timers.set_by(Alarm::One, Moment(9));
        assert_eq!(timers.get(Alarm::One), Some(Moment(5)));
        timers.set_by(Alarm::One, Moment(3));
        assert_eq!(timers.get(Alarm::One), Some(Moment(3)));
        timers.stop(Alarm::One);
        assert_eq!(timers.next(), None);
    }

    proptest! {
        /// The model is a list that is sorted whenever somebody asks.
        #[test]
        fn the_table_agrees_with_a_sorted_list(ops in prop::collection::vec((0..4u8, 0..3usize, 0..20u64), 0..60)) {
            let mut timers = Timers::<Alarm, 3>::new();
            let mut model: Vec<(Moment, usize)> = vec![];
            for (op, key, at) in ops {
                let at = Moment(at);
                match op {
                    0 => {
                        timers.set(Alarm::ALL[key], at);
                        model.retain(|entry| entry.1 != key);
                        model.push((at, key));
                    }
                    1 => {
                        timers.stop(Alarm::ALL[key]);
                        model.retain(|entry| entry.1 != key);
                    }
                    _ => {
                        model.sort();
                        let due = model.first().copied().filter(|entry| entry.0 <= at);
                        if due.is_some() {
                            model.remove(0);
                        }
                        prop_assert_eq!(timers.due(at), due.map(|entry| Alarm::ALL[entry.1]));
                    }
                }
                prop_assert_eq!(timers.next(), model.iter().map(|entry| entry.0).min());
            }
        }
    }
}
