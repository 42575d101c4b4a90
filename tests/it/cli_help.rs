//! What `--help` says, held by snapshots: a change to it is a change users see.
//! `INSTA_UPDATE=always cargo test --test it cli_help` takes new ones.

use crate::process::run;

/// Every command, and the ones inside it.
const COMMANDS: &[&[&str]] = &[
    &[],
    &["backup"],
    &["bench"],
    &["completions"],
    &["config"],
    &["config", "check"],
    &["config", "doc"],
    &["config", "init"],
    &["config", "show"],
    &["connect"],
    &["connections"],
    &["connections", "export"],
    &["connections", "ls"],
    &["connections", "prune"],
    &["connections", "tail"],
    &["demo"],
    &["doctor"],
    &["follow"],
    &["forward"],
    &["health"],
    &["man"],
    &["metadata"],
    &["metadata", "get"],
    &["metadata", "set"],
    &["metadata", "watch"],
    &["move"],
    &["pipe"],
    &["pipe", "cut"],
    &["pipe", "kill"],
    &["pipe", "ls"],
    &["pipe", "show"],
    &["publish"],
    &["reload"],
    &["replicas"],
    &["river"],
    &["river", "schema"],
    &["river", "types"],
    &["serve"],
    &["spool"],
    &["spool", "export"],
    &["spool", "list"],
    &["spool", "repair"],
    &["spool", "status"],
    &["spool", "verify"],
    &["stream"],
    &["stream", "append"],
    &["stream", "create"],
    &["stream", "interrupt"],
    &["stream", "ls"],
    &["stream", "rm"],
    &["stream", "show"],
    &["token"],
    &["token", "hash"],
    &["token", "new"],
    &["top"],
    &["version"],
];

#[test]
fn help_says_what_the_snapshots_say() {
    for command in COMMANDS {
        let output = run(&[*command, &["--help"]].concat());
        assert!(output.status.success(), "{command:?}");
        let name = if command.is_empty() { "towpath".to_owned() } else { command.join("-") };
        insta::with_settings!({ prepend_module_to_snapshot => false, snapshot_path => "help" }, {
            insta::assert_snapshot!(name, String::from_utf8_lossy(&output.stdout));
        });
    }
}

#[test]
fn there_is_a_man_page_and_a_completion_for_every_command() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().to_str().expect("UTF-8");
    assert!(run(&["man", dir]).status.success());
    for command in COMMANDS {
        let page = [&["towpath"], *command].concat().join("-") + ".1";
        assert!(folder.path().join(&page).exists(), "no {page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]);
        assert!(String::from_utf8_lossy(&script.stdout).contains("completions"), "{shell}");
    }
}
