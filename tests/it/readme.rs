//! The command blocks of README.md and docs/ that are marked as runnable do what they promise.
//!
//! A block after a line `<!-- run -->` is run by bash against a fresh daemon, with `towpath` in its path and
//! `$TOWPATH_URL` set. If the next block is a `text` one, what was printed must match it line by line; `…`
//! stands for any characters, and a line that is only `…` for any lines.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use crate::process::{Daemon, program};

/// A block to run, and what it should print.
#[derive(Debug, PartialEq)]
struct Block {
    line: usize,
    script: String,
    printed: Option<String>,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    let mut armed = false;
    let mut expects = false;
    while let Some((at, line)) = lines.next() {
        if line.trim() == "<!-- run -->" {
            armed = true;
        } else if let Some(kind) = line.trim().strip_prefix("```") {
            let body: Vec<&str> =
                lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```").collect();
            if armed && kind == "sh" {
                found.push(Block { line: at + 1, script: body.join("\n"), printed: None });
                (armed, expects) = (false, true);
                continue;
            }
            if expects && kind == "text" {
                found.last_mut().expect("a block came before").printed = Some(body.join("\n"));
            }
            expects = false;
        } else if !line.trim().is_empty() {
            expects = expects && line.ends_with(':');
        }
    }
    found
}

/// Whether `found` is what `promised` says, `…` standing for anything.
pub(crate) fn matches(promised: &str, found: &str) -> bool {
    fn fits(promised: &str, found: &str) -> bool {
        match promised.split_once('…') {
            None => promised == found,
            Some((before, after)) => found.strip_prefix(before).is_some_and(|rest| {
                rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| fits(after, &rest[at..]))
            }),
        }
    }
    fits(promised.trim(), found.trim())
}

/// Runs a block to its end; how it ended, what it printed and what it complained about. What it left running in
/// the background, which a block that fails does, is over with it, and nobody waits for that to be silent.
fn played(mut bash: Command) -> (ExitStatus, String, String) {
    let file = || tempfile::tempfile().expect("a temporary file");
    let files = [file(), file()];
    let [stdout, stderr] = files.each_ref().map(|file| file.try_clone().expect("a second handle"));
    bash.stdin(Stdio::null()).stdout(stdout).stderr(stderr).process_group(0);
    let mut running = bash.spawn().expect("bash runs");
    let group = format!("-{}", running.id());
    let status = running.wait().expect("it can be waited for");
    // Nobody is left of most.
    let _ = Command::new("kill").args(["-s", "KILL", "--", &group]).stderr(Stdio::null()).status();
    let [printed, errors] = files.map(|mut file: File| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("it is read again");
        String::from_utf8_lossy(&bytes).into_owned()
    });
    (status, printed, errors)
}

#[test]
fn marked_blocks_do_what_they_promise() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let programs = tempfile::tempdir().expect("a temporary folder");
    std::os::unix::fs::symlink(program(), programs.path().join("towpath")).expect("linked");
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap_or_default());
    let mut pages = vec![root.join("README.md")];
    pages.extend(std::fs::read_dir(root.join("docs")).expect("docs/").flatten().map(|entry| entry.path()));
    let mut ran = 0;
    for page in pages.iter().filter(|page| page.extension().is_some_and(|ext| ext == "md")) {
        let text = std::fs::read_to_string(page).expect("a page");
        let blocks = blocks(&text);
        if blocks.is_empty() {
            continue;
        }
        // One daemon and one folder a page: later blocks build on earlier ones, as for a reader, and nobody
        // takes what another page left for his own.
        let daemon = Daemon::start(&[]);
        let folder = tempfile::tempdir().expect("a temporary folder");
        for block in blocks {
            let mut bash = Command::new("bash");
            bash.args(["-euo", "pipefail", "-c", &block.script]).current_dir(folder.path());
            bash.env("PATH", &path).env("TOWPATH_URL", &daemon.url);
            let (status, printed, errors) = played(bash);
            let place = format!("{}:{}", page.display(), block.line);
            assert!(status.success(), "{place}: {status}\n{printed}{errors}");
            if let Some(promised) = &block.printed {
                assert!(
                    matches(promised, &printed),
                    "{place} promised\n{promised}\nand printed\n{printed}{errors}"
                );
            }
            ran += 1;
        }
    }
    assert!(ran > 0, "no page has a block marked `<!-- run -->`");
}

#[test]
fn blocks_are_found_with_what_they_promise() {
    let text = "<!-- run -->\n```sh\necho a\n```\nprints:\n```text\na\n```\n```sh\nrm -rf /\n```\n<!-- run -->\n```sh\necho b\n```\nAnd then:\nmore\n```text\nnot b\n```\n";
    assert_eq!(
        blocks(text),
        [
            Block { line: 2, script: "echo a".into(), printed: Some("a".into()) },
            Block { line: 13, script: "echo b".into(), printed: None },
        ]
    );
    assert!(matches("a…c\n…\nz", "abc\nx\ny\nz\n"));
    assert!(!matches("a…c", "abcd"));
}
