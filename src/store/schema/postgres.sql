-- All tables on PostgreSQL. The same columns as on SQLite, with types of their own.

CREATE FUNCTION towpath_now() RETURNS timestamptz LANGUAGE plpgsql STABLE AS
    'BEGIN RETURN clock_timestamp(); END';
-- A number of microseconds from now.
CREATE FUNCTION towpath_after(bigint) RETURNS timestamptz LANGUAGE plpgsql STABLE AS
    'BEGIN RETURN towpath_now() + $1 * interval ''1 microsecond''; END';
-- Whether labels contain all of others. Inlined, so that its index is used.
CREATE FUNCTION towpath_has(jsonb, jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 @> $2';

CREATE TABLE store (
    store_id uuid NOT NULL,
    epoch    uuid NOT NULL
);

CREATE TABLE streams (
    id             uuid PRIMARY KEY,
    name           text COLLATE "C" NOT NULL UNIQUE,
    content_type   text NOT NULL,
    labels         jsonb NOT NULL DEFAULT '{}',
    ttl_s          bigint,
    expires_at     timestamptz,
    tag            bytea NOT NULL,
    gen            bigint NOT NULL DEFAULT 0,
    pos            bigint NOT NULL DEFAULT 0,
    history_pos    bigint NOT NULL DEFAULT 0,
    queue_pos      bigint NOT NULL DEFAULT 0,
    status_pos     bigint NOT NULL DEFAULT 0,
    error_pos      bigint NOT NULL DEFAULT 0,
    trimmed_pos    bigint NOT NULL DEFAULT 0,
    last_msg       bigint NOT NULL DEFAULT 0,
    closed_pos     bigint,
    status         text NOT NULL DEFAULT 'idle',
    status_at      timestamptz NOT NULL,
    on_lost        text NOT NULL DEFAULT 'pending',
    worker         uuid,
    lease_hash     bytea,
    lease_until    timestamptz,
    turn_no        bigint NOT NULL DEFAULT 0,
    turn_begun_pos bigint NOT NULL DEFAULT 0,
    turn_begun_at  timestamptz,
    turn_closed_at timestamptz,
    turn_folded_to bigint NOT NULL DEFAULT 0,
    error          text,
    stream_seq     text COLLATE "C",
    forked_from    uuid,
    fork_pos       bigint NOT NULL DEFAULT 0,
    fork_sub       bigint NOT NULL DEFAULT 0,
    fork_count     bigint NOT NULL DEFAULT 0,
    keep_age_s     bigint,
    keep_bytes     bigint,
    bytes          bigint NOT NULL DEFAULT 0,
    oldest_at      timestamptz,
    last_input     bigint NOT NULL DEFAULT 0,
    deleted_at     timestamptz,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX streams_pending ON streams (status_at, id) WHERE status = 'pending';
CREATE INDEX streams_worker ON streams (worker) WHERE worker IS NOT NULL;
CREATE INDEX streams_expiry ON streams (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX streams_labels ON streams USING gin (labels jsonb_path_ops);

CREATE TABLE messages (
    stream_id uuid NOT NULL,
    id        bigint NOT NULL,
    pos       bigint NOT NULL,
    gen       bigint NOT NULL,
    kind      smallint NOT NULL,
    role      text,
    content   bytea NOT NULL,
    removed   boolean NOT NULL DEFAULT false,
    turn_no   bigint,
    folded_to bigint,
    ts        timestamptz NOT NULL,
    PRIMARY KEY (stream_id, id),
    UNIQUE (stream_id, pos)
);

CREATE TABLE queue (
    stream_id uuid NOT NULL,
    id        bigint NOT NULL,
    kind      smallint NOT NULL,
    role      text,
    content   bytea NOT NULL,
    ts        timestamptz NOT NULL,
    PRIMARY KEY (stream_id, id)
);

CREATE TABLE producers (
    stream_id   uuid NOT NULL,
    producer_id text COLLATE "C" NOT NULL,
    epoch       bigint NOT NULL,
    seq         bigint NOT NULL,
    pos         bigint NOT NULL,
    used_at     timestamptz NOT NULL,
    PRIMARY KEY (stream_id, producer_id)
);

CREATE TABLE answers (
    scope  uuid NOT NULL,
    op     smallint NOT NULL,
    key    bytea NOT NULL,
    answer text NOT NULL,
    at     timestamptz NOT NULL,
    PRIMARY KEY (scope, op, key)
);
CREATE INDEX answers_at ON answers (at);

CREATE TABLE replicas (
    id         uuid PRIMARY KEY,
    hostname   text NOT NULL,
    relay_url  text,
    version    text NOT NULL,
    error      text NOT NULL DEFAULT '',
    started_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    stopped_at timestamptz
);

CREATE TABLE relay_keys (
    id         uuid PRIMARY KEY,
    secret     bytea NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE TABLE agents (
    id   uuid PRIMARY KEY,
    name text COLLATE "C" NOT NULL
);
CREATE INDEX agents_name ON agents (name, id);

CREATE TABLE agent_keys (
    agent_id      uuid NOT NULL,
    key           text COLLATE "C" NOT NULL,
    display_name  text NOT NULL,
    display_order integer NOT NULL,
    PRIMARY KEY (agent_id, key)
);

-- Half of each page stays free, so that a new value goes beside the old one and no index is touched.
CREATE TABLE metadata (
    agent_id     uuid NOT NULL,
    key          text COLLATE "C" NOT NULL,
    value        text NOT NULL,
    error        text NOT NULL DEFAULT '',
    collected_at timestamptz NOT NULL,
    PRIMARY KEY (agent_id, key)
) WITH (fillfactor = 50);

CREATE TABLE connections (
    id                 uuid PRIMARY KEY,
    connect_time       timestamptz NOT NULL,
    type               text NOT NULL,
    organization_id    uuid,
    workspace_owner_id uuid,
    workspace_id       uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    workspace_name     text,
    agent_name         text COLLATE "C" NOT NULL DEFAULT '',
    ip                 text,
    user_agent         text,
    user_id            uuid,
    slug_or_port       text,
    connection_id      uuid,
    disconnect_time    timestamptz,
    disconnect_reason  text,
    code               integer,
    first_time         timestamptz NOT NULL,
    ended_by           uuid,
    labels             jsonb NOT NULL DEFAULT '{}'
);
CREATE UNIQUE INDEX connections_key ON connections (connection_id, workspace_id, agent_name)
    WHERE connection_id IS NOT NULL;
CREATE INDEX connections_time ON connections (connect_time, id);

CREATE TABLE dead_letters (
    id     uuid PRIMARY KEY,
    record text NOT NULL,
    error  text NOT NULL,
    at     timestamptz NOT NULL
);
CREATE INDEX dead_letters_at ON dead_letters (at, id);
