//! From files, the environment and flags to a [`Config`], or to everything that is wrong with them.

use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::{Config, KEYS, Raw, SECTIONS};
use crate::{Code, Error};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A file, at a line and column counted from 1.
    File {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// The column, in characters.
        column: usize,
    },
    /// This variable of the environment.
    Environment(String),
    /// This flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// What, and what to do.
    pub text: String,
}

/// Everything that is wrong, in the order it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let gap = if index == 0 { "" } else { "\n" };
            write!(f, "{gap}{}: {}", problem.origin, problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Error {
        Error::new(Code::BadConfig, error.to_string())
    }
}

/// A setting given as a flag.
#[derive(Clone, Debug)]
pub struct Flag {
    /// `--listen`
    pub flag: &'static str,
    /// `server.listen`
    pub name: &'static str,
    /// As it was written.
    pub value: String,
}

/// What a configuration is read from. The environment is handed in, so that reading is a function.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A file's path and contents.
    pub file: Option<(PathBuf, String)>,
    /// The whole environment; what does not start with `TOWPATH_` and contain `__` is left alone.
    pub environment: Vec<(String, String)>,
    /// What was given by hand.
    pub flags: Vec<Flag>,
}

impl Config {
    /// Reads every source, the closest to the hand last, and checks that the settings agree.
    pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        let mut problems = Vec::new();
        if let Some((path, text)) = &sources.file {
            config.read_file(path, text, &mut problems);
        }
        config.read_environment(&sources.environment, &mut problems);
        for flag in &sources.flags {
            let raw = Raw::Text(flag.value.clone());
            config.set(flag.name, &raw, Origin::Flag(flag.flag), &mut problems);
        }
        // Contradictions between values that did not read would only confuse.
        if problems.is_empty() {
            for (name, text) in config.contradictions() {
                problems.push(Problem { origin: config.origin(name), text: format!("{name}: {text}") });
            }
        }
        if problems.is_empty() { Ok(config) } else { Err(ConfigError { problems }) }
    }

    fn read_file(&mut self, path: &Path, text: &str, problems: &mut Vec<Problem>) {
        let at = |offset: usize| {
            let (line, column) = line_and_column(text, offset);
            Origin::File { path: path.to_owned(), line, column }
        };
        let table = match DeTable::parse(text) {
            Ok(table) => table,
            Err(error) => {
                let origin = at(error.span().map_or(0, |span| span.start));
                problems.push(Problem { origin, text: error.message().to_owned() });
                return;
            }
        };
        for (section, value) in table.get_ref().iter() {
            let section_at = at(section.span().start);
            let name = section.get_ref();
            let DeValue::Table(keys) = value.get_ref() else {
                let text = format!("`{name}` is outside of every section{}", hint(name));
                problems.push(Problem { origin: section_at, text });
                continue;
            };
            if !SECTIONS.iter().any(|known| known.name == name.as_ref()) {
                let nearest = nearest(name, SECTIONS.iter().map(|s| s.name));
                let hint = nearest.map(|n| format!("; did you mean [{n}]?")).unwrap_or_default();
                problems
                    .push(Problem { origin: section_at, text: format!("unknown section [{name}]{hint}") });
                continue;
            }
            for (key, value) in keys.iter() {
                let dotted = format!("{name}.{}", key.get_ref());
                self.set(&dotted, &raw(value.get_ref()), at(key.span().start), problems);
            }
        }
        // The table is in the order of its keys; a reader goes from the top of the file to its end.
        problems.sort_by_key(|problem| match problem.origin {
            Origin::File { line, column, .. } => (line, column),
            _ => (0, 0),
        });
    }

    fn read_environment(&mut self, environment: &[(String, String)], problems: &mut Vec<Problem>) {
        for (variable, value) in environment {
            let Some((section, key)) =
                variable.strip_prefix("TOWPATH_").and_then(|rest| rest.split_once("__"))
            else {
                continue;
            };
            let name = format!("{section}.{key}").to_lowercase();
            let origin = Origin::Environment(variable.clone());
            self.set(&name, &Raw::Text(value.clone()), origin, problems);
        }
    }

    fn set(&mut self, name: &str, raw: &Raw, origin: Origin, problems: &mut Vec<Problem>) {
        match self.put(name, raw) {
            Some(Ok(())) => {
                let key = KEYS.iter().find(|key| key.name == name).expect("put knows the same names");
                self.origins.insert(key.name, origin);
            }
            Some(Err(text)) => problems.push(Problem { origin, text: format!("{name}: {text}") }),
            None => {
                problems.push(Problem { origin, text: format!("unknown key `{name}`{}", hint(name)) });
            }
        }
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(int) => match i64::from_str_radix(int.as_str(), int.radix()) {
            Ok(int) => Raw::Int(int),
            Err(_) => Raw::Other("a number too large"),
        },
        DeValue::Float(_) => Raw::Other("a fraction"),
        DeValue::Boolean(bool) => Raw::Bool(*bool),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Table(_) => Raw::Other("a table"),
    }
}

/// `; did you mean …?`, or nothing when nothing is near.
fn hint(name: &str) -> String {
    // The right key in the wrong section is nearer than any slip of the pen.
    let last = name.rsplit('.').next().unwrap_or(name);
    let elsewhere = KEYS.iter().map(|key| key.name).find(|known| known.rsplit('.').next() == Some(last));
    elsewhere
        .or_else(|| nearest(name, KEYS.iter().map(|key| key.name)))
        .map(|known| format!("; did you mean `{known}`?"))
        .unwrap_or_default()
}

/// The known name with the fewest changed letters, if it is near enough to be meant.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = |k: &&'a str| distance(name, k);
    known.min_by_key(near).filter(|k| near(k) <= 1 + name.chars().count() / 4)
}

/// How many letters must be changed, added or removed to get from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = corner + usize::from(from != *to);
            corner = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
