//! Branches a simulation must reach, and bugs it must find.
//!
//! Both are looked up in the simulated thread's own cell, so that state machines, which know no
//! runtime, can use them; without the feature `testing` both vanish.

/// Says that an interesting branch was reached. A simulation names the marks it must see and fails
/// if none of its seeds reached one.
#[macro_export]
macro_rules! mark {
    ($name:ident) => {
        $crate::rt::reached(stringify!($name))
    };
}

/// Whether the known bug `name` is planted in this run: only ever true under a simulation that
/// asked for it, to prove that it would be found.
#[macro_export]
macro_rules! planted {
    ($name:literal) => {
        $crate::rt::is_planted($name)
    };
}

#[cfg(feature = "testing")]
mod on {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeSet;

    thread_local! {
        static PLANTED: Cell<Option<&'static str>> = const { Cell::new(None) };
        static REACHED: RefCell<BTreeSet<&'static str>> = const { RefCell::new(BTreeSet::new()) };
    }

    pub(crate) fn note(name: &'static str) {
        REACHED.with(|marks| marks.borrow_mut().insert(name));
    }

    pub(crate) fn planted() -> Option<&'static str> {
        PLANTED.with(Cell::get)
    }

    /// Prepares this thread for a run.
    pub(crate) fn begin(planted: Option<&'static str>) {
        PLANTED.with(|cell| cell.set(planted));
        REACHED.with(|marks| marks.borrow_mut().clear());
    }

    /// What this thread reached since it began.
    pub(crate) fn end() -> BTreeSet<&'static str> {
        PLANTED.with(|cell| cell.set(None));
        REACHED.with(|marks| std::mem::take(&mut *marks.borrow_mut()))
    }
}

#[cfg(feature = "testing")]
pub(crate) use on::{begin, end};

/// What [`mark!`](crate::mark) calls.
#[doc(hidden)]
#[inline]
pub fn reached(name: &'static str) {
    #[cfg(feature = "testing")]
    on::note(name);
    #[cfg(not(feature = "testing"))]
    let _ = name;
}

/// What [`planted!`](crate::planted) calls.
#[doc(hidden)]
#[inline]
pub fn is_planted(name: &str) -> bool {
    #[cfg(feature = "testing")]
    return on::planted() == Some(name);
    #[cfg(not(feature = "testing"))]
    {
        let _ = name;
        false
    }
}
