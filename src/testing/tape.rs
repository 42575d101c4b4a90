//! Recorded choices as text, to be kept in a file and played again.

use std::collections::BTreeMap;

/// The choices of a run, by the name of their tape; 0 is benign.
pub type Choices = BTreeMap<String, Vec<u64>>;

/// A line a tape: its name, then its choices; zeros at the end are left out, runs of zeros are
/// written as `0*n`.
pub(super) fn to_text(choices: &Choices) -> String {
    let mut text = String::new();
    for (name, tape) in choices {
        let end = tape.iter().rposition(|choice| *choice != 0).map_or(0, |last| last + 1);
        if end == 0 {
            continue;
        }
        text.push_str(&name.replace(' ', "_"));
        let mut rest = &tape[..end];
        while let Some(first) = rest.first() {
            let zeros = rest.iter().take_while(|choice| **choice == 0).count();
            if zeros > 1 {
                text.push_str(&format!(" 0*{zeros}"));
                rest = &rest[zeros..];
            } else {
                text.push_str(&format!(" {first}"));
                rest = &rest[1..];
            }
        }
        text.push('\n');
    }
    text
}

/// The inverse of [`to_text`].
pub(super) fn from_text(text: &str) -> Result<Choices, String> {
    let mut choices = Choices::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default().replace('_', " ");
        let mut tape = Vec::new();
        for word in words {
            let number =
                |text: &str| text.parse::<u64>().map_err(|error| format!("{word:?} on tape {name}: {error}"));
            match word.split_once('*') {
                Some((value, times)) => {
                    let value = number(value)?;
                    tape.extend(std::iter::repeat_n(value, number(times)? as usize));
                }
                None => tape.push(number(word)?),
            }
        }
        choices.insert(name, tape);
    }
    Ok(choices)
}

/// How many choices are not the benign one.
pub(super) fn weight(choices: &Choices) -> usize {
    choices.values().flatten().filter(|choice| **choice != 0).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tape_survives_being_written_down() {
        let choices = Choices::from([
            ("stall for".to_owned(), vec![0, 0, 0, 5, 0, 1]),
            ("switch".to_owned(), vec![3, 0, 0]),
        ]);
        let text = to_text(&choices);
        assert_eq!(text, "stall_for 0*3 5 0 1\nswitch 3\n");
        let back = from_text(&text).expect("it was written a line up");
        assert_eq!(back["stall for"], choices["stall for"]);
        assert_eq!(back["switch"], [3]);
        assert_eq!(weight(&back), 3);
        assert!(from_text("switch 1*x").is_err());
    }
}
