//! Making a failing run small: fewer choices that are not benign, same failure.

use super::outcome::Outcome;
use super::tape::{Choices, weight};

/// A failure made small.
#[derive(Debug)]
pub struct Shrunk {
    /// The last run that still failed the same way.
    pub outcome: Outcome,
    /// What it needs.
    pub choices: Choices,
    /// How many choices were not benign before, and how many are now.
    pub weight: (usize, usize),
    /// How many runs it took.
    pub runs: usize,
}

/// Turns ever smaller chunks of every tape benign, for as long as `run` fails with the same class,
/// with at most `runs_max` runs. Nothing when `failed` did not fail.
pub fn shrink(failed: Outcome, runs_max: usize, mut run: impl FnMut(Choices) -> Outcome) -> Option<Shrunk> {
    let class = failed.class()?.to_owned();
    let before = weight(failed.choices());
    let mut best = failed;
    let mut runs = 0;
    let mut progress = true;
    while progress && runs < runs_max {
        progress = false;
        let names: Vec<String> = best.choices().keys().cloned().collect();
        for name in names {
            let mut size = best.choices().get(&name).map_or(0, Vec::len).max(1);
            loop {
                let mut from = 0;
                while let Some(candidate) = benign(best.choices(), &name, from, size) {
                    if let Some(candidate) = candidate {
                        if runs == runs_max {
                            break;
                        }
                        runs += 1;
                        let outcome = run(candidate);
                        // Only what really got smaller counts, or this would go on for ever.
                        if outcome.class() == Some(class.as_str())
                            && weight(outcome.choices()) < weight(best.choices())
                        {
                            best = outcome;
                            progress = true;
                        }
                    }
                    from += size;
                }
                if size == 1 || runs == runs_max {
                    break;
                }
                size /= 2;
            }
        }
    }
    let choices = best.choices().clone();
    let weight = (before, weight(&choices));
    Some(Shrunk { outcome: best, choices, weight, runs })
}

/// The choices with one chunk of one tape turned benign: none past the tape's end, `Some(None)` when
/// the chunk is benign already.
fn benign(choices: &Choices, name: &str, from: usize, size: usize) -> Option<Option<Choices>> {
    let tape = choices.get(name)?;
    if from >= tape.len() {
        return None;
    }
    let chunk = from..(from + size).min(tape.len());
    if tape[chunk.clone()].iter().all(|choice| *choice == 0) {
        return Some(None);
    }
    let mut changed = choices.clone();
    changed.get_mut(name)?[chunk].fill(0);
    Some(Some(changed))
}
