//! What the daemon says about itself, on standard error: lines for people on a terminal, one JSON object
//! a line otherwise.
//!
//! A line may carry an event name that stays the same between versions, as its target:
//! `log::info!(target: "towpath/listening", "serving on {address}")`. A place in the code
//! that says something more than [`BURST`] times in [`WINDOW`] is silenced for the rest of it; the next
//! line says how many were left out. What looks like a secret is taken out of every text.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::config::{LogFormat, LogLevel};
use crate::rt::{Hasher, Lock, Moment, Rt, Wall};

/// Twenty lines show a pattern; more hide everything else.
const BURST: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);
/// What the target of a line with an event name begins with.
const EVENT: &str = "towpath/";
/// Places that are remembered; the code has fewer that log.
const PLACES_MAX: usize = 1_024;

/// Installs the logger for this process.
///
/// # Errors
/// When the program has one already.
pub(super) fn install(rt: &Rt, level: LogLevel, format: LogFormat) -> Result<(), log::SetLoggerError> {
    let json = match format {
        LogFormat::Human => false,
        LogFormat::Json => true,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let colour = !json && io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let seen = Lock::new(HashMap::with_hasher(rt.hasher()));
    log::set_boxed_logger(Box::new(Logger { rt: rt.clone(), json, colour, seen }))?;
    set_level(level);
    Ok(())
}

/// Changes how much is said.
pub(super) fn set_level(level: LogLevel) {
    log::set_max_level(match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    });
}

struct Logger {
    rt: Rt,
    json: bool,
    colour: bool,
    seen: Lock<HashMap<(&'static str, u32), Place, Hasher>>,
}

/// What a place in the code has said lately.
#[derive(Clone, Copy, Debug)]
struct Place {
    since: Moment,
    said: u32,
    left_out: u32,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other crates speak of their insides below this.
        metadata.target().starts_with("towpath") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let Some(left_out) = self.admit(record, self.rt.now()) else { return };
        let line = match self.json {
            true => json_line(record, self.rt.wall(), left_out),
            false => human_line(record, self.rt.wall(), left_out, self.colour),
        };
        // Where standard error is closed there is nobody to tell.
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

impl Logger {
    /// Whether to say it, and if so how many of the kind were left out before.
    fn admit(&self, record: &Record<'_>, now: Moment) -> Option<u32> {
        let (Some(file), Some(line)) = (record.file_static(), record.line()) else { return Some(0) };
        let mut seen = self.seen.lock();
        if seen.len() >= PLACES_MAX {
            seen.retain(|_, place| now.since(place.since) < WINDOW);
        }
        let place = seen.entry((file, line)).or_insert(Place { since: now, said: 0, left_out: 0 });
        admit(place, now)
    }
}

fn admit(place: &mut Place, now: Moment) -> Option<u32> {
    if now.since(place.since) >= WINDOW {
        let left_out = place.left_out;
        *place = Place { since: now, said: 1, left_out: 0 };
        return Some(left_out);
    }
    if place.said >= BURST {
        place.left_out += 1;
        return None;
    }
    place.said += 1;
    Some(0)
}

fn human_line(record: &Record<'_>, wall: Wall, left_out: u32, colour: bool) -> String {
    let (paint, plain) = match (colour, record.level()) {
        (false, _) | (true, Level::Info) => ("", ""),
        (true, Level::Error) => ("\x1b[31m", "\x1b[0m"),
        (true, Level::Warn) => ("\x1b[33m", "\x1b[0m"),
        (true, _) => ("\x1b[2m", "\x1b[0m"),
    };
    let time = timestamp(wall);
    let time = time.split('T').nth(1).unwrap_or(&time);
    let text = record.args().to_string();
    let text: String =
        redacted(&text).chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect();
    let more =
        if left_out > 0 { format!(" ({left_out} more like this were left out)") } else { String::new() };
    format!("{paint}{time} {:<5}{plain} {text}{more}\n", record.level().as_str().to_lowercase())
}

fn json_line(record: &Record<'_>, wall: Wall, left_out: u32) -> String {
    let mut object = serde_json::Map::new();
    object.insert("ts".into(), timestamp(wall).into());
    object.insert("level".into(), record.level().as_str().to_lowercase().into());
    let (name, value) = match record.target().strip_prefix(EVENT) {
        Some(event) => ("event", event),
        None => ("target", record.target()),
    };
    object.insert(name.into(), value.into());
    object.insert("text".into(), redacted(&record.args().to_string()).into());
    if let Some(thread) = crate::rt::current_thread_name() {
        object.insert("thread".into(), thread.into());
    }
    if left_out > 0 {
        object.insert("left_out".into(), left_out.into());
    }
    let mut line = serde_json::Value::Object(object).to_string();
    line.push('\n');
    line
}

/// RFC 3339 in UTC with milliseconds.
fn timestamp(wall: Wall) -> String {
    match jiff::Timestamp::from_microsecond(wall.as_micros()) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => wall.as_micros().to_string(),
    }
}

/// The text without query strings, bearer tokens and passwords in addresses. Nothing should put them
/// there; this is the second line.
fn redacted(text: &str) -> Cow<'_, str> {
    const GONE: &str = "[redacted]";
    let suspicious =
        text.contains('?') || text.contains("://") || text.to_ascii_lowercase().contains("bearer ");
    if !suspicious {
        return Cow::Borrowed(text);
    }
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ')' | '>' | ',');
    let mut words: Vec<String> = Vec::new();
    let mut after_bearer = false;
    for word in text.split_inclusive(ends) {
        let mut word = word.to_owned();
        let core = word.trim_end_matches(ends).len();
        if after_bearer && core > 0 {
            word.replace_range(..core, GONE);
        }
        after_bearer =
            word[..].trim_end_matches(ends).eq_ignore_ascii_case("bearer") || after_bearer && core == 0;
        if let Some(at) = word.find('?')
            && word[at..].contains('=')
        {
            let end = word.trim_end_matches(ends).len();
            word.replace_range(at + 1..end.max(at + 1), GONE);
        }
        if let Some(scheme) = word.find("://")
            && let Some(at) = word.rfind('@')
            && at > scheme
        {
            word.replace_range(scheme + 3..at, GONE);
        }
        words.push(word);
    }
    Cow::Owned(words.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_taken_out() {
        for (text, told) in [
            ("GET /v1/ws?token=abc 101", "GET /v1/ws?[redacted] 101"),
            ("ready? yes", "ready? yes"),
            ("Authorization: Bearer abc.def, sent", "Authorization: Bearer [redacted], sent"),
            ("store postgres://me:pw@db/x is away", "store postgres://[redacted]@db/x is away"),
            ("\"https://a/b?k=v\"", "\"https://a/b?[redacted]\""),
            ("plain", "plain"),
        ] {
            assert_eq!(redacted(text), told);
        }
    }

    #[test]
    fn a_place_that_repeats_itself_is_silenced_and_then_counted() {
        let at = |secs| Moment::ZERO + Duration::from_secs(secs);
        let mut place = Place { since: at(0), said: 0, left_out: 0 };
        let said = (0..100).filter(|_| admit(&mut place, at(1)).is_some()).count();
        assert_eq!(said, 20);
        assert_eq!(admit(&mut place, at(9)), None);
        assert_eq!(admit(&mut place, at(10)), Some(81));
        assert_eq!(admit(&mut place, at(11)), Some(0));
    }

    #[test]
    fn a_json_line_has_its_event() {
        let record = Record::builder()
            .level(Level::Info)
            .target("towpath/listening")
            .args(format_args!("a \"line\"\nof text"))
            .build();
        let line = json_line(&record, Wall::from_millis(1_500), 3);
        let value: serde_json::Value = serde_json::from_str(&line).expect("one JSON object");
        assert_eq!(value["ts"], "1970-01-01T00:00:01.500Z");
        assert_eq!(value["event"], "listening");
        assert_eq!(value["text"], "a \"line\"\nof text");
        assert_eq!(value["left_out"], 3);
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn a_line_for_people_is_short_and_harmless() {
        let args = format_args!("hello \x1b[31m");
        let record = Record::builder().level(Level::Warn).target("towpath").args(args).build();
        assert_eq!(
            human_line(&record, Wall::from_millis(0), 0, false),
            "00:00:00.000Z warn  hello \u{fffd}[31m\n"
        );
    }
}
