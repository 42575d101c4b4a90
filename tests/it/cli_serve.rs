//! The daemon as a process: how it starts, how it is, how it stops.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use crate::process::{Daemon, run, told, towpath};

#[test]
fn it_says_where_it_listens_and_is_well() {
    let daemon = Daemon::start(&[]);
    assert_eq!(daemon.get("/healthz"), (200, r#"{"healthy":true,"reasons":[]}"#.to_owned()));
    assert_eq!(daemon.get("/readyz"), (200, r#"{"ready":true,"reasons":[]}"#.to_owned()));
    let (status, figures) = daemon.get("/metrics");
    assert!(status == 200 && figures.ends_with("# EOF\n"), "{figures}");
    let (_, described) = daemon.get("/openapi.json");
    let described: serde_json::Value = serde_json::from_str(&described).expect("JSON");
    assert!(described["paths"]["/readyz"]["get"].is_object(), "{described}");

    let asked = run(&["health", "--ready", "--url", &daemon.url]);
    assert_eq!(told(&asked), (0, "ok\n".to_owned()));
}

#[test]
fn sigterm_puts_everything_away_and_exits_with_0() {
    let daemon = Daemon::start(&[]);
    daemon.signal("TERM");
    let (exit, log) = daemon.wait();
    assert_eq!(exit, 0, "{log}");
    assert!(log.contains("draining") && log.contains("stopped"), "{log}");
}

#[test]
fn a_second_sigterm_does_not_wait_for_those_who_stay() {
    let mut daemon = Daemon::start_with(&[], |command| {
        command.env("TOWPATH_SERVER__DRAIN_WINDOW", "60s").env("TOWPATH_SERVER__SHUTDOWN_TOTAL", "60s");
    });
    // A request under way keeps its link open while the daemon drains.
    let mut staying = TcpStream::connect(daemon.address()).expect("it listens");
    staying.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n").expect("half a head is sent");
    let began = Instant::now();
    daemon.signal("TERM");
    daemon.wait_for_log("draining");
    daemon.signal("TERM");
    let data = std::mem::replace(&mut daemon.data, tempfile::tempdir().expect("a folder"));
    let (exit, log) = daemon.wait();
    drop(data);
    assert!(began.elapsed().as_secs() < 30, "it waited");
    // Without links it may have been done before the second signal came.
    assert!(exit == 3 || exit == 0, "{exit} {log}");
}

#[test]
fn a_taken_address_is_refused_with_its_reason() {
    let daemon = Daemon::start(&[]);
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path().to_str().expect("UTF-8");
    let (exit, text) = told(&run(&["serve", "--listen", daemon.address(), "--data", data]));
    assert_eq!(exit, 78, "{text}");
    assert!(text.contains(daemon.address()) && text.to_lowercase().contains("in use"), "{text}");
}

#[test]
fn a_data_directory_serves_one_daemon() {
    let daemon = Daemon::start(&[]);
    let data = daemon.data.path().to_str().expect("UTF-8");
    let (exit, text) = told(&run(&["serve", "--listen", "127.0.0.1:0", "--data", data]));
    assert_eq!(exit, 1, "{text}");
    assert!(text.contains(&format!("process {}", daemon.pid())), "{text}");
}

#[test]
fn a_data_directory_that_cannot_be_made_is_73() {
    let (exit, text) = told(&run(&["serve", "--listen", "127.0.0.1:0", "--data", "/proc/nowhere"]));
    assert_eq!(exit, 73, "{text}");
    assert!(text.contains("/proc/nowhere"), "{text}");
}

#[test]
fn sighup_reads_the_configuration_again_all_or_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("t.toml");
    std::fs::write(&file, "[log]\nlevel = \"info\"\n").expect("written");
    let daemon = Daemon::start(&["--config", file.to_str().expect("UTF-8")]);

    std::fs::write(&file, "[log]\nlevel = \"warn\"\nlvl = 1\n").expect("written");
    daemon.signal("HUP");
    let line = daemon.wait_for_log("stays as it was");
    assert!(line.contains("unknown key `log.lvl`"), "{line}");

    std::fs::write(&file, "[log]\nlevel = \"info\"\n[store]\nreaders = 3\n").expect("written");
    daemon.signal("HUP");
    let line = daemon.wait_for_log("read again");
    assert!(line.contains("need a restart: store.readers"), "{line}");
    assert_eq!(daemon.get("/healthz").0, 200);
}

#[test]
fn sigusr1_writes_down_what_is_going_on() {
    let daemon = Daemon::start(&[]);
    daemon.signal("USR1");
    let line = daemon.wait_for_log("\"event\":\"dump\"");
    let line: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
    let dump: serde_json::Value = serde_json::from_str(line["text"].as_str().expect("text")).expect("JSON");
    assert_eq!(dump["settings"]["server.listen"], "\"127.0.0.1:0\"");
}

#[test]
fn a_service_manager_is_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(crate::process::PATIENCE)).expect("a time-out");
    let heard = |wanted: &str| {
        let mut buffer = [0; 512];
        loop {
            let length = manager.recv(&mut buffer).unwrap_or_else(|error| panic!("no {wanted}: {error}"));
            if String::from_utf8_lossy(&buffer[..length]).contains(wanted) {
                return;
            }
        }
    };
    let daemon = Daemon::start_with(&[], |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    });
    heard("READY=1");
    heard("WATCHDOG=1");
    daemon.signal("HUP");
    heard("RELOADING=1");
    heard("READY=1");
    daemon.signal("TERM");
    heard("STOPPING=1");
    assert_eq!(daemon.wait().0, 0);
}

#[test]
fn the_version_is_one_line_and_as_json_says_what_it_was_built_from() {
    let (exit, text) = told(&run(&["--version"]));
    assert_eq!((exit, text), (0, format!("towpath {}\n", env!("CARGO_PKG_VERSION"))));
    let output = run(&["version", "--json"]);
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(version["features"], serde_json::json!(["jwt", "postgres"]), "tests run what users get");
    assert!(version["rustc"].as_str().is_some_and(|rustc| rustc.starts_with("rustc ")), "{version}");
}

#[test]
fn nobody_there_is_69_and_says_what_to_do() {
    let (exit, text) = told(&run(&["health", "--url", "http://127.0.0.1:1"]));
    assert_eq!(exit, 69);
    assert!(
        text.contains("cannot reach http://127.0.0.1:1/healthz") && text.contains("towpath serve"),
        "{text}"
    );
}

#[test]
fn a_reader_that_goes_away_is_no_trouble() {
    let mut child = towpath(&["config", "doc"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    child.wait().expect("it ends");
    assert!(!said.contains("panicked"), "{said}");
}
