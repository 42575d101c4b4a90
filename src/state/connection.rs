//! The connection log: what is recorded when a connection begins and when it ends, and the one row
//! that all records of a connection become.
//!
//! Retries and the spool deliver records in any order and some of them twice, so the row does not
//! depend on the order: [`Row`] says which record gives which column, and the stores say the same in
//! SQL. Two records of one connection are told apart by `(time, id)`, which therefore must differ.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::batch::Merge;
use super::time::Wall;

/// What kind of connection it is.
///
/// ```
/// use towpath::ConnectionKind;
///
/// assert_eq!(ConnectionKind::named("ssh"), Some(ConnectionKind::Ssh));
/// assert!(ConnectionKind::Tunnel.is_point_in_time());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A secure shell.
    Ssh,
    /// An editor of the VS Code family.
    Vscode,
    /// An editor of the JetBrains family.
    Jetbrains,
    /// A terminal in a browser.
    ReconnectingPty,
    /// A visit to a web application. Has no end.
    WorkspaceApp,
    /// A visit to a forwarded port. Has no end.
    PortForwarding,
    /// A tunnel was used. Has no end.
    Tunnel,
    /// A file was moved. Has no end.
    FileTransfer,
    /// A follower of a stream.
    Stream,
    /// A River session.
    Session,
    /// A resumable byte pipe.
    Pipe,
}

impl Kind {
    /// Every kind, in the order the manual lists them.
    pub const ALL: [Kind; 11] = [
        Kind::Ssh,
        Kind::Vscode,
        Kind::Jetbrains,
        Kind::ReconnectingPty,
        Kind::WorkspaceApp,
        Kind::PortForwarding,
        Kind::Tunnel,
        Kind::FileTransfer,
        Kind::Stream,
        Kind::Session,
        Kind::Pipe,
    ];

    /// The word it is stored and shown as.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Ssh => "ssh",
            Kind::Vscode => "vscode",
            Kind::Jetbrains => "jetbrains",
            Kind::ReconnectingPty => "reconnecting_pty",
            Kind::WorkspaceApp => "workspace_app",
            Kind::PortForwarding => "port_forwarding",
            Kind::Tunnel => "tunnel",
            Kind::FileTransfer => "file_transfer",
            Kind::Stream => "stream",
            Kind::Session => "session",
            Kind::Pipe => "pipe",
        }
    }

    /// The kind with that name.
    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Whether it is an event rather than a span: never ongoing, whatever its end.
    pub const fn is_point_in_time(self) -> bool {
        matches!(self, Kind::WorkspaceApp | Kind::PortForwarding | Kind::Tunnel | Kind::FileTransfer)
    }
}

/// Whether a record tells of a beginning or of an end.
///
/// ```
/// assert_eq!(towpath::ConnectionStatus::Connected.as_str(), "connected");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It began.
    Connected,
    /// It ended.
    Disconnected,
}

impl Status {
    /// The word it is shown as.
    pub const fn as_str(self) -> &'static str {
        match self {
            Status::Connected => "connected",
            Status::Disconnected => "disconnected",
        }
    }

    /// The status with that name.
    pub fn named(name: &str) -> Option<Status> {
        [Status::Connected, Status::Disconnected].into_iter().find(|status| status.as_str() == name)
    }
}

/// One event in the life of a connection. Only `id`, `time`, `kind` and `status` are needed.
///
/// ```
/// use towpath::{ConnectionKind, ConnectionStatus, Record, Rt};
///
/// let rt = Rt::real();
/// let record = Record {
///     agent_name: "main".into(),
///     ..Record::new(rt.uuid_v7(), rt.wall(), ConnectionKind::Vscode, ConnectionStatus::Connected)
/// };
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Names the record; must be new for each (UUIDv7 keeps the database's index warm).
    pub id: Uuid,
    /// When it happened. Zero is unknown: the engine that accepts it writes its own time.
    pub time: Wall,
    /// What kind of connection.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Begun or ended.
    pub status: Status,
    /// Whose installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization_id: Option<Uuid>,
    /// Who owns the workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_owner_id: Option<Uuid>,
    /// The workspace; zero when there is none. Part of the key.
    #[serde(default, skip_serializing_if = "Uuid::is_nil")]
    pub workspace_id: Uuid,
    /// What the workspace was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_name: Option<String>,
    /// The agent in it; empty when there is none. Part of the key.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent_name: String,
    /// An exit or HTTP status code; zero is a code like any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Where from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// With what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    /// Who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<Uuid>,
    /// Which application or port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slug_or_port: Option<String>,
    /// What the records of one connection share. Records without it are never merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_id: Option<Uuid>,
    /// Why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disconnect_reason: Option<String>,
    /// Whatever else the caller wants to find it by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Record {
    /// A record with nothing but what every record needs.
    pub fn new(id: Uuid, time: Wall, kind: Kind, status: Status) -> Record {
        Record {
            id,
            time,
            kind,
            status,
            organization_id: None,
            workspace_owner_id: None,
            workspace_id: Uuid::nil(),
            workspace_name: None,
            agent_name: String::new(),
            code: None,
            ip: None,
            user_agent: None,
            user_id: None,
            slug_or_port: None,
            connection_id: None,
            disconnect_reason: None,
            labels: BTreeMap::new(),
        }
    }

    /// Makes the record what is accepted: an unknown time becomes `now`, a missing id `id`, and empty
    /// texts and zero ids mean "none". What follows never has to ask again.
    pub fn complete(&mut self, now: Wall, id: Uuid) {
        if self.time.0 <= 0 {
            self.time = now;
        }
        if self.id.is_nil() {
            self.id = id;
        }
        for text in [
            &mut self.workspace_name,
            &mut self.user_agent,
            &mut self.slug_or_port,
            &mut self.disconnect_reason,
        ] {
            if text.as_ref().is_some_and(String::is_empty) {
                *text = None;
            }
        }
        for id in [
            &mut self.organization_id,
            &mut self.workspace_owner_id,
            &mut self.user_id,
            &mut self.connection_id,
        ] {
            if id.is_some_and(|id| id.is_nil()) {
                *id = None;
            }
        }
    }

    /// What tells one record from another, and which of two comes first.
    pub fn stamp(&self) -> Stamp {
        Stamp { time: self.time, id: self.id }
    }
}

/// A record's place among the records of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// When it happened.
    pub time: Wall,
    /// Which of the records of one moment.
    pub id: Uuid,
}

/// Which rows are one: the database's own unique key, or the record itself if it names no connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// All records of a connection.
    Connection {
        /// The connection; it comes from the agent, so it is not unique by itself.
        connection_id: Uuid,
        /// The workspace, or zero.
        workspace_id: Uuid,
        /// The agent, or empty.
        agent_name: String,
    },
    /// A record on its own. Only the same record, come again, is merged with it.
    Alone {
        /// The record.
        id: Uuid,
    },
}

/// How a connection ended: one unit, always taken whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The disconnect it comes from. Its time is the disconnect time.
    pub by: Stamp,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// With what code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
}

/// What all records of a connection become.
///
/// - `connect_time` is the smallest time of any of them (a disconnect alone gives its own);
/// - `end` is that of the disconnect with the smallest `(time, id)`;
/// - everything else is that of the record with the smallest `(time, id)`, and so is the row's id.
///   The `code` column is the end's, once there is an end.
///
/// ```
/// use towpath::{ConnectionKind, ConnectionStatus, Record, Row, Rt};
///
/// let rt = Rt::real();
/// let row = Row::from(Record::new(rt.uuid_v7(), rt.wall(), ConnectionKind::Ssh, ConnectionStatus::Connected));
/// assert!(row.is_ongoing());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The earliest record.
    pub first: Record,
    /// When the connection began, as far as is known.
    pub connect_time: Wall,
    /// How it ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

impl From<Record> for Row {
    fn from(record: Record) -> Row {
        let end = (record.status == Status::Disconnected).then(|| End {
            by: record.stamp(),
            reason: record.disconnect_reason.clone(),
            code: record.code,
        });
        Row { connect_time: record.time, end, first: record }
    }
}

impl Row {
    /// Which rows this one is merged with.
    pub fn key(&self) -> Key {
        match self.first.connection_id {
            Some(connection_id) => Key::Connection {
                connection_id,
                workspace_id: self.first.workspace_id,
                agent_name: self.first.agent_name.clone(),
            },
            None => Key::Alone { id: self.first.id },
        }
    }

    /// The row's id: that of its earliest record.
    pub fn id(&self) -> Uuid {
        self.first.id
    }

    /// When it ended.
    pub fn disconnect_time(&self) -> Option<Wall> {
        self.end.as_ref().map(|end| end.by.time)
    }

    /// Why it ended.
    pub fn disconnect_reason(&self) -> Option<&str> {
        match &self.end {
            Some(end) => end.reason.as_deref(),
            None => self.first.disconnect_reason.as_deref(),
        }
    }

    /// The code it ended with, or was recorded with while it has not ended.
    pub fn code(&self) -> Option<i32> {
        match &self.end {
            Some(end) => end.code,
            None => self.first.code,
        }
    }

    /// Connected until it has ended.
    pub fn status(&self) -> Status {
        if self.end.is_some() { Status::Disconnected } else { Status::Connected }
    }

    /// Whether it is a span that has not ended.
    pub fn is_ongoing(&self) -> bool {
        self.end.is_none() && !self.first.kind.is_point_in_time()
    }

    /// About how much memory the row holds, for the bounds of queues.
    pub fn bytes(&self) -> usize {
        let texts = [&self.first.workspace_name, &self.first.user_agent, &self.first.slug_or_port]
            .into_iter()
            .chain([&self.first.disconnect_reason])
            .flatten()
            .map(String::len)
            .sum::<usize>();
        let labels = self.first.labels.iter().map(|(key, value)| key.len() + value.len() + 64).sum::<usize>();
        size_of::<Row>() + self.first.agent_name.len() + texts + labels
    }
}

impl Merge for Row {
    fn merge(&mut self, other: Row) {
        self.connect_time = self.connect_time.min(other.connect_time);
        match (&self.end, other.end) {
            (Some(mine), Some(theirs)) if mine.by <= theirs.by => {}
            (_, Some(theirs)) => self.end = Some(theirs),
            (_, None) => {}
        }
        if other.first.stamp() < self.first.stamp() {
            self.first = other.first;
        }
    }
}

#[cfg(test)]
#[path = "connection/tests.rs"]
mod tests;
