//! The examples that end by themselves print what their first comment promises.
//!
//! A `text` block in an example's first comment is its output; `…` stands for any characters, and a line
//! that is only `…` for any lines. An example without one runs until it is stopped, and is only built.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::readme::matches;

/// How long an example may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What an example says it prints.
fn promised(source: &str) -> Option<String> {
    let comment: Vec<&str> = source.lines().map_while(|line| line.strip_prefix("//!")).collect();
    let begin = comment.iter().position(|line| line.trim() == "```text")? + 1;
    let length = comment[begin..].iter().position(|line| line.trim() == "```")?;
    let lines = comment[begin..begin + length].iter().map(|line| line.strip_prefix(' ').unwrap_or(line));
    Some(lines.collect::<Vec<_>>().join("\n"))
}

/// Builds all of them and answers the programs.
fn built() -> Vec<PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--examples", "--message-format", "json"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "building the examples: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["kind"][0] == "example")
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect()
}

/// Runs a program to its end; what it printed.
fn printed(program: &Path) -> String {
    let mut child = Command::new(program)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the example starts");
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().expect("it can be waited for").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("it was still there");
            panic!("{} did not end within {PATIENCE:?}", program.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().expect("it has ended");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {}\n{said}{errors}", program.display(), output.status);
    said.into_owned()
}

#[test]
fn examples_print_what_their_first_comment_promises() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let (mut ran, mut only_built) = (Vec::new(), Vec::new());
    for program in built() {
        let name = program.file_name().expect("a program has a name").to_string_lossy().into_owned();
        let source = std::fs::read_to_string(folder.join(format!("{name}.rs"))).expect("its source");
        let Some(promised) = promised(&source) else {
            only_built.push(name);
            continue;
        };
        let printed = printed(&program);
        assert!(matches(&promised, &printed), "{name} promised\n{promised}\nand printed\n{printed}");
        println!("{name} printed what it promises");
        ran.push(name);
    }
    println!("built, and not run because they go on until they are stopped: {}", only_built.join(", "));
    assert!(ran.len() >= 7, "only {ran:?} were run");
}

#[test]
fn the_race_that_was_found_is_found_again_by_the_command_it_prints() {
    let race = built().into_iter().find(|program| program.ends_with("find_a_race")).expect("an example");
    let first = printed(&race);
    let seed = first.split_once("SEED=").and_then(|(_, rest)| rest.split(' ').next()).expect("a command");
    let again = Command::new(&race).env("SEED", seed).output().expect("the example starts");
    let again = String::from_utf8_lossy(&again.stdout).into_owned();
    assert_eq!(again.lines().next(), first.lines().next(), "SEED={seed} plays the same race");
}

#[test]
fn an_example_without_a_text_block_promises_nothing() {
    assert_eq!(
        promised("//! It runs.\n//!\n//! ```text\n//! a\n//!  b\n//! ```\n"),
        Some("a\n b".to_owned())
    );
    assert_eq!(promised("//! It runs.\n\n//! ```text\n//! a\n//! ```\n"), None);
}
