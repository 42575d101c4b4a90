//! `towpath top` and `towpath bench` against a daemon.

use crate::process::{Daemon, told, towpath};

fn with(daemon: &Daemon, arguments: &[&str]) -> (i32, String) {
    told(&towpath(arguments).env("TOWPATH_URL", &daemon.url).output().expect("runs"))
}

#[test]
fn top_prints_plain_text_where_there_is_no_terminal() {
    let daemon = Daemon::start(&[]);
    assert_eq!(with(&daemon, &["stream", "create", "chat/1"]).0, 0);
    let (exit, text) = with(&daemon, &["top", "--every", "1"]);
    assert_eq!(exit, 0, "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    for wanted in
        ["STREAM", "chat/1", "idle", "metadata flushes", "connection flushes", "sessions 0", "pipes 0"]
    {
        assert!(text.contains(wanted), "no {wanted:?} in\n{text}");
    }
    let (exit, text) = with(&daemon, &["top", "--every", "1", "--count", "2", "--json"]);
    assert_eq!(exit, 0, "{text}");
    let looks: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    assert_eq!(looks.len(), 2);
    assert_eq!(looks[1]["streams"][0]["name"], "chat/1");
    assert!(
        looks[1]["per_second"]["towpath_requests_total"].as_f64().is_some_and(|rate| rate > 0.0),
        "{text}"
    );
}

#[test]
fn bench_measures_messages_and_parts_and_leaves_nothing_behind() {
    let daemon = Daemon::start(&[]);
    let (exit, text) =
        with(&daemon, &["bench", "--messages", "5", "--parts", "50", "--rate", "500", "--json"]);
    assert_eq!(exit, 0, "{text}");
    let told: serde_json::Value = serde_json::from_str(text.trim()).expect("JSON");
    assert_eq!((&told["messages"]["number"], &told["parts"]["number"]), (&5.into(), &50.into()));
    for time in [&told["messages"]["taken_ms"], &told["messages"]["seen_ms"], &told["parts"]["seen_ms"]] {
        let at = |name: &str| time[name].as_f64().unwrap_or_else(|| panic!("no {name} in {text}"));
        assert!(at("p50") > 0.0 && at("p50") <= at("p99") && at("p99") <= at("max"), "{text}");
    }
    let (_, streams) = daemon.get("/v1/streams");
    assert!(!streams.contains("towpath-bench"), "{streams}");
    let (exit, text) = with(&daemon, &["bench", "--messages", "2", "--parts", "5"]);
    assert_eq!(exit, 0, "{text}");
    assert!(text.contains("parts, steady") && text.contains("SEEN P50"), "{text}");
}
