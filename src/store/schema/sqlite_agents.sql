-- Agents and their metadata on SQLite.
CREATE TABLE agents (
    id   BLOB PRIMARY KEY,
    name TEXT NOT NULL
);
CREATE INDEX agents_name ON agents (name, id);

CREATE TABLE agent_keys (
    agent_id      BLOB NOT NULL,
    key           TEXT NOT NULL,
    display_name  TEXT NOT NULL,
    display_order INTEGER NOT NULL,
    PRIMARY KEY (agent_id, key)
) WITHOUT ROWID;

CREATE TABLE metadata (
    agent_id     BLOB NOT NULL,
    key          TEXT NOT NULL,
    value        TEXT NOT NULL,
    error        TEXT NOT NULL DEFAULT '',
    collected_at INTEGER NOT NULL,
    PRIMARY KEY (agent_id, key)
) WITHOUT ROWID;
CREATE INDEX metadata_age ON metadata (collected_at);
