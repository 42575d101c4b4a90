//! The walls of ARCHITECTURE.md, held by reading the source.
//!
//! Invariant: every rule has a planted breach below that it must find, and every exception is in
//! [`ALLOWED`] with its reason and is still needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What a rule lets pass, where, and why. An exception nobody needs any more is itself a breach.
const ALLOWED: &[Allowed] = &[Allowed {
    rule: "layers",
    file: "src/bus/postgres.rs",
    text: "crate::store::",
    why: "the bus and the stores speak to one PostgreSQL, which is dialed, and whose errors are read, in one way",
}];

struct Allowed {
    rule: &'static str,
    /// The file the exception is for.
    file: &'static str,
    /// Part of the line it is for.
    text: &'static str,
    #[allow(dead_code, reason = "the reader of the table is who it is for")]
    why: &'static str,
}

/// A rule over single lines of Rust code, comments and strings taken out.
struct Rule {
    name: &'static str,
    /// Where it holds: any of these path prefixes…
    within: &'static [&'static str],
    /// …except under these.
    except: &'static [&'static str],
    /// Words that may not be there (whole identifiers or paths).
    words: &'static [&'static str],
    /// Whether `#[cfg(test)]` modules and `tests.rs` files are held to it as well.
    tests_too: bool,
}

const RULES: &[Rule] = &[
    Rule {
        name: "only rt has threads",
        within: &["src/"],
        except: &["src/rt/"],
        words: &["std::thread", "thread::spawn", "thread::Builder", "thread::scope"],
        tests_too: false,
    },
    Rule {
        name: "only rt reads clocks",
        within: &["src/"],
        except: &["src/rt/"],
        words: &["Instant::now", "SystemTime", "std::time::Instant", "Timestamp::now", "Zoned::now"],
        tests_too: false,
    },
    Rule {
        name: "only rt names a channel's timers",
        within: &["src/"],
        except: &["src/rt/"],
        words: &["crossbeam_channel::after", "crossbeam_channel::tick", "crossbeam_channel::at"],
        tests_too: false,
    },
    Rule {
        name: "only worker.rs selects",
        within: &["src/"],
        except: &["src/rt/", "src/engine/worker.rs"],
        words: &["select!", ".select()", "Select::new", "Select::new_biased"],
        tests_too: false,
    },
    Rule {
        name: "only rt has locks",
        within: &["src/"],
        except: &["src/rt/"],
        words: &["Mutex", "RwLock", "Condvar", "parking_lot", "ReentrantLock"],
        tests_too: false,
    },
    Rule {
        name: "every channel has a bound",
        within: &["src/", "tests/", "examples/"],
        except: &[],
        words: &["crossbeam_channel::unbounded", "unbounded", "mpsc::channel"],
        tests_too: true,
    },
    Rule {
        name: "state is pure",
        within: &["src/state/"],
        except: &[],
        words: &[
            "HashMap",
            "HashSet",
            "RandomState",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "ToSocketAddrs",
            "std::fs",
            "std::env",
            "std::io",
            "std::process",
            "log",
            "getrandom",
            "new_v4",
            "now_v7",
            "Rt",
            "mio",
            "rusqlite",
        ],
        tests_too: false,
    },
    Rule {
        name: "codec does no I/O",
        within: &["src/codec/"],
        except: &[],
        words: &["std::net", "std::fs", "std::env", "std::process", "TcpStream", "mio", "Rt"],
        tests_too: false,
    },
    Rule {
        name: "peers' input never panics",
        within: &["src/codec/", "src/wire/"],
        except: &[],
        words: &["panic!", "unreachable!", "assert!", "assert_eq!"],
        tests_too: false,
    },
    Rule {
        name: "what must hold says why",
        within: &["src/"],
        except: &[],
        words: &[".unwrap()", ".unwrap_unchecked()"],
        tests_too: false,
    },
    Rule {
        name: "nothing is left to do",
        within: &["src/", "tests/", "examples/"],
        except: &[],
        words: &["todo!", "unimplemented!", "dbg!"],
        tests_too: true,
    },
    Rule {
        name: "no test is ignored",
        within: &["src/", "tests/", "examples/"],
        except: &[],
        words: &["#[ignore", "#![ignore"],
        tests_too: true,
    },
    Rule {
        name: "what was not run is heard past the capture (effort::not_run)",
        within: &["tests/it/"],
        except: &[],
        words: &["eprintln!"],
        tests_too: true,
    },
    Rule {
        name: "unsafe code stays out",
        within: &["src/", "tests/", "examples/"],
        except: &[],
        words: &["unsafe"],
        tests_too: true,
    },
];

/// From the bottom up; a module may name those below it, itself, `rt` (which is what everything
/// that runs stands on) and what [`FREE`] lists.
const LAYERS: &[&[&str]] = &[
    &["state"],
    &["codec"],
    &["rt", "wire", "store", "bus", "spool"],
    &["engine"],
    &["front", "service", "client"],
    &["daemon"],
    &["cli"],
];

/// Modules without a layer, and the lowest layer that may name them.
const FREE: &[(&str, usize)] = &[("error", 0), ("metrics", 2), ("config", 5)];

/// Re-exports of the crate's root that may be named as `crate::Error`.
const ROOT: &[&str] = &["Code", "Error", "Result"];

/// What stands behind a trait: named only where things are put together.
const IMPLEMENTATIONS: &[&str] =
    &["store::sqlite", "store::postgres", "wire::poll", "bus::local", "bus::postgres"];
const PUT_TOGETHER: &[&str] = &["src/daemon", "src/lib.rs", "src/engine/builder.rs", "src/testing/"];

const TOP_FOLDERS: &[&str] = &["src", "tests", "examples", "docs", ".ci"];
const BAD_NAMES: &[&str] =
    &["utils", "util", "common", "manager", "managers", "helpers", "helper", "types", "core"];

#[derive(Debug)]
struct Breach {
    rule: &'static str,
    file: String,
    line: usize,
    text: String,
}

#[test]
fn the_source_keeps_within_its_walls() {
    let (left, unused) = excused(check(Path::new(env!("CARGO_MANIFEST_DIR"))));
    let told: Vec<String> =
        left.iter().map(|b| format!("{}:{}: {}: {}", b.file, b.line, b.rule, b.text.trim())).collect();
    assert!(told.is_empty(), "{} breaches\n{}", told.len(), told.join("\n"));
    assert!(unused.is_empty(), "exceptions nobody needs any more: {unused:?}");
}

#[test]
fn every_rule_finds_its_planted_breach() {
    let lines = |s: &str| s.replace('|', "\n");
    // (rule, file, contents). `|` is a line break.
    let planted = [
        ("only rt has threads", "src/engine/a.rs", "fn f() { std::thread::spawn(|| {}); }"),
        ("only rt reads clocks", "src/wire/a.rs", "use std::time::Instant; fn f() { Instant::now(); }"),
        ("only rt reads clocks", "src/front/a.rs", "fn f() { std::time::SystemTime::now(); }"),
        ("only rt names a channel's timers", "src/bus/a.rs", "fn f() { crossbeam_channel::after(d); }"),
        ("only worker.rs selects", "src/engine/a.rs", "fn f() { let s = rt.select(); }"),
        ("only worker.rs selects", "src/client/a.rs", "fn f() { crossbeam_channel::select! {} }"),
        ("only rt has locks", "src/store/a.rs", "use parking_lot::Mutex;"),
        ("every channel has a bound", "src/rt/a.rs", "fn f() { crossbeam_channel::unbounded::<u8>(); }"),
        (
            "every channel has a bound",
            "tests/it/a.rs",
            "use std::sync::mpsc; fn f() { mpsc::channel::<u8>(); }",
        ),
        ("state is pure", "src/state/a.rs", "use std::collections::HashMap;"),
        ("state is pure", "src/state/a.rs", "fn f() { log::info!(\"\"); }"),
        ("codec does no I/O", "src/codec/a.rs", "use std::net::TcpStream;"),
        ("peers' input never panics", "src/wire/a.rs", "fn f() { unreachable!() }"),
        ("what must hold says why", "src/front/a.rs", "fn f() { g().unwrap(); }"),
        (
            "no send while a lock is held",
            "src/engine/a.rs",
            "fn f() { let mut held = lock.lock();|    tx.try_send(held.pop());|}",
        ),
        ("no send while a lock is held", "src/bus/a.rs", "fn f() { shared.lock().sender.send(1); }"),
        ("promise", "src/engine/a.rs", "pub fn f() {}"),
        ("nothing is left to do", "src/cli/a.rs", "#[cfg(test)]|mod tests {|    fn f() { todo!() }|}"),
        ("no test is ignored", "tests/it/a.rs", "#[test]|#[ignore = \"slow\"]|fn f() {}"),
        (
            "what was not run is heard past the capture (effort::not_run)",
            "tests/it/a.rs",
            "fn f() { eprintln!(\"skipped\"); }",
        ),
        ("unsafe code stays out", "src/rt/a.rs", "unsafe fn f() {}"),
        ("layers", "src/state/a.rs", "use crate::codec::json;"),
        ("layers", "src/codec/a.rs", "use crate::{error::Code, rt::Rt};"),
        ("layers", "src/wire/a.rs", "use crate::store::Stores;"),
        ("layers", "src/engine/a.rs", "use crate::front::Router;"),
        ("layers", "src/engine/a.rs", "use crate::{|    rt::Rt,|    daemon::Daemon,|};"),
        ("layers", "src/front/a.rs", "fn f(c: &crate::config::Config) {}"),
        ("layers", "src/daemon.rs", "use crate::cli;"),
        ("layers", "src/store/a.rs", "use crate::Engine;"),
        ("layers", "src/odd/a.rs", "pub fn f() {}"),
        ("implementations", "src/front/a.rs", "use crate::store::sqlite::Sqlite;"),
        ("implementations", "src/engine/a.rs", "use crate::bus::{self, local::LocalBus};"),
        ("top folders", "helpful/a.txt", "x"),
        ("names", "src/wire/utils.rs", "pub fn f() {}"),
        ("names", "tests/it/common/mod.rs", "pub fn f() {}"),
        ("places", "docs/a.md", concat!("see /wo", "rk/main")),
        ("places", "src/lib.rs", concat!("//! see https://pypi", ".org/x")),
    ];
    for (rule, file, contents) in planted {
        let tree = tempfile::tempdir().expect("a temporary folder");
        let file_path = tree.path().join(file);
        fs::create_dir_all(file_path.parent().expect("a folder")).expect("folder made");
        fs::write(&file_path, lines(contents)).expect("file written");
        let found = check(tree.path());
        assert!(
            found.iter().any(|b| b.rule == rule && file.starts_with(&b.file)),
            "`{rule}` did not find its breach in {file}; found {found:?}"
        );
    }
}

#[test]
fn what_is_allowed_is_not_reported() {
    let innocent = [
        ("src/rt/real.rs", "use std::thread; fn f() { std::thread::spawn(|| std::time::Instant::now()); }"),
        ("src/rt/lock.rs", "pub struct Lock<T>(parking_lot::Mutex<T>);"),
        ("src/engine/worker.rs", "fn f(rt: &crate::rt::Rt) { let s = rt.select(); }"),
        (
            "src/state/time.rs",
            "//! Never `std::thread`, `HashMap` or /* `Mutex` */.\nconst WHY: &str = \"todo!\";",
        ),
        (
            "src/state/catalogue.rs",
            "use crate::state::time::Moment;\nuse crate::error::Code;\nuse super::time;",
        ),
        ("src/engine/streams.rs", "use crate::{Error, rt::Rt, store::StreamStore, wire};"),
        ("src/engine/a.rs", "#[cfg(test)]\nmod tests {\n    fn f() { std::thread::yield_now(); }\n}"),
        ("src/store/mod.rs", "pub mod sqlite;"),
        ("src/store/sqlite.rs", "use super::StoreError;\nuse crate::store::sqlite::schema;"),
        ("src/daemon.rs", "use crate::store::sqlite::Sqlite; use crate::config::Config;"),
        (
            "src/bus/held.rs",
            "fn f() {\n    let tx = {\n        let held = a.lock();\n        held.clone()\n    };\n    tx.send(1);\n    let b = c.lock();\n    drop(b);\n    tx.send(2);\n}",
        ),
        ("src/wire/a.rs", "fn f<'a>(x: &'a str) -> char { if x == \"\\\"\" { '\"' } else { 'x' } } // Mutex"),
    ];
    let tree = tempfile::tempdir().expect("a temporary folder");
    for (file, contents) in innocent {
        let file = tree.path().join(file);
        fs::create_dir_all(file.parent().expect("a folder")).expect("folder made");
        let promise = if contents.starts_with("//!") { "" } else { "//! What it is.\n" };
        fs::write(file, format!("{promise}{contents}")).expect("file written");
    }
    let found = check(tree.path());
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn no_async_runtime_without_the_feature_that_names_it() {
    let out = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--offline", "-e", "normal", "--no-default-features", "--prefix", "none"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8_lossy(&out.stdout);
    assert!(
        tree.lines().any(|l| l.starts_with("crossbeam-channel")),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let runtimes: Vec<&str> = tree
        .lines()
        .filter(|l| ["tokio ", "async-std ", "smol ", "futures-executor "].iter().any(|r| l.starts_with(r)))
        .collect();
    assert!(runtimes.is_empty(), "{runtimes:?}");
}

/// The breaches no exception covers, and the exceptions that cover none.
fn excused(breaches: Vec<Breach>) -> (Vec<Breach>, Vec<String>) {
    let covers = |a: &Allowed, b: &Breach| a.rule == b.rule && a.file == b.file && b.text.contains(a.text);
    let unused = ALLOWED
        .iter()
        .filter(|a| !breaches.iter().any(|b| covers(a, b)))
        .map(|a| format!("{} in {}", a.rule, a.file))
        .collect();
    (breaches.into_iter().filter(|b| !ALLOWED.iter().any(|a| covers(a, b))).collect(), unused)
}

fn check(root: &Path) -> Vec<Breach> {
    let mut found = Vec::new();
    check_top_folders(root, &mut found);
    for path in files(root) {
        let file = path.strip_prefix(root).expect("found under it").to_string_lossy().into_owned();
        check_name(&file, &mut found);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        check_places(&file, &text, &mut found);
        if file.ends_with(".rs") {
            let code = Code::read(&file, &text);
            check_words(&code, &mut found);
            check_promise(&file, &text, &mut found);
            check_locks(&code, &mut found);
            if file.starts_with("src/") {
                check_layers(&code, &mut found);
            }
        }
    }
    found
}

/// Every file that a clone would have (near enough: what .gitignore names is left out).
fn files(root: &Path) -> Vec<PathBuf> {
    const LEFT_OUT: &[&str] =
        &["target", "node_modules", ".git", "towpath-data", "corpus", "artifacts", "Cargo.lock"];
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<_> = fs::read_dir(folder).expect("a readable folder").flatten().collect();
        entries.sort_by_key(fs::DirEntry::path);
        for entry in entries {
            if LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found
}

fn check_top_folders(root: &Path, found: &mut Vec<Breach>) {
    for entry in fs::read_dir(root).expect("a readable folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours =
            TOP_FOLDERS.contains(&name.as_str()) || [".git", "target", "towpath-data"].contains(&&*name);
        if entry.path().is_dir() && !ours {
            let text = format!("the top level has {TOP_FOLDERS:?} and nothing else");
            found.push(Breach { rule: "top folders", file: name, line: 0, text });
        }
    }
}

fn check_name(file: &str, found: &mut Vec<Breach>) {
    let bad = Path::new(file)
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .find(|part| BAD_NAMES.contains(&part.trim_end_matches(".rs")));
    if let Some(part) = bad {
        let text = format!("`{part}` says nothing: ask what it is responsible for and call it that");
        found.push(Breach { rule: "names", file: file.to_owned(), line: 0, text });
    }
}

/// Paths and hosts that hold on one machine only.
fn check_places(file: &str, text: &str, found: &mut Vec<Breach>) {
    // Put together here so that this file does not contain them.
    let places = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/home", "/user"),
        concat!("pypi", ".org"),
        concat!("registry.npmjs", ".org"),
        concat!("index.crates", ".io"),
        concat!("static.crates", ".io"),
        concat!("deb.debian", ".org"),
    ];
    for (index, line) in text.lines().enumerate() {
        if let Some(place) = places.iter().find(|place| line.contains(*place)) {
            let text = format!("`{place}` is not on the reader's machine");
            found.push(Breach { rule: "places", file: file.to_owned(), line: index + 1, text });
        }
    }
}

fn check_words(code: &Code, found: &mut Vec<Breach>) {
    for rule in RULES {
        let under = |places: &[&str]| places.iter().any(|place| code.file.starts_with(place));
        if !under(rule.within) || under(rule.except) {
            continue;
        }
        for (number, line, in_test) in code.lines() {
            if in_test && !rule.tests_too {
                continue;
            }
            if rule.words.iter().any(|word| has_word(line, word)) {
                found.push(Breach {
                    rule: rule.name,
                    file: code.file.clone(),
                    line: number,
                    text: line.to_owned(),
                });
            }
        }
    }
}

/// A file opens with what it is and what holds in it.
fn check_promise(file: &str, text: &str, found: &mut Vec<Breach>) {
    // Tests are of the file they stand beside.
    if !file.ends_with("/tests.rs") && !text.starts_with("//!") {
        let text = "a file opens with its promise: `//!`, what it is, what always holds".to_owned();
        found.push(Breach { rule: "promise", file: file.to_owned(), line: 1, text });
    }
}

/// What may block or hand something to another thread.
const SENDS: &[&str] = &[
    ".send(",
    ".try_send(",
    ".send_deadline(",
    ".recv(",
    ".recv_deadline(",
    ".try_data(",
    ".data(",
    ".control(",
    ".publish(",
    ".join(",
    ".write_all(",
    ".flush(",
    ".sync_all(",
];

/// No send and no I/O under a guard: neither behind it in its line, nor below it in its block. What the
/// terminal's own locks guard is none of ours.
fn check_locks(code: &Code, found: &mut Vec<Breach>) {
    if !code.file.starts_with("src/") {
        return;
    }
    let depth = |line: &str| line.len() - line.trim_start().len();
    let sends = |text: &str| SENDS.iter().any(|send| text.contains(send));
    let lines: Vec<_> = code.lines().collect();
    for (at, (number, line, in_test)) in lines.iter().enumerate() {
        let Some((before, after)) = line.split_once(".lock()") else { continue };
        if *in_test || before.ends_with("stderr()") || before.ends_with("stdout()") {
            continue;
        }
        let guard = line.split_once("let ").filter(|_| after.trim() == ";" || after.starts_with(";"));
        let guard = guard.and_then(|(_, rest)| rest.trim_start_matches("mut ").split([' ', ':']).next());
        let breach = match guard {
            None => sends(after).then_some(*number),
            Some(name) => lines[at + 1..]
                .iter()
                .take_while(|(_, below, _)| below.trim().is_empty() || depth(below) >= depth(line).max(4))
                .take_while(|(_, below, _)| !below.contains(&format!("drop({name})")))
                .find(|(_, below, _)| sends(below))
                .map(|(number, _, _)| *number),
        };
        if let Some(line) = breach {
            let text = lines[line - 1].1.to_owned();
            found.push(Breach { rule: "no send while a lock is held", file: code.file.clone(), line, text });
        }
    }
}

fn check_layers(code: &Code, found: &mut Vec<Breach>) {
    let own = code.file["src/".len()..].split(['/', '.']).next().expect("split gives one").to_owned();
    // These put everything together, or stand outside of it.
    let free_to_name = ["lib", "main", "testing"].contains(&own.as_str());
    let own_rank = rank(&own);
    if own_rank.is_none() && !free_to_name && !FREE.iter().any(|(name, _)| *name == own) {
        let text = format!("`{own}` has no layer: see LAYERS in tests/it/tidy.rs");
        found.push(Breach { rule: "layers", file: code.file.clone(), line: 0, text });
        return;
    }
    let mut told = BTreeSet::new();
    for (number, path, in_test) in code.crate_paths() {
        let first = path.split("::").next().unwrap_or_default();
        let implementation = IMPLEMENTATIONS.iter().find(|i| {
            has_prefix(&path, i) && !code.file.starts_with(&format!("src/{}", i.replace("::", "/")))
        });
        if let Some(implementation) = implementation
            && !in_test
            && !PUT_TOGETHER.iter().any(|place| code.file.starts_with(place))
            && told.insert((number, *implementation))
        {
            let text = format!("`{implementation}` is named only where things are put together");
            found.push(Breach { rule: "implementations", file: code.file.clone(), line: number, text });
        }
        if free_to_name || in_test || may_name(own_rank, &own, first) {
            continue;
        }
        let text = format!("`{own}` may not name `crate::{path}`");
        found.push(Breach { rule: "layers", file: code.file.clone(), line: number, text });
    }
}

fn rank(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn may_name(own_rank: Option<usize>, own: &str, named: &str) -> bool {
    if named == own || ROOT.contains(&named) || ["mark", "planted"].contains(&named) {
        return true;
    }
    if let Some((_, lowest)) = FREE.iter().find(|(name, _)| *name == named) {
        // Free modules may name one another downwards and `error`.
        return own_rank.is_none_or(|own| own >= *lowest);
    }
    match (own_rank, rank(named)) {
        (Some(_), None) => false,
        (Some(own), Some(other)) => other < own || named == "rt" && own >= 2,
        // A module without a layer stands on the rules and the runtime.
        (None, other) => other.is_some_and(|other| other == 0 || named == "rt"),
    }
}

/// Whether `path` is `prefix` or goes on from it.
fn has_prefix(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Whether `word` stands in `line` on its own, not as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let starts_free = !word.starts_with(name) || !before.is_some_and(name);
        let ends_free = !word.ends_with(name) || !after.is_some_and(name);
        starts_free && ends_free
    })
}

/// A Rust file without its comments and the insides of its strings.
struct Code {
    file: String,
    text: String,
    /// For each line, whether it is part of a test.
    in_test: Vec<bool>,
}

impl Code {
    fn read(file: &str, text: &str) -> Code {
        let text = bare(text);
        let whole = file.starts_with("tests/") || file.ends_with("/tests.rs") || file.contains("/tests/");
        let mut in_test = Vec::new();
        let mut inside = false;
        let mut armed = false;
        for line in text.lines() {
            let opens = armed && line.starts_with("mod ") && line.trim_end().ends_with('{');
            armed = line.trim() == "#[cfg(test)]" || armed && line.starts_with("#[");
            inside |= opens;
            in_test.push(whole || inside);
            if line.starts_with('}') {
                inside = false;
            }
        }
        Code { file: file.to_owned(), text, in_test }
    }

    fn lines(&self) -> impl Iterator<Item = (usize, &str, bool)> {
        self.text.lines().zip(&self.in_test).enumerate().map(|(i, (line, test))| (i + 1, line, *test))
    }

    /// Every path that starts at `crate::`, with braces spread out, and the line it starts on.
    fn crate_paths(&self) -> Vec<(usize, String, bool)> {
        let mut found = Vec::new();
        for (at, _) in self.text.match_indices("crate::") {
            // `$crate::` in a macro is for whoever uses it.
            if self.text[..at].ends_with(['$', '_']) {
                continue;
            }
            let line = self.text[..at].matches('\n').count();
            let mut paths = Vec::new();
            spread(&self.text[at + "crate::".len()..], "", &mut paths);
            found.extend(paths.into_iter().map(|path| (line + 1, path, self.in_test[line])));
        }
        found
    }
}

/// Reads one path, or a brace of them, off the front of `text`; answers how much it read.
fn spread(text: &str, prefix: &str, paths: &mut Vec<String>) -> usize {
    let join = |part: &str| if prefix.is_empty() { part.to_owned() } else { format!("{prefix}::{part}") };
    if let Some(list) = text.strip_prefix('{') {
        let mut at = 1;
        loop {
            let rest = &list[at - 1..];
            let skipped = rest.len() - rest.trim_start_matches([',', ' ', '\n', '\t']).len();
            at += skipped;
            match list[at - 1..].chars().next() {
                None | Some('}') => return at + 1,
                Some(_) => at += spread(&list[at - 1..], prefix, paths).max(1),
            }
        }
    }
    let name = text.len() - text.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_').len();
    let (first, rest) = text.split_at(name);
    match rest.strip_prefix("::") {
        Some(more) if more.starts_with(|c: char| c == '{' || c.is_alphanumeric() || c == '_') => {
            name + 2 + spread(more, &join(first), paths)
        }
        _ => {
            paths.push(join(first));
            // `name as other`
            name + rest.len()
                - rest.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_' || c == ' ').len()
        }
    }
}

/// Blanks comments and the insides of string and character literals; line breaks stay.
fn bare(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let blank = |out: &mut String, c: char| out.push(if c == '\n' { '\n' } else { ' ' });
    while at < chars.len() {
        let rest = &chars[at..];
        let skip = match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => block_comment(rest),
            ['"', ..] => quoted(rest),
            ['r', '"' | '#', ..] if at == 0 || !chars[at - 1].is_alphanumeric() && chars[at - 1] != '_' => {
                raw_string(rest)
            }
            ['\'', '\\', ..] => 2 + rest[2..].iter().skip(1).position(|c| *c == '\'').map_or(1, |p| p + 2),
            ['\'', _, '\'', ..] => 3,
            _ => 0,
        };
        for c in &rest[..skip] {
            blank(&mut out, *c);
        }
        if skip == 0 {
            out.push(rest[0]);
        }
        at += skip.max(1);
    }
    out
}

fn block_comment(rest: &[char]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at + 1 < rest.len() {
        match (rest[at], rest[at + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn quoted(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string(rest: &[char]) -> usize {
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    if rest.get(1 + hashes) != Some(&'"') {
        return 0; // a raw identifier
    }
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = 2 + hashes;
    rest[body..].windows(end.len()).position(|w| w == end).map_or(rest.len(), |p| body + p + end.len())
}
