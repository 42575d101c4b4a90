//! Every choice of a run, recorded by name.
//!
//! A tape draws from its own generator, seeded by the run's seed and the tape's name, so that one
//! more draw on one tape moves no other. 0 is always the benign choice: go on, no fault, first in
//! line. A run can be replayed from recorded tapes; past their end everything is benign, which is
//! what makes shrinking simple.

use std::collections::BTreeMap;

use crate::rt::rand::{SplitMix, mix, scale};

/// The recorded choices of a run, by the name of their tape.
pub(crate) type Choices = BTreeMap<String, Vec<u64>>;

pub(super) struct Tapes {
    seed: u64,
    replay: Option<Choices>,
    tapes: Vec<Tape>,
}

struct Tape {
    name: &'static str,
    source: Source,
    drawn: Vec<u64>,
}

enum Source {
    Generator(SplitMix),
    Recorded { choices: Vec<u64>, next: usize },
}

impl Tapes {
    pub(super) fn new(seed: u64, replay: Option<Choices>) -> Tapes {
        Tapes { seed, replay, tapes: Vec::new() }
    }

    /// A number in `0..n`; 0 without drawing when there is no choice.
    pub(super) fn draw(&mut self, name: &'static str, n: u64) -> u64 {
        if n <= 1 {
            return 0;
        }
        let tape = self.tape(name);
        let choice = match &mut tape.source {
            Source::Generator(generator) => scale(generator.next(), n),
            Source::Recorded { choices, next } => {
                let choice = choices.get(*next).copied().unwrap_or(0);
                *next += 1;
                // A shrunk run may offer fewer options at this place than the recorded one did.
                if choice < n { choice } else { choice % n }
            }
        };
        tape.drawn.push(choice);
        choice
    }

    fn tape(&mut self, name: &'static str) -> &mut Tape {
        // A dozen tapes: a scan over pointers beats a map.
        let found = self.tapes.iter().position(|tape| std::ptr::eq(tape.name, name) || tape.name == name);
        let index = found.unwrap_or_else(|| {
            let source = match &mut self.replay {
                Some(recorded) => {
                    Source::Recorded { choices: recorded.remove(name).unwrap_or_default(), next: 0 }
                }
                None => Source::Generator(SplitMix(mix(self.seed) ^ fingerprint(name.as_bytes()))),
            };
            self.tapes.push(Tape { name, source, drawn: Vec::new() });
            self.tapes.len() - 1
        });
        &mut self.tapes[index]
    }

    /// What was chosen.
    pub(super) fn choices(&self) -> Choices {
        self.tapes.iter().map(|tape| (tape.name.to_owned(), tape.drawn.clone())).collect()
    }
}

/// Fowler, Noll and Vo's hash: the same number on every machine and in every version.
pub(super) fn fingerprint(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
