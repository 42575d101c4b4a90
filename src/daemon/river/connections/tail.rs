//! Connection rows as they come.
//!
//! Rows are written together, by several replicas, some seconds after their connections began: what is new is not
//! always behind what is known. So each look goes back a little further than the newest row there was, and tells what
//! it has not told.

use std::collections::HashSet;
use std::time::Duration;

use uuid::Uuid;

use super::{give, refused};
use crate::engine::connections::{Connections, Page};
use crate::rt::Hasher;
use crate::service::{Call, Failure, Writable};
use crate::state::connection::Row;
use crate::state::time::Wall;
use crate::state::value::Value;
use crate::store::connections::{ConnectionQuery, Cursor};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(1);
/// How much later than a newer one a row may come: the interval in which rows are gathered, twice.
const BACK: Duration = Duration::from_secs(10);
/// Known rows that one look goes back over at most.
const BACK_MAX: usize = 1_000;
/// New rows that one look takes at most.
const NEW_MAX: usize = 10_000;
/// Rows that are read at once, and told at once.
const PAGE: usize = 500;

/// What was told.
struct Tail {
    /// The rows that the last look met.
    known: HashSet<Uuid, Hasher>,
    newest: Option<Wall>,
    begun: bool,
}

/// The rows of a query that come from now on.
pub(super) fn follow(
    connections: &Connections,
    query: ConnectionQuery,
    call: &Call,
    out: &Writable<Value>,
) -> Result<(), Failure> {
    let query = ConnectionQuery { limit: PAGE, after: None, offset: 0, ..query };
    let mut tail = Tail::new(call.rt().hasher());
    loop {
        let new = tail.look(|after| {
            let page = connections.query(ConnectionQuery { after, ..query.clone() });
            page.map_err(|error| refused(&error))
        })?;
        for rows in new.chunks(PAGE) {
            if !give(rows, out)? {
                return Ok(());
            }
        }
        if call.wait(EVERY) {
            return Ok(());
        }
    }
}

impl Tail {
    fn new(hasher: Hasher) -> Tail {
        Tail { known: HashSet::with_hasher(hasher), newest: None, begun: false }
    }

    /// What is new, oldest first. `read` gives pages, newest first.
    fn look(
        &mut self,
        mut read: impl FnMut(Option<Cursor>) -> Result<Page, Failure>,
    ) -> Result<Vec<Row>, Failure> {
        let floor = self.newest.map(|newest| Wall(newest.as_micros() - BACK.as_micros() as i64));
        let (mut new, mut met, mut passed) = (Vec::new(), Vec::new(), 0);
        let mut after = None;
        'pages: loop {
            let Page { rows, next } = read(after)?;
            for row in rows {
                let is_known = self.known.contains(&row.id()) || !self.begun;
                if passed == BACK_MAX || floor.is_some_and(|floor| row.connect_time < floor) {
                    break 'pages;
                }
                self.newest = self.newest.max(Some(row.connect_time));
                met.push(row.id());
                match is_known {
                    true => passed += 1,
                    false if new.len() == NEW_MAX => {
                        let detail =
                            "more came at once than a tail tells: export what is missing, and begin again";
                        return Err(Failure::new("too_many", detail));
                    }
                    false => new.push(row),
                }
            }
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        self.begun = true;
        self.known.clear();
        self.known.extend(met);
        new.reverse();
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::Rt;
    use crate::state::connection::{Kind, Record, Status};

    /// A log whose rows are numbered, each with the second it began in.
    struct Log(Vec<(u128, i64)>);

    impl Log {
        fn tail() -> Tail {
            Tail::new(Rt::real().hasher())
        }

        /// Pages of two.
        fn look(&self, tail: &mut Tail) -> Vec<u128> {
            let mut rows = self.0.clone();
            rows.sort_by_key(|(number, second)| std::cmp::Reverse((*second, *number)));
            let rows: Vec<Row> = rows.into_iter().map(|(number, second)| row(number, second)).collect();
            let read = |after: Option<Cursor>| {
                let from =
                    after.map_or(0, |after| rows.iter().position(|row| row.id() == after.id).unwrap() + 1);
                let page: Vec<Row> = rows[from..].iter().take(2).cloned().collect();
                let last = page.last().filter(|_| from + 2 < rows.len());
                let next = last.map(|row| Cursor { connect_time: row.connect_time, id: row.id() });
                Ok(Page { rows: page, next })
            };
            let new = tail.look(read).expect("few are new");
            new.iter().map(|row| row.id().as_u128()).collect()
        }
    }

    fn row(number: u128, second: i64) -> Row {
        let time = Wall(second * 1_000_000);
        Row::from(Record::new(Uuid::from_u128(number), time, Kind::Ssh, Status::Connected))
    }

    #[test]
    fn what_was_there_is_not_told_and_what_comes_is_told_once_and_in_order() {
        let (mut log, mut tail) = (Log(vec![(1, 100), (2, 101), (3, 102)]), Log::tail());
        assert_eq!(log.look(&mut tail), [0; 0]);
        log.0.extend([(4, 103), (5, 104), (6, 105)]);
        assert_eq!(log.look(&mut tail), [4, 5, 6]);
        assert_eq!(log.look(&mut tail), [0; 0]);
    }

    #[test]
    fn a_row_that_comes_late_is_told_unless_it_is_too_late() {
        let (mut log, mut tail) = (Log(vec![(1, 100), (2, 120)]), Log::tail());
        log.look(&mut tail);
        log.0.extend([(3, 112), (4, 121), (5, 109)]);
        assert_eq!(log.look(&mut tail), [3, 4]);
        assert_eq!(log.look(&mut tail), [0; 0]);
    }

    #[test]
    fn the_first_rows_of_an_empty_log_are_told() {
        let (mut log, mut tail) = (Log(vec![]), Log::tail());
        assert_eq!(log.look(&mut tail), [0; 0]);
        log.0.push((1, 100));
        assert_eq!(log.look(&mut tail), [1]);
    }

    #[test]
    fn more_than_a_look_takes_ends_the_tail_and_says_so() {
        let mut tail = Log::tail();
        let page = |rows: u128| {
            let rows: Vec<Row> = (0..rows).map(|number| row(number + 1, 100)).collect();
            move |_| Ok(Page { rows: rows.clone(), next: None })
        };
        tail.look(page(0)).expect("nothing is new");
        let refused = tail.look(page(NEW_MAX as u128 + 1)).expect_err("too many");
        assert_eq!(refused.code, "too_many");
    }
}
