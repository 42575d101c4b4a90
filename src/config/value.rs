//! The kinds of value a setting can have: how each is read, and how it is written.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// A value before its kind is known: from a file with TOML's own kinds, from the environment or a
/// flag as text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    Text(String),
    Int(i64),
    Bool(bool),
    List(Vec<Raw>),
    /// A kind no setting has, by its name.
    Other(&'static str),
}

impl Raw {
    /// As it should appear in "… is not …".
    fn seen(&self) -> String {
        match self {
            Raw::Text(text) => format!("\"{text}\""),
            Raw::Int(int) => int.to_string(),
            Raw::Bool(bool) => bool.to_string(),
            Raw::List(_) => "a list".to_owned(),
            Raw::Other(kind) => (*kind).to_owned(),
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Raw::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// A kind of setting.
pub(super) trait Setting: Sized {
    /// What a reader of the manual should write.
    const KIND: &'static str;
    fn read(raw: &Raw) -> Result<Self, String>;
    /// As a TOML value that reads back the same. A secret is written as `"[redacted]"`.
    fn write(&self) -> String;
}

fn expected<T>(raw: &Raw, what: &str) -> Result<T, String> {
    Err(format!("{} is not {what}", raw.seen()))
}

fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl Setting for bool {
    const KIND: &'static str = "`true` or `false`";
    fn read(raw: &Raw) -> Result<bool, String> {
        match raw {
            Raw::Bool(bool) => Ok(*bool),
            Raw::Text(text) if text == "true" => Ok(true),
            Raw::Text(text) if text == "false" => Ok(false),
            _ => expected(raw, "true or false"),
        }
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for String {
    const KIND: &'static str = "text";
    fn read(raw: &Raw) -> Result<String, String> {
        match raw.text() {
            Some("") => Err("empty text has no meaning here".to_owned()),
            Some(text) => Ok(text.to_owned()),
            None => expected(raw, "text"),
        }
    }
    fn write(&self) -> String {
        quote(self)
    }
}

impl Setting for PathBuf {
    const KIND: &'static str = "a path";
    fn read(raw: &Raw) -> Result<PathBuf, String> {
        match raw.text() {
            Some("") | None => expected(raw, "a path"),
            Some(text) => Ok(PathBuf::from(text)),
        }
    }
    fn write(&self) -> String {
        quote(&self.to_string_lossy())
    }
}

impl Setting for u64 {
    const KIND: &'static str = "a whole number above 0";
    fn read(raw: &Raw) -> Result<u64, String> {
        let number = match raw {
            Raw::Int(int) => u64::try_from(*int).ok(),
            Raw::Text(text) => text.replace('_', "").parse().ok(),
            _ => None,
        };
        match number {
            Some(0) => Err("0 is never \"off\": write a number above 0".to_owned()),
            Some(number) => Ok(number),
            None => expected(raw, "a whole number above 0"),
        }
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for Vec<String> {
    const KIND: &'static str = "a list of texts (in the environment: separated by commas)";
    fn read(raw: &Raw) -> Result<Vec<String>, String> {
        match raw {
            Raw::List(items) => items.iter().map(String::read).collect(),
            Raw::Text(text) => {
                Ok(text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect())
            }
            _ => expected(raw, "a list of texts"),
        }
    }
    fn write(&self) -> String {
        format!("[{}]", self.iter().map(|t| quote(t)).collect::<Vec<_>>().join(", "))
    }
}

/// Units of time, largest first, in milliseconds. `min` and `m` are the same.
const SPANS: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Setting for Duration {
    const KIND: &'static str = "a time like `250ms`, `5s`, `10min`, `24h`";
    fn read(raw: &Raw) -> Result<Duration, String> {
        let Some(millis) = raw.text().and_then(|text| measured(text, SPANS)) else {
            return expected(raw, "a time like 250ms, 5s, 10min, 24h");
        };
        match millis {
            0 => Err("0 is never \"off\": write a time above 0".to_owned()),
            _ => Ok(Duration::from_millis(millis)),
        }
    }
    fn write(&self) -> String {
        quote(&in_units(u64::try_from(self.as_millis()).unwrap_or(u64::MAX), SPANS))
    }
}

/// A number of bytes, written like `64KiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// In bytes, for what is kept in memory.
    pub fn in_memory(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

const SIZES: &[(&str, u64)] =
    &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Setting for Size {
    const KIND: &'static str = "a size like `64KiB`, `1MiB`, `2GiB`";
    fn read(raw: &Raw) -> Result<Size, String> {
        match raw.text().and_then(|text| measured(text, SIZES)) {
            Some(0) => Err("0 is never \"off\": write a size above 0".to_owned()),
            Some(bytes) => Ok(Size(bytes)),
            None => expected(raw, "a size like 64KiB, 1MiB, 2GiB"),
        }
    }
    fn write(&self) -> String {
        quote(&in_units(self.0, SIZES))
    }
}

/// Reads `90s` or `1min30s`: whole numbers, each with its unit.
fn measured(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let mut total = 0u64;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let (_, worth) = units.iter().find(|(unit, _)| *unit == &rest[..letters])?;
        total = total.checked_add(number.checked_mul(*worth)?)?;
        rest = rest[letters..].trim_start();
    }
    Some(total)
}

fn in_units(amount: u64, units: &[(&str, u64)]) -> String {
    let (unit, worth) =
        units.iter().find(|(_, worth)| amount.is_multiple_of(*worth)).expect("the last unit is worth one");
    format!("{}{unit}", amount / worth)
}

/// A setting that can be turned off, with the word `off` and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrOff<T> {
    /// `"off"`.
    Off,
    /// A value.
    On(T),
}

impl<T> OrOff<T> {
    /// The value, if it is not off.
    pub fn on(&self) -> Option<&T> {
        match self {
            OrOff::Off => None,
            OrOff::On(value) => Some(value),
        }
    }
}

/// The word that turns a setting off.
const OFF: &str = "off";

macro_rules! or_off {
    ($($kind:ty: $text:literal;)*) => {$(
        impl Setting for OrOff<$kind> {
            const KIND: &'static str = concat!($text, ", or `\"off\"`");
            fn read(raw: &Raw) -> Result<Self, String> {
                match raw {
                    Raw::Text(text) if text == OFF => Ok(OrOff::Off),
                    _ => <$kind>::read(raw).map(OrOff::On).map_err(|text| format!("{text} (or \"off\")")),
                }
            }
            fn write(&self) -> String {
                self.on().map_or_else(|| quote(OFF), <$kind>::write)
            }
        }
    )*};
}
or_off! {
    Duration: "a time like `5s`, `10min`, `24h`";
    Size: "a size like `64KiB`, `1MiB`, `2GiB`";
    ListenAt: "an address like `127.0.0.1:7701` or `unix:/run/towpath.sock`";
    PathBuf: "a path";
    String: "text";
    u64: "a whole number above 0";
    WebAddress: "an address like `https://example.com/hook`";
}

/// An address of the web. Its user, its path and its query may hold secrets, so they do not print.
#[derive(Clone, PartialEq, Eq)]
pub struct WebAddress(String);

impl WebAddress {
    /// The whole of it, for whoever goes there.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for WebAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.write())
    }
}

impl Setting for WebAddress {
    const KIND: &'static str = "an address like `https://example.com/hook`";
    fn read(raw: &Raw) -> Result<WebAddress, String> {
        let host_of = |rest: &str| rest.split(['/', '?', '#']).next().is_some_and(|host| !host.is_empty());
        match raw.text() {
            Some(url)
                if url
                    .strip_prefix("https://")
                    .or_else(|| url.strip_prefix("http://"))
                    .is_some_and(host_of) =>
            {
                Ok(WebAddress(url.to_owned()))
            }
            // What was written may hold a secret and a slip in its first letters.
            _ => Err("not an address: write https://…".to_owned()),
        }
    }
    fn write(&self) -> String {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("https", &self.0));
        let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let host = host.rsplit('@').next().unwrap_or_default();
        quote(&format!("{scheme}://{host}{}", if path.len() > 1 { "/[redacted]" } else { path }))
    }
}

/// A number that towpath finds by itself unless told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrAuto {
    /// `"auto"`.
    Auto,
    /// This many.
    Number(u64),
}

impl OrAuto {
    /// The number given, or what `found` answers.
    pub fn unwrap_or_else(self, found: impl FnOnce() -> u64) -> u64 {
        match self {
            OrAuto::Auto => found(),
            OrAuto::Number(number) => number,
        }
    }
}

impl Setting for OrAuto {
    const KIND: &'static str = "a whole number above 0, or `\"auto\"`";
    fn read(raw: &Raw) -> Result<OrAuto, String> {
        match raw {
            Raw::Text(text) if text == "auto" => Ok(OrAuto::Auto),
            _ => u64::read(raw).map(OrAuto::Number).map_err(|text| format!("{text} (or \"auto\")")),
        }
    }
    fn write(&self) -> String {
        match self {
            OrAuto::Auto => quote("auto"),
            OrAuto::Number(number) => number.to_string(),
        }
    }
}

/// An address that others reach, or what towpath finds by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UrlOrAuto {
    /// `"auto"`.
    Auto,
    /// This one.
    At(String),
}

impl Setting for UrlOrAuto {
    const KIND: &'static str = "an address like `http://10.0.0.7:7701`, or `\"auto\"`";
    fn read(raw: &Raw) -> Result<UrlOrAuto, String> {
        match raw.text() {
            Some("auto") => Ok(UrlOrAuto::Auto),
            Some(url)
                if ["http://", "https://"]
                    .iter()
                    .any(|scheme| url.len() > scheme.len() && url.starts_with(scheme)) =>
            {
                Ok(UrlOrAuto::At(url.trim_end_matches('/').to_owned()))
            }
            _ => expected(raw, "an address like http://10.0.0.7:7701 (or \"auto\")"),
        }
    }
    fn write(&self) -> String {
        match self {
            UrlOrAuto::Auto => quote("auto"),
            UrlOrAuto::At(url) => quote(url),
        }
    }
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAt {
    /// An address and a port; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// A Unix socket at this path.
    Unix(PathBuf),
}

impl ListenAt {
    /// Whether only this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            ListenAt::Tcp(address) => address.ip().is_loopback(),
            ListenAt::Unix(_) => true,
        }
    }
}

impl fmt::Display for ListenAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAt::Tcp(address) => write!(f, "{address}"),
            ListenAt::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Setting for ListenAt {
    const KIND: &'static str = "an address like `127.0.0.1:7700`, `[::]:7700` or `unix:/run/towpath.sock`";
    fn read(raw: &Raw) -> Result<ListenAt, String> {
        let address = raw.text().and_then(|text| match text.strip_prefix("unix:") {
            Some("") => None,
            Some(path) => Some(ListenAt::Unix(PathBuf::from(path))),
            None => match text.strip_prefix("localhost:") {
                Some(port) => {
                    let port = port.parse().ok()?;
                    Some(ListenAt::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)))
                }
                None => text.parse().ok().map(ListenAt::Tcp),
            },
        });
        match address {
            Some(address) => Ok(address),
            None => expected(raw, "an address like 127.0.0.1:7700, [::]:7700 or unix:/run/towpath.sock"),
        }
    }
    fn write(&self) -> String {
        quote(&self.to_string())
    }
}

impl Setting for Vec<ListenAt> {
    const KIND: &'static str = "a list of addresses (in the environment: separated by commas)";
    fn read(raw: &Raw) -> Result<Vec<ListenAt>, String> {
        let texts = Vec::<String>::read(raw)?;
        texts.into_iter().map(|text| ListenAt::read(&Raw::Text(text))).collect()
    }
    fn write(&self) -> String {
        format!("[{}]", self.iter().map(Setting::write).collect::<Vec<_>>().join(", "))
    }
}

/// Which store holds the rows.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreAt {
    /// A file in the data directory.
    Sqlite,
    /// Nothing is kept: for tests and trials.
    Memory,
    /// A PostgreSQL server. The address may hold a password, so it does not print.
    Postgres(String),
}

impl fmt::Debug for StoreAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.write())
    }
}

impl Setting for StoreAt {
    const KIND: &'static str = "`\"sqlite\"` (a file in `store.data`), `\"memory\"`, or `\"postgres://…\"`";
    fn read(raw: &Raw) -> Result<StoreAt, String> {
        match raw.text() {
            Some("sqlite") => Ok(StoreAt::Sqlite),
            Some("memory") => Ok(StoreAt::Memory),
            Some(url) if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
                Ok(StoreAt::Postgres(url.to_owned()))
            }
            // What was written may be an address with a password and a slip in its first letters.
            _ => Err("not a store: write \"sqlite\", \"memory\" or \"postgres://…\"".to_owned()),
        }
    }
    fn write(&self) -> String {
        match self {
            StoreAt::Sqlite => quote("sqlite"),
            StoreAt::Memory => quote("memory"),
            StoreAt::Postgres(url) => quote(&without_password(url)),
        }
    }
}

/// The address with the password between `:` and `@` taken out, and the query with it.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
    let rest = rest.split('?').next().unwrap_or_default();
    match rest.rsplit_once('@') {
        None => format!("{scheme}://{rest}"),
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:[redacted]@{host}")
        }
    }
}

/// A setting that is one of a few words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$wdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$wdoc])* $variant,)* }

        impl Setting for $name {
            const KIND: &'static str = concat!("one of", $(" `\"", $word, "\"`",)*);
            fn read(raw: &Raw) -> Result<$name, String> {
                match raw.text() {
                    $(Some($word) => Ok($name::$variant),)*
                    _ => expected(raw, concat!("one of", $(" ", $word,)*)),
                }
            }
            fn write(&self) -> String {
                match self { $($name::$variant => quote($word),)* }
            }
        }
    };
}

words! {
    /// How much the daemon says.
    LogLevel {
        /// What needs somebody.
        Error = "error",
        /// What may need somebody.
        Warn = "warn",
        /// What happens rarely.
        Info = "info",
        /// What happens often.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

words! {
    /// How the daemon says it.
    LogFormat {
        /// For people on a terminal, JSON otherwise.
        Auto = "auto",
        /// Lines for people.
        Human = "human",
        /// One JSON object a line.
        Json = "json",
    }
}

words! {
    /// What a full spool does with something new.
    WhenFull {
        /// Refuses it.
        Refuse = "refuse",
        /// Throws the oldest out, and counts it.
        OldestOut = "oldest-out",
    }
}

words! {
    /// What the answer to a connection record means.
    Durability {
        /// It is in memory and will be written.
        Fast = "fast",
        /// It is on disk.
        SpoolFirst = "spool-first",
    }
}
