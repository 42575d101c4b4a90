//! Tells the program what it was built from: `towpath version --json`.

use std::process::Command;

fn main() {
    // Grows with every commit. Where it is not (an archive, a linked work tree), a path that does not
    // exist would build everything again each time.
    let log = ".git/logs/HEAD";
    println!("cargo::rerun-if-changed={}", if std::path::Path::new(log).exists() { log } else { "build.rs" });
    println!("cargo::rerun-if-env-changed=TOWPATH_COMMIT");
    let commit =
        std::env::var("TOWPATH_COMMIT").ok().or_else(|| said("git", &["rev-parse", "--short=12", "HEAD"]));
    if let Some(commit) = commit {
        println!("cargo::rustc-env=TOWPATH_COMMIT={commit}");
    }
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    if let Some(version) = said(&rustc, &["--version"]) {
        println!("cargo::rustc-env=TOWPATH_RUSTC={version}");
    }
}

/// What a program printed, if it could be run: a source archive has no commit, and that is fine.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}
