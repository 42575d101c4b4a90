//! Tokens: made by one command, known to the daemon by their hash, asked for at every door.

use std::io::Write;
use std::process::Stdio;

use crate::process::{Daemon, run, told, towpath};

/// A token with its line for a file.
pub(crate) fn made(name: &str, role: &str) -> (String, String) {
    let output = run(&["token", "new", name, "--role", role]);
    assert!(output.status.success(), "{output:?}");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn get(daemon: &Daemon, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut request = agent.get(format!("{}{path}", daemon.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut answer = request.call().expect("the daemon answers");
    (answer.status().as_u16(), answer.body_mut().read_to_string().expect("text"))
}

#[test]
fn a_daemon_with_a_token_file_lets_in_who_holds_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tokens");
    let (token, line) = made("ops", "admin");
    assert!(!line.contains(&token), "the file must not hold the token");
    std::fs::write(&file, format!("# who\n{line}\n")).expect("written");
    let daemon = Daemon::start(&["--token-file", file.to_str().expect("UTF-8")]);

    assert_eq!(daemon.get("/healthz").0, 200, "health needs no token");
    let (status, problem) = daemon.get("/metrics");
    assert_eq!(status, 401);
    assert!(problem.contains("\"code\":"), "{problem}");
    let bearer = format!("Bearer {token}");
    assert_eq!(get(&daemon, "/metrics", &[("authorization", &bearer)]).0, 200);
    assert_eq!(
        get(&daemon, "/metrics", &[("authorization", "Bearer tpt_wrong-wrong-wrong-wrong-wrong-wrong")]).0,
        401
    );

    // A token that is taken out of the file is good until the file is read again.
    let (other, line) = made("other", "follower");
    std::fs::write(&file, format!("{line}\n")).expect("written");
    daemon.signal("HUP");
    daemon.wait_for_log("read again");
    assert_eq!(get(&daemon, "/metrics", &[("authorization", &bearer)]).0, 401);
    assert_eq!(get(&daemon, "/metrics", &[("authorization", &format!("Bearer {other}"))]).0, 200);

    // A broken file keeps what holds.
    std::fs::write(&file, "nonsense\n").expect("written");
    daemon.signal("HUP");
    let line = daemon.wait_for_log("stays as it was");
    assert!(line.contains("tokens:1: "), "{line}");
    assert_eq!(get(&daemon, "/metrics", &[("authorization", &format!("Bearer {other}"))]).0, 200);
}

#[test]
fn a_token_is_shown_nowhere() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tokens");
    let (token, line) = made("ops", "admin");
    std::fs::write(&file, format!("{line}\n")).expect("written");
    let daemon = Daemon::start(&["--token-file", file.to_str().expect("UTF-8"), "--log", "trace"]);
    let bearer = format!("Bearer {token}");
    let mut seen = String::new();
    for path in ["/metrics", "/openapi.json", "/nowhere", &format!("/metrics?ticket={token}")] {
        seen += &get(&daemon, path, &[("authorization", &bearer)]).1;
    }
    daemon.signal("USR1");
    seen += &daemon.wait_for_log("towpath/dump".trim_start_matches("towpath/"));
    daemon.signal("TERM");
    let (exit, log) = daemon.wait();
    assert_eq!(exit, 0);
    assert!(!seen.contains(&token) && !log.contains(&token), "{seen} {log}");
}

#[test]
fn the_hash_of_a_token_is_what_its_line_holds() {
    let (token, line) = made("ci", "producer");
    let mut command = towpath(&["token", "hash"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("piped").write_all(format!("{token}\n").as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    let hash = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(hash.starts_with("sha256:") && line.contains(&hash), "{hash} {line}");
}

#[test]
fn a_role_that_does_not_exist_is_refused_with_those_that_do() {
    let (exit, text) = told(&run(&["token", "new", "x", "--role", "king"]));
    assert_eq!(exit, 2);
    assert!(text.contains("admin, producer, follower, agent, pipe"), "{text}");
}

#[test]
fn the_dashboard_is_one_page_that_reaches_nothing_else() {
    let daemon = Daemon::start(&[]);
    let agent: ureq::Agent = ureq::Agent::config_builder().build().into();
    let mut page = agent.get(format!("{}/", daemon.url)).call().expect("a page");
    let policy =
        page.headers().get("content-security-policy").expect("a policy").to_str().expect("text").to_owned();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let page = page.body_mut().read_to_string().expect("text");
    for file in ["/dashboard.css", "/dashboard.js"] {
        assert!(page.contains(file));
        assert_eq!(daemon.get(file).0, 200);
    }
}

#[test]
fn a_loopback_daemon_is_not_reached_under_a_strangers_name() {
    let daemon = Daemon::start(&[]);
    assert_eq!(get(&daemon, "/metrics", &[("host", "evil.example.com")]).0, 421);
    assert_eq!(get(&daemon, "/metrics", &[("origin", "https://evil.example.com")]).0, 403);
}
