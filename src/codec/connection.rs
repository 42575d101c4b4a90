//! Connection records as JSON and CSV: what scripts outside the project read and write.
//!
//! Times are RFC 3339 in UTC with milliseconds. An unknown field in a record is an error, so that a
//! typo does not vanish.

use core::net::IpAddr;
use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::state::connection::{Kind, Record, Row, Status};
use crate::state::time::Wall;

/// The columns of an export, in order; also the fields of a row in JSON.
pub const COLUMNS: [&str; 18] = [
    "id",
    "type",
    "status",
    "connect_time",
    "disconnect_time",
    "disconnect_reason",
    "code",
    "ip",
    "user_agent",
    "user_id",
    "slug_or_port",
    "organization_id",
    "workspace_owner_id",
    "workspace_id",
    "workspace_name",
    "agent_name",
    "connection_id",
    "labels",
];

/// A wall time as text: `2026-11-22T03:04:05.678Z`.
pub fn time_text(wall: Wall) -> String {
    match Timestamp::from_microsecond(wall.as_micros()) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => String::from("0000-01-01T00:00:00.000Z"),
    }
}

/// The wall time of an RFC 3339 text.
///
/// # Errors
/// What is wrong with it.
pub fn time_from(text: &str) -> Result<Wall, String> {
    text.parse::<Timestamp>().map(|time| Wall(time.as_microsecond())).map_err(|error| error.to_string())
}

/// A record as it is sent in: the field names of the connection log, everything optional but `type`
/// and `status`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    id: Option<Uuid>,
    time: Option<String>,
    #[serde(rename = "type")]
    kind: Kind,
    status: Status,
    organization_id: Option<Uuid>,
    workspace_owner_id: Option<Uuid>,
    workspace_id: Option<Uuid>,
    workspace_name: Option<String>,
    agent_name: Option<String>,
    code: Option<i32>,
    ip: Option<String>,
    user_agent: Option<String>,
    user_id: Option<Uuid>,
    slug_or_port: Option<String>,
    connection_id: Option<Uuid>,
    disconnect_reason: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

/// The record in a JSON object. What is left out (id and time among it) is filled in when the record
/// is accepted.
///
/// # Errors
/// What is wrong with it, naming the field.
pub fn record_from(json: &[u8]) -> Result<Record, String> {
    let sent: Sent = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let time = match sent.time.as_deref() {
        None | Some("") => Wall(0),
        Some(text) => time_from(text).map_err(|error| format!("time: {error}"))?,
    };
    let ip: Option<IpAddr> = match sent.ip.as_deref() {
        None | Some("") => None,
        Some(text) => Some(text.parse().map_err(|_| format!("ip: {text:?} is not an address"))?),
    };
    let mut record = Record::new(sent.id.unwrap_or_default(), time, sent.kind, sent.status);
    record.organization_id = sent.organization_id;
    record.workspace_owner_id = sent.workspace_owner_id;
    record.workspace_id = sent.workspace_id.unwrap_or_default();
    record.workspace_name = sent.workspace_name;
    record.agent_name = sent.agent_name.unwrap_or_default();
    record.code = sent.code;
    record.ip = ip;
    record.user_agent = sent.user_agent;
    record.user_id = sent.user_id;
    record.slug_or_port = sent.slug_or_port;
    record.connection_id = sent.connection_id;
    record.disconnect_reason = sent.disconnect_reason;
    record.labels = sent.labels.unwrap_or_default();
    Ok(record)
}

/// A row as it is shown.
#[derive(Debug, Serialize)]
pub struct Shown<'a> {
    id: Uuid,
    #[serde(rename = "type")]
    kind: Kind,
    status: Status,
    connect_time: String,
    disconnect_time: Option<String>,
    disconnect_reason: Option<&'a str>,
    code: Option<i32>,
    ip: Option<IpAddr>,
    user_agent: Option<&'a str>,
    user_id: Option<Uuid>,
    slug_or_port: Option<&'a str>,
    organization_id: Option<Uuid>,
    workspace_owner_id: Option<Uuid>,
    workspace_id: Option<Uuid>,
    workspace_name: Option<&'a str>,
    agent_name: Option<&'a str>,
    connection_id: Option<Uuid>,
    labels: &'a BTreeMap<String, String>,
}

impl<'a> From<&'a Row> for Shown<'a> {
    fn from(row: &'a Row) -> Shown<'a> {
        let first = &row.first;
        Shown {
            id: row.id(),
            kind: first.kind,
            status: row.status(),
            connect_time: time_text(row.connect_time),
            disconnect_time: row.disconnect_time().map(time_text),
            disconnect_reason: row.disconnect_reason(),
            code: row.code(),
            ip: first.ip,
            user_agent: first.user_agent.as_deref(),
            user_id: first.user_id,
            slug_or_port: first.slug_or_port.as_deref(),
            organization_id: first.organization_id,
            workspace_owner_id: first.workspace_owner_id,
            workspace_id: Some(first.workspace_id).filter(|id| !id.is_nil()),
            workspace_name: first.workspace_name.as_deref(),
            agent_name: Some(first.agent_name.as_str()).filter(|name| !name.is_empty()),
            connection_id: first.connection_id,
            labels: &first.labels,
        }
    }
}

/// A row as one line of JSON, with its newline.
pub fn json_line(row: &Row) -> String {
    let mut line = serde_json::to_string(&Shown::from(row)).expect("a row has only string keys");
    line.push('\n');
    line
}

/// The first line of a CSV export, with its line end.
pub fn csv_head() -> String {
    format!("{}\r\n", COLUMNS.join(","))
}

/// A row as one line of CSV (RFC 4180), with its line end. Nothing is an empty field.
pub fn csv_line(row: &Row) -> String {
    let shown = Shown::from(row);
    let text = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
    let plain = |text: Option<&str>| text.unwrap_or_default().to_owned();
    let labels = if shown.labels.is_empty() {
        String::new()
    } else {
        serde_json::to_string(shown.labels).expect("labels are texts")
    };
    let fields = [
        shown.id.to_string(),
        shown.kind.as_str().to_owned(),
        shown.status.as_str().to_owned(),
        shown.connect_time,
        shown.disconnect_time.unwrap_or_default(),
        plain(shown.disconnect_reason),
        shown.code.map(|code| code.to_string()).unwrap_or_default(),
        shown.ip.map(|ip| ip.to_string()).unwrap_or_default(),
        plain(shown.user_agent),
        text(shown.user_id),
        plain(shown.slug_or_port),
        text(shown.organization_id),
        text(shown.workspace_owner_id),
        text(shown.workspace_id),
        plain(shown.workspace_name),
        plain(shown.agent_name),
        text(shown.connection_id),
        labels,
    ];
    let mut line = String::new();
    for (place, field) in fields.iter().enumerate() {
        if place > 0 {
            line.push(',');
        }
        push_field(&mut line, field);
    }
    line.push_str("\r\n");
    line
}

/// Quotes what needs it. A text that a spreadsheet would run as a formula gets an apostrophe in
/// front: user agents and names come from strangers.
fn push_field(line: &mut String, field: &str) {
    let formula = field.starts_with(['=', '+', '-', '@', '\t', '\r']) && field.parse::<f64>().is_err();
    let guard = if formula { "'" } else { "" };
    if !formula && !field.contains([',', '"', '\r', '\n']) {
        line.push_str(field);
        return;
    }
    line.push('"');
    line.push_str(guard);
    line.push_str(&field.replace('"', "\"\""));
    line.push('"');
}

/// A row's place as text that sorts like the rows: what `after` takes.
pub fn cursor_text(connect_time: Wall, id: Uuid) -> String {
    format!("{:016x}{}", connect_time.0 as u64 ^ 1 << 63, id.simple())
}

/// The place a cursor names; nothing if it is none.
pub fn cursor_from(text: &str) -> Option<(Wall, Uuid)> {
    let (time, id) = text.split_at_checked(16)?;
    let time = u64::from_str_radix(time, 16).ok().filter(|_| !time.starts_with('+'))?;
    let id = Uuid::try_parse(id).ok().filter(|_| id.len() == 32)?;
    Some((Wall((time ^ 1 << 63) as i64), id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_needs_only_type_and_status() {
        let record = record_from(br#"{"type":"ssh","status":"connected"}"#).unwrap();
        assert_eq!((record.kind, record.status, record.time), (Kind::Ssh, Status::Connected, Wall(0)));
        assert!(record.id.is_nil());
    }

    #[test]
    fn what_is_wrong_with_a_record_is_said() {
        for (json, said) in [
            (r#"{"type":"ssh"}"#, "status"),
            (r#"{"type":"telnet","status":"connected"}"#, "telnet"),
            (r#"{"type":"ssh","status":"connected","tpye":1}"#, "tpye"),
            (r#"{"type":"ssh","status":"connected","ip":"nowhere"}"#, "ip: \"nowhere\""),
            (r#"{"type":"ssh","status":"connected","time":"yesterday"}"#, "time:"),
            (r#"{"type":"ssh","status":"connected","code":1.5}"#, "1.5"),
        ] {
            let error = record_from(json.as_bytes()).unwrap_err();
            assert!(error.contains(said), "{json}: {error}");
        }
    }

    fn row() -> Row {
        let json = br#"{"id":"00000000-0000-0000-0000-000000000007","type":"ssh","status":"disconnected",
            "time":"2026-11-22T03:04:05.678Z","code":0,"ip":"::1","user_agent":"a, \"b\"","agent_name":"=cmd",
            "disconnect_reason":"left","labels":{"k":"v"}}"#;
        Row::from(record_from(json).unwrap())
    }

    #[test]
    fn a_row_as_json_has_every_column_and_times_with_milliseconds() {
        let shown: serde_json::Value = serde_json::from_str(&json_line(&row())).unwrap();
        let mut fields: Vec<&str> = shown.as_object().unwrap().keys().map(String::as_str).collect();
        let mut columns = COLUMNS.to_vec();
        fields.sort_unstable();
        columns.sort_unstable();
        assert_eq!(fields, columns);
        assert_eq!(shown["connect_time"], "2026-11-22T03:04:05.678Z");
        assert_eq!(shown["disconnect_time"], "2026-11-22T03:04:05.678Z");
        assert_eq!(shown["code"], 0);
        assert_eq!(shown["user_id"], serde_json::Value::Null);
    }

    #[test]
    fn a_row_as_csv_is_quoted_and_harmless_in_a_spreadsheet() {
        assert_eq!(csv_head().trim_end().split(',').count(), COLUMNS.len());
        assert_eq!(
            csv_line(&row()),
            "00000000-0000-0000-0000-000000000007,ssh,disconnected,2026-11-22T03:04:05.678Z,\
             2026-11-22T03:04:05.678Z,left,0,::1,\"a, \"\"b\"\"\",,,,,,,\"'=cmd\",,\"{\"\"k\"\":\"\"v\"\"}\"\r\n"
        );
    }

    #[test]
    fn a_cursor_round_trips_and_nothing_else_is_one() {
        let id = Uuid::from_u128(7);
        for time in [0, 1_790_000_000_000_000, -5] {
            assert_eq!(cursor_from(&cursor_text(Wall(time), id)), Some((Wall(time), id)));
        }
        assert!(cursor_text(Wall(-5), id) < cursor_text(Wall(5), id));
        for text in ["", "7", "é234567890123456", &format!("{}-", cursor_text(Wall(0), id))] {
            assert_eq!(cursor_from(text), None);
        }
    }

    #[test]
    fn times_round_trip_through_text() {
        for micros in [0, 1_790_000_000_123_000, -62_135_596_800_000_000] {
            assert_eq!(time_from(&time_text(Wall(micros))), Ok(Wall(micros)));
        }
    }
}
