//! Metadata, the connection log and the spool over HTTP, as a script would use them.

use std::io::{BufRead, BufReader};

use serde_json::{Value, json};

use crate::process::{Daemon, PATIENCE, run, told};

fn send(daemon: &Daemon, method: &str, path: &str, body: &str, headers: &[(&str, &str)]) -> (u16, Value) {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .build()
        .into();
    let url = format!("{}{path}", daemon.url);
    let mut request = match method {
        "POST" => agent.post(url),
        _ => agent.put(url),
    };
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut answer = request.send(body).expect("the daemon answers");
    let text = answer.body_mut().read_to_string().expect("text");
    (answer.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::Null))
}

fn get(daemon: &Daemon, path: &str) -> (u16, Value) {
    let (status, text) = daemon.get(path);
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

const JSON: (&str, &str) = ("content-type", "application/json");
const AGENT: &str = "6f1f3c1e-0000-4000-8000-000000000001";

#[test]
fn front_metadata_is_reported_watched_read_and_declared() {
    let daemon = Daemon::start(&[]);
    let path = format!("/v1/agents/{AGENT}/metadata");
    let watch = ureq::get(format!("{}{path}/watch", daemon.url)).call().expect("a watch");
    let mut events = BufReader::new(watch.into_body().into_reader()).lines().map(|line| line.expect("text"));
    let mut next = || -> Value {
        let data = events.by_ref().find_map(|line| line.strip_prefix("data: ").map(str::to_owned));
        serde_json::from_str(&data.expect("the watch goes on")).expect("JSON")
    };
    assert_eq!(next(), json!({"agent": AGENT, "metadata": []}), "the first one at once");
    let body =
        r#"{"metadata":[{"key":"cpu","value":"12%"},{"key":"disk","value":"","error":"df: timed out"}]}"#;
    assert_eq!(send(&daemon, "POST", &path, body, &[JSON]), (202, json!({"accepted": 2})));
    let (status, _) = send(
        &daemon,
        "PUT",
        &format!("/v1/agents/{AGENT}/keys"),
        r#"[{"key":"disk","display_name":"Disk","display_order":-1}]"#,
        &[JSON],
    );
    assert_eq!(status, 200);
    let seen = loop {
        let seen = next();
        if seen["metadata"].as_array().is_some_and(|rows| rows.len() == 2) {
            break seen;
        }
    };
    assert_eq!(seen["metadata"][0]["key"], "disk", "{seen}");
    assert_eq!(seen["metadata"][0]["error"], "df: timed out");
    let (_, read) = get(&daemon, &path);
    assert_eq!(read["metadata"][1]["value"], "12%");
    assert_eq!(read["metadata"][1]["error"], "");
    assert!(read["metadata"][1]["age_ms"].is_u64(), "{read}");
    let long = "k".repeat(6_200);
    let body = json!({"metadata": [{"key": "a", "value": "1"}, {"key": long, "value": "2"}]}).to_string();
    let (status, refused) = send(&daemon, "POST", &path, &body, &[JSON]);
    assert_eq!(
        (status, &refused["code"], &refused["accepted"]),
        (400, &json!("metadata_keys_too_long"), &json!(1))
    );
    assert_eq!(refused["left_out"], json!([long]));
    for (body, code) in
        [("{", "bad_json"), (r#"{"metdata":[]}"#, "unknown_field"), (r#"{"metadata":7}"#, "bad_field")]
    {
        let (status, refused) = send(&daemon, "POST", &path, body, &[JSON]);
        assert_eq!((status, &refused["code"]), (400, &json!(code)), "{body}");
    }
}

#[test]
fn front_agents_are_named_and_found_by_prefix() {
    let daemon = Daemon::start(&[]);
    assert_eq!(send(&daemon, "PUT", &format!("/v1/agents/{AGENT}"), r#"{"name":"build-1"}"#, &[JSON]).0, 200);
    let (_, listed) = get(&daemon, "/v1/agents?prefix=build-");
    assert_eq!(listed["agents"], json!([{"id": AGENT, "name": "build-1"}]));
    assert_eq!(get(&daemon, "/v1/agents?prefix=test-").1["agents"], json!([]));
    assert_eq!(get(&daemon, "/v1/agents?perfix=x").0, 400);
}

#[test]
fn front_connections_are_taken_listed_filtered_and_exported() {
    let daemon = Daemon::start(&[]);
    let lines: String = (0..5)
        .map(|n| {
            let kind = if n == 4 { "pipe" } else { "ssh" };
            let time = format!("2026-01-01T00:00:0{n}Z");
            let id = format!("00000000-0000-4000-8000-00000000000{n}");
            json!({"id": id, "type": kind, "status": "connected", "time": time, "connection_id": id,
                   "labels": {"team": if n < 2 { "a" } else { "b" }}})
            .to_string()
                + "\n"
        })
        .collect();
    let sent = send(
        &daemon,
        "POST",
        "/v1/connections",
        &lines,
        &[("content-type", "application/x-ndjson"), ("prefer", "durable")],
    );
    assert_eq!(sent, (202, json!({"accepted": 5})));
    let ended = r#"{"type":"ssh","status":"disconnected","time":"2026-01-01T00:01:00Z","code":0,
        "disconnect_reason":"left","connection_id":"00000000-0000-4000-8000-000000000000"}"#;
    assert_eq!(send(&daemon, "POST", "/v1/connections", ended, &[JSON, ("prefer", "durable")]).0, 202);
    let patience = std::time::Instant::now() + PATIENCE;
    while get(&daemon, "/v1/spool").1["records"] != 0 {
        assert!(std::time::Instant::now() < patience, "the spool is sent at once");
        std::thread::yield_now();
    }
    let (_, all) = get(&daemon, "/v1/connections");
    assert_eq!(
        (all["connections"].as_array().map(Vec::len), &all["count"], &all["next"]),
        (Some(5), &json!(5), &Value::Null)
    );
    assert_eq!(all["connections"][0]["type"], "pipe", "newest first");
    let (_, ongoing) = get(&daemon, "/v1/connections?type=ssh&status=ongoing&limit=2");
    assert_eq!((&ongoing["count"], ongoing["connections"].as_array().map(Vec::len)), (&json!(3), Some(2)));
    let after = ongoing["next"].as_str().expect("there is a third");
    let (_, rest) = get(&daemon, &format!("/v1/connections?type=ssh&status=ongoing&limit=2&after={after}"));
    assert_eq!((rest["connections"].as_array().map(Vec::len), &rest["next"]), (Some(1), &Value::Null));
    let (_, done) = get(&daemon, "/v1/connections?status=completed");
    assert_eq!(done["connections"][0]["disconnect_reason"], "left");
    assert_eq!(done["connections"][0]["code"], 0);
    assert_eq!(done["connections"][0]["connect_time"], "2026-01-01T00:00:00.000Z");
    assert_eq!(get(&daemon, "/v1/connections?label.team=a").1["count"], 2);
    for bad in
        ["tpye=ssh", "type=telnet", "status=open", "limit=0", "after=x", "user_id=me", "connected_after=now"]
    {
        assert_eq!(get(&daemon, &format!("/v1/connections?{bad}")).0, 400, "{bad}");
    }
    let (_, lines) = daemon.get("/v1/connections/export");
    assert_eq!(lines.lines().count(), 5);
    let (_, csv) = daemon.get("/v1/connections/export?format=csv&status=completed");
    assert_eq!(csv.lines().count(), 2);
    assert!(csv.starts_with("id,type,status,connect_time,"));
    let (status, refused) = send(&daemon, "POST", "/v1/connections", r#"{"type":"ssh"}"#, &[JSON]);
    assert_eq!((status, &refused["code"]), (400, &json!("bad_field")));
    let (code, text) =
        told(&run(&["connections", "prune", "--before", "2026-01-01T00:00:02Z", "--url", &daemon.url]));
    assert_eq!((code, text.trim()), (0, "2 connections deleted"));
    assert_eq!(get(&daemon, "/v1/connections").1["count"], 3);
}

/// Takes records with a receipt and waits until they are in the database.
fn take(daemon: &Daemon, records: &[Value]) {
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    let headers = [("content-type", "application/x-ndjson"), ("prefer", "durable")];
    assert_eq!(send(daemon, "POST", "/v1/connections", &lines, &headers).0, 202);
    let patience = std::time::Instant::now() + PATIENCE;
    while get(daemon, "/v1/spool").1["records"] != 0 {
        assert!(std::time::Instant::now() < patience, "the spool is sent at once");
        std::thread::yield_now();
    }
}

#[test]
fn front_every_filter_of_connections_finds_what_it_says_and_nothing_else() {
    let daemon = Daemon::start(&[]);
    let id = |n: u32| format!("00000000-0000-4000-8000-{n:012}");
    // Record n has what its bits say, so that each filter has a set of its own.
    let records: Vec<Value> = (0..16_u32)
        .map(|n| {
            let who = |bit: u32| id(if n & bit == 0 { 1 } else { 2 });
            let kind = ["ssh", "vscode", "workspace_app", "pipe"][n as usize % 4];
            json!({
                "id": id(100 + n), "type": kind, "status": "connected",
                "time": format!("2026-01-01T00:00:{n:02}.250Z"), "connection_id": id(200 + n),
                "organization_id": who(1), "workspace_owner_id": who(2), "workspace_id": who(4),
                "user_id": who(8), "agent_name": if n & 8 == 0 { "main" } else { "a&b=ü" },
                "labels": {"team": if n < 4 { "red" } else { "blue" }, "n": n.to_string()},
            })
        })
        .collect();
    take(&daemon, &records);
    let ends: Vec<Value> = [4, 5]
        .map(|n| {
            json!({"type": "ssh", "status": "disconnected", "time": "2026-01-01T00:01:00Z", "connection_id": id(200 + n),
                   "workspace_id": id(2), "agent_name": "main"})
        })
        .into();
    take(&daemon, &ends);
    let found = |query: &str| -> Vec<u32> {
        let (status, answer) = get(&daemon, &format!("/v1/connections?{query}"));
        assert_eq!(status, 200, "{query}: {answer}");
        let rows = answer["connections"].as_array().expect("rows");
        let number =
            |row: &Value| -> u32 { row["labels"]["n"].as_str().expect("a label").parse().expect("a number") };
        rows.iter().rev().map(number).collect()
    };
    let those = |is: &dyn Fn(u32) -> bool| -> Vec<u32> { (0..16).filter(|n| is(*n)).collect() };
    let cases: [(&str, &dyn Fn(u32) -> bool); 19] = [
        ("", &|_| true),
        ("organization_id=00000000-0000-4000-8000-000000000002", &|n| n & 1 != 0),
        ("workspace_owner_id=00000000-0000-4000-8000-000000000002", &|n| n & 2 != 0),
        ("workspace_id=00000000-0000-4000-8000-000000000001", &|n| n & 4 == 0),
        ("user_id=00000000-0000-4000-8000-000000000002", &|n| n & 8 != 0),
        ("agent_name=a%26b%3D%C3%BC", &|n| n & 8 != 0),
        ("connection_id=00000000-0000-4000-8000-000000000207", &|n| n == 7),
        ("type=pipe", &|n| n % 4 == 3),
        ("type=ssh,pipe", &|n| n % 4 == 0 || n % 4 == 3),
        ("status=completed", &|n| n % 4 == 2 || n == 4 || n == 5),
        ("status=ongoing", &|n| !(n % 4 == 2 || n == 4 || n == 5)),
        ("status=ongoing,completed", &|_| true),
        ("connected_after=2026-01-01T00:00:05.250Z", &|n| n >= 5),
        ("connected_after=2026-01-01T00:00:05.251Z", &|n| n >= 6),
        ("connected_before=2026-01-01T00:00:05.250Z", &|n| n <= 5),
        ("connected_before=2026-01-01T00:00:05.249Z", &|n| n <= 4),
        ("label.team=red", &|n| n < 4),
        ("label.team=red&label.n=2", &|n| n == 2),
        ("type=ssh&status=ongoing&label.team=blue&connected_before=2026-01-01T01:00:10%2B01:00", &|n| n == 8),
    ];
    for (query, is) in cases {
        assert_eq!(found(query), those(is), "{query}");
        let (status, answer) = get(&daemon, &format!("/v1/connections?limit=1&{query}"));
        assert_eq!((status, &answer["count"]), (200, &json!(those(is).len())), "{query}: counted, not paged");
        let (_, lines) = daemon.get(&format!("/v1/connections/export?{query}"));
        assert_eq!(lines.lines().count(), those(is).len(), "{query}: exported");
    }
    assert_eq!(found("limit=3&offset=2"), [11, 12, 13], "newest first, two left out");
    let (mut paged, mut after) = (Vec::new(), String::new());
    loop {
        let (_, answer) = get(&daemon, &format!("/v1/connections?limit=5{after}"));
        paged.extend(answer["connections"].as_array().expect("rows").iter().map(|row| row["id"].clone()));
        let Some(next) = answer["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    let all: Vec<Value> = (0..16).rev().map(|n| json!(id(100 + n))).collect();
    assert_eq!(paged, all, "every row once, over four pages");
    for bad in [
        "organization_id=1",
        "workspace_id=",
        "connected_before=yesterday",
        "limit=1001",
        "offset=-1",
        "status=",
    ] {
        let (status, refused) = get(&daemon, &format!("/v1/connections?{bad}"));
        assert_eq!((status, &refused["code"]), (400, &json!("bad_parameter")), "{bad}: {refused}");
        assert_eq!(get(&daemon, &format!("/v1/connections/export?{bad}")).0, 400, "{bad}");
    }
}

#[test]
fn front_an_export_as_csv_has_the_promised_columns_and_parses() {
    let daemon = Daemon::start(&[]);
    let id = "00000000-0000-4000-8000-000000000001";
    take(
        &daemon,
        &[json!({
            "id": id, "type": "ssh", "status": "disconnected", "time": "2026-01-01T00:00:00.5Z", "code": -1,
            "disconnect_reason": "said \"no\",\nand left", "ip": "2001:db8::1", "user_agent": "=HYPERLINK(\"x\")",
            "labels": {"a": "1,2"}, "connection_id": id,
        })],
    );
    let (_, csv) = daemon.get("/v1/connections/export?format=csv");
    assert_eq!(
        csv,
        format!(
            "id,type,status,connect_time,disconnect_time,disconnect_reason,code,ip,user_agent,user_id,slug_or_port,\
             organization_id,workspace_owner_id,workspace_id,workspace_name,agent_name,connection_id,labels\r\n\
             {id},ssh,disconnected,2026-01-01T00:00:00.500Z,2026-01-01T00:00:00.500Z,\"said \"\"no\"\",\nand left\",\
             -1,2001:db8::1,\"'=HYPERLINK(\"\"x\"\")\",,,,,,,,{id},\"{{\"\"a\"\":\"\"1,2\"\"}}\"\r\n"
        )
    );
}

#[test]
fn cli_spool_tells_verifies_and_repairs() {
    let daemon = Daemon::start(&[]);
    let (code, text) = told(&run(&["spool", "status", "--url", &daemon.url]));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("records"), "{text}");
    let dir = daemon.data.path().to_str().expect("a path of text").to_owned();
    assert_eq!(
        told(&run(&["spool", "verify", "--data", &dir])),
        (0, "the spool is whole: 0 records\n".into())
    );
    let (code, text) = told(&run(&["spool", "repair", "--data", &dir]));
    assert_eq!(code, 1, "a daemon is using it: {text}");
    drop(daemon);
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("spool.db"), "no database at all").expect("written");
    let dir = dir.path().to_str().expect("a path of text");
    let (code, text) = told(&run(&["spool", "repair", "--data", dir]));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("set aside"), "{text}");
    assert_eq!(told(&run(&["spool", "verify", "--data", dir])).0, 0);
    assert_eq!(told(&run(&["spool", "list", "--data", dir])), (0, String::new()));
}
