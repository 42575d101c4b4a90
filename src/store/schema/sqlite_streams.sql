-- Streams on SQLite. Ids are 16 bytes, times are microseconds since 1970.
CREATE TABLE store (
    store_id BLOB NOT NULL,
    epoch    BLOB NOT NULL
);

CREATE TABLE streams (
    id             BLOB PRIMARY KEY,
    name           TEXT NOT NULL UNIQUE,
    content_type   TEXT NOT NULL,
    labels         TEXT NOT NULL DEFAULT '{}',
    ttl_s          INTEGER,
    expires_at     INTEGER,
    tag            BLOB NOT NULL,
    gen            INTEGER NOT NULL DEFAULT 0,
    pos            INTEGER NOT NULL DEFAULT 0,
    history_pos    INTEGER NOT NULL DEFAULT 0,
    queue_pos      INTEGER NOT NULL DEFAULT 0,
    status_pos     INTEGER NOT NULL DEFAULT 0,
    error_pos      INTEGER NOT NULL DEFAULT 0,
    trimmed_pos    INTEGER NOT NULL DEFAULT 0,
    last_msg       INTEGER NOT NULL DEFAULT 0,
    closed_pos     INTEGER,
    status         TEXT NOT NULL DEFAULT 'idle',
    status_at      INTEGER NOT NULL,
    on_lost        TEXT NOT NULL DEFAULT 'pending',
    worker         BLOB,
    lease_hash     BLOB,
    lease_until    INTEGER,
    turn_no        INTEGER NOT NULL DEFAULT 0,
    turn_begun_pos INTEGER NOT NULL DEFAULT 0,
    turn_begun_at  INTEGER,
    turn_closed_at INTEGER,
    turn_folded_to INTEGER NOT NULL DEFAULT 0,
    error          TEXT,
    stream_seq     TEXT,
    forked_from    BLOB,
    fork_pos       INTEGER NOT NULL DEFAULT 0,
    fork_sub       INTEGER NOT NULL DEFAULT 0,
    fork_count     INTEGER NOT NULL DEFAULT 0,
    keep_age_s     INTEGER,
    keep_bytes     INTEGER,
    bytes          INTEGER NOT NULL DEFAULT 0,
    oldest_at      INTEGER,
    last_input     INTEGER NOT NULL DEFAULT 0,
    deleted_at     INTEGER,
    created_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL
);
CREATE INDEX streams_pending ON streams (status_at, id) WHERE status = 'pending';
CREATE INDEX streams_worker ON streams (worker) WHERE worker IS NOT NULL;
CREATE INDEX streams_expiry ON streams (expires_at) WHERE expires_at IS NOT NULL;

-- Ids rise with positions, so that one index finds both: a second would be a page more for each append to write.
CREATE TABLE messages (
    stream_id BLOB NOT NULL,
    id        INTEGER NOT NULL,
    pos       INTEGER NOT NULL,
    gen       INTEGER NOT NULL,
    kind      INTEGER NOT NULL,
    role      TEXT,
    content   BLOB NOT NULL,
    removed   INTEGER NOT NULL DEFAULT 0,
    turn_no   INTEGER,
    folded_to INTEGER,
    ts        INTEGER NOT NULL,
    UNIQUE (stream_id, pos)
);

CREATE TABLE queue (
    stream_id BLOB NOT NULL,
    id        INTEGER NOT NULL,
    kind      INTEGER NOT NULL,
    role      TEXT,
    content   BLOB NOT NULL,
    ts        INTEGER NOT NULL,
    PRIMARY KEY (stream_id, id)
);

CREATE TABLE producers (
    stream_id   BLOB NOT NULL,
    producer_id TEXT NOT NULL,
    epoch       INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    pos         INTEGER NOT NULL,
    used_at     INTEGER NOT NULL,
    PRIMARY KEY (stream_id, producer_id)
);

CREATE TABLE answers (
    scope  BLOB NOT NULL,
    op     INTEGER NOT NULL,
    key    BLOB NOT NULL,
    answer TEXT NOT NULL,
    at     INTEGER NOT NULL,
    PRIMARY KEY (scope, op, key)
);
CREATE INDEX answers_at ON answers (at);

CREATE TABLE replicas (
    id         BLOB PRIMARY KEY,
    hostname   TEXT NOT NULL,
    relay_url  TEXT,
    version    TEXT NOT NULL,
    error      TEXT NOT NULL DEFAULT '',
    started_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    stopped_at INTEGER
);

CREATE TABLE relay_keys (
    id         BLOB PRIMARY KEY,
    secret     BLOB NOT NULL,
    created_at INTEGER NOT NULL
);
