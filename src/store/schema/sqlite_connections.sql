-- The connection log on SQLite.
CREATE TABLE connections (
    id                 BLOB PRIMARY KEY,
    connect_time       INTEGER NOT NULL,
    type               TEXT NOT NULL,
    organization_id    BLOB,
    workspace_owner_id BLOB,
    workspace_id       BLOB NOT NULL,
    workspace_name     TEXT,
    agent_name         TEXT NOT NULL,
    ip                 TEXT,
    user_agent         TEXT,
    user_id            BLOB,
    slug_or_port       TEXT,
    connection_id      BLOB,
    disconnect_time    INTEGER,
    disconnect_reason  TEXT,
    code               INTEGER,
    first_time         INTEGER NOT NULL,
    ended_by           BLOB,
    labels             TEXT NOT NULL DEFAULT '{}'
);
CREATE UNIQUE INDEX connections_key ON connections (connection_id, workspace_id, agent_name)
    WHERE connection_id IS NOT NULL;
CREATE INDEX connections_time ON connections (connect_time, id);

CREATE TABLE dead_letters (
    id     BLOB PRIMARY KEY,
    record TEXT NOT NULL,
    error  TEXT NOT NULL,
    at     INTEGER NOT NULL
);
CREATE INDEX dead_letters_at ON dead_letters (at, id);
