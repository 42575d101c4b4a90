//! Autobahn's suite plays against our WebSockets: here the cases that take seconds, in both roles; all of them with
//! `make autobahn`.

use std::path::Path;
use std::process::Command;

use crate::effort::not_run;
use crate::process::told;

/// What the script ends with when it could not play.
const SKIPPED: i32 = 75;

#[test]
fn websockets_conform_in_both_roles() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(root.join("tests/autobahn.sh"));
    // Framing, pings, reserved bits, opcodes, fragments, UTF-8 and closing; not what measures size and speed.
    command.env("CASES", "1.*,2.*,3.*,4.*,5.*,6.*,7.*,10.*").env("SKIP_EXIT", SKIPPED.to_string());
    let (exit, said) = told(&command.output().expect("bash runs"));
    if exit == SKIPPED {
        return not_run(said.trim());
    }
    assert_eq!(exit, 0, "{said}");
    for role in ["server", "client"] {
        let played = said.lines().find(|line| line.starts_with(role)).expect("a verdict for each role");
        assert!(played.contains("247 cases, 0 failed"), "{played}");
    }
}
