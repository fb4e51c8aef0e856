-- All tables of the jobstore.
--
-- Columns are named as the fields of waybill.v1. An empty text means "none", as in the protos; NULL stands for absent
-- messages and times, and for an enum that is UNSPECIFIED. Ids are text in byte order, so that an order means the same
-- in every database. Enums are stored by name, without the prefix of the proto. `error` is a google.rpc.Status,
-- serialised.
--
-- The schema keeps the promises: what a CHECK, a key or a foreign key says here, no code needs to hope for.
-- Indexes are few on purpose: each one is paid for twice by every job (inserted, then ended).

CREATE DOMAIN execution_status AS text CONSTRAINT execution_status_known
    CHECK (VALUE IN ('PENDING', 'STARTED', 'FINISHED', 'FAILED', 'ABORTED', 'UNKNOWN', 'SKIPPED'));
CREATE DOMAIN command_status AS text CONSTRAINT command_status_known
    CHECK (VALUE IN ('NOT_STARTED', 'ACTIVE', 'EXECUTION_FAILED', 'SUCCEEDED', 'FAILED',
                     'ENDED_SUCCESSFULLY', 'ENDED_WITH_FAILURE', 'UNKNOWN'));
CREATE DOMAIN host_task_kind AS text CONSTRAINT host_task_kind_known CHECK (VALUE IN ('TASK', 'CALL', 'WAIT'));
CREATE DOMAIN task_state AS text CONSTRAINT task_state_known
    CHECK (VALUE IN ('INIT', 'RUNNING', 'FINISHED', 'ABORTING', 'CLEANING', 'UNKNOWN'));
CREATE DOMAIN task_result AS text CONSTRAINT task_result_known
    CHECK (VALUE IN ('SUCCESS', 'CLEAN_SUCCESS', 'CLEAN_FAILURE'));
CREATE DOMAIN entity_type AS text COLLATE "C" CONSTRAINT entity_type_known
    CHECK (VALUE IN ('HOST', 'VM', 'DISK', 'SNAPSHOT', 'STORAGE_DOMAIN', 'TEMPLATE', 'CLUSTER'));
CREATE DOMAIN external_system_type AS text CONSTRAINT external_system_type_known
    CHECK (VALUE IN ('HOST_AGENT', 'EXTERNAL'));
CREATE DOMAIN cancel_kind AS text CONSTRAINT cancel_kind_known
    CHECK (VALUE IN ('NONE', 'BEFORE_START', 'REVERT', 'FINISH_FORWARD'));
CREATE DOMAIN severity AS text CONSTRAINT severity_known CHECK (VALUE IN ('NORMAL', 'WARNING', 'ERROR', 'ALERT'));

-- One row. Its lock is the writers' mutex, so that revisions are without gaps and in the order of the commits.
CREATE TABLE head (
    one                boolean     PRIMARY KEY DEFAULT true CONSTRAINT head_is_one_row CHECK (one),
    revision           bigint      NOT NULL,
    compacted_revision bigint      NOT NULL,  -- the highest revision of a purged tombstone
    time               timestamptz NOT NULL,  -- of the last commit; never goes back
    store_epoch        text        NOT NULL,  -- another one: the store was restored or replaced
    CONSTRAINT head_compacted_is_past CHECK (0 <= compacted_revision AND compacted_revision <= revision)
) WITH (fillfactor = 10);

INSERT INTO head (revision, compacted_revision, time, store_epoch)
VALUES (0, 0, clock_timestamp(), gen_random_uuid()::text);

CREATE TABLE job (
    revision            bigint           NOT NULL,  -- of the last change of the job or of one of its steps
    create_time         timestamptz      NOT NULL,
    start_time          timestamptz,
    end_time            timestamptz,
    update_time         timestamptz      NOT NULL,
    deadline            timestamptz,
    progress            integer          NOT NULL DEFAULT 0,
    priority            integer          NOT NULL DEFAULT 0,
    visible             boolean          NOT NULL DEFAULT true,
    external            boolean          NOT NULL DEFAULT false,
    auto_cleared        boolean          NOT NULL DEFAULT true,
    status              execution_status NOT NULL,
    cancelable          cancel_kind      NOT NULL DEFAULT 'NONE',
    job_id              text COLLATE "C" PRIMARY KEY,
    flow_command_id     text COLLATE "C" NOT NULL DEFAULT '',
    command_type        text COLLATE "C" NOT NULL,
    owner               text COLLATE "C" NOT NULL,
    correlation_id      text COLLATE "C" NOT NULL,
    trace_id            text COLLATE "C" NOT NULL DEFAULT '',
    span_id             text COLLATE "C" NOT NULL DEFAULT '',
    restarted_from      text COLLATE "C" NOT NULL DEFAULT '',
    request_id          text COLLATE "C" NOT NULL DEFAULT '',
    request_hash        bytea,                      -- SHA-256 of the canonical request
    cancel_requested_by text             NOT NULL DEFAULT '',
    description         text             NOT NULL,
    categories          text[]           NOT NULL DEFAULT '{}',
    subjects            jsonb            NOT NULL DEFAULT '[]',  -- [{"entity_type", "entity_id", "name"}], for display
    parameters          jsonb            NOT NULL DEFAULT '{}',
    error               bytea,
    CONSTRAINT job_end_time_iff_ended CHECK ((end_time IS NULL) = (status IN ('PENDING', 'STARTED'))),
    CONSTRAINT job_start_time_if_begun CHECK (start_time IS NOT NULL OR status NOT IN ('STARTED', 'FINISHED')),
    CONSTRAINT job_no_start_time_before CHECK (start_time IS NULL OR status NOT IN ('PENDING', 'SKIPPED')),
    CONSTRAINT job_end_not_before_start CHECK (end_time >= start_time),
    CONSTRAINT job_progress_in_percent CHECK (progress BETWEEN 0 AND 100),
    CONSTRAINT job_complete_only_when_finished CHECK (progress < 100 OR status = 'FINISHED'),
    CONSTRAINT job_has_a_flow_or_is_external CHECK ((flow_command_id = '') = external)
);
-- "What changed since R" is a scan of this one.
CREATE INDEX job_revision ON job (revision);
-- Lists, newest first. FINISHED is what most jobs are, so the index by status leaves them out; it is also where the
-- unfinished flows of a dead coordinator are found.
CREATE INDEX job_create_time ON job (create_time, job_id);
CREATE INDEX job_status_unfinished ON job (status, create_time, job_id) WHERE status <> 'FINISHED';
CREATE INDEX job_correlation_id ON job (correlation_id);
CREATE UNIQUE INDEX job_request_id ON job (owner, request_id) WHERE request_id <> '';

-- Which jobs are about an entity. The names for display are in job.subjects.
CREATE TABLE job_subject_entity (
    entity_type entity_type      NOT NULL,
    entity_id   text COLLATE "C" NOT NULL,
    job_id      text COLLATE "C" NOT NULL REFERENCES job ON DELETE CASCADE,
    PRIMARY KEY (entity_type, entity_id, job_id)
);
CREATE INDEX job_subject_entity_job_id ON job_subject_entity (job_id);

-- No index on anything that changes, and room in the pages: ending a step is a heap-only update.
CREATE TABLE step (
    revision             bigint           NOT NULL,  -- of its last change; found through its job, whose revision it raises
    start_time           timestamptz,
    end_time             timestamptz,
    weight               double precision NOT NULL DEFAULT 1,
    number               integer          NOT NULL DEFAULT 0,
    progress             integer          NOT NULL DEFAULT 0,
    status               execution_status NOT NULL,
    step_type            text COLLATE "C" NOT NULL,
    step_id              text COLLATE "C" PRIMARY KEY,
    parent_step_id       text COLLATE "C" NOT NULL DEFAULT '',
    job_id               text COLLATE "C" NOT NULL REFERENCES job ON DELETE CASCADE,
    command_id           text COLLATE "C" NOT NULL DEFAULT '',
    correlation_id       text COLLATE "C" NOT NULL,
    external_id          text COLLATE "C" NOT NULL DEFAULT '',
    external_system_type external_system_type,
    span_id              text COLLATE "C" NOT NULL DEFAULT '',
    description          text             NOT NULL DEFAULT '',
    subjects             jsonb            NOT NULL DEFAULT '[]',  -- as job.subjects
    error                bytea,
    CONSTRAINT step_end_time_iff_ended CHECK ((end_time IS NULL) = (status IN ('PENDING', 'STARTED'))),
    CONSTRAINT step_start_time_if_begun CHECK (start_time IS NOT NULL OR status NOT IN ('STARTED', 'FINISHED')),
    CONSTRAINT step_no_start_time_before CHECK (start_time IS NULL OR status NOT IN ('PENDING', 'SKIPPED')),
    CONSTRAINT step_end_not_before_start CHECK (end_time >= start_time),
    CONSTRAINT step_progress_in_percent CHECK (progress BETWEEN 0 AND 100)
) WITH (fillfactor = 50);
CREATE INDEX step_job_id ON step (job_id);

-- The root of a flow (no parent) carries the flow's ownership: who may write it, and how far it has been written.
CREATE TABLE command (
    create_time        timestamptz      NOT NULL,
    end_time           timestamptz,
    epoch              bigint,           -- root only, like the next three: raised by each take-over
    sequence           bigint,           -- of the last commit
    commit_revision    bigint,           -- of the last commit, to answer its repetition
    commit_time        timestamptz,
    parameters_version integer          NOT NULL DEFAULT 1,
    end_attempts       integer          NOT NULL DEFAULT 0,
    status             command_status   NOT NULL,
    command_id         text COLLATE "C" PRIMARY KEY,
    flow_command_id    text COLLATE "C" NOT NULL,
    parent_command_id  text COLLATE "C" NOT NULL DEFAULT '',
    job_id             text COLLATE "C" NOT NULL REFERENCES job ON DELETE CASCADE,
    step_id            text COLLATE "C" NOT NULL DEFAULT '',
    coordinator_id     text COLLATE "C",  -- root only
    correlation_id     text COLLATE "C" NOT NULL,
    span_id            text COLLATE "C" NOT NULL DEFAULT '',
    traceparent        text COLLATE "C" NOT NULL DEFAULT '',
    node               text COLLATE "C" NOT NULL DEFAULT '',
    command_type       text COLLATE "C" NOT NULL,
    parameters         jsonb            NOT NULL DEFAULT '{}',
    plans              jsonb            NOT NULL DEFAULT '[]',  -- the sealed plan of each attempt
    error              bytea,
    CONSTRAINT command_end_time_iff_ended
        CHECK ((end_time IS NULL) = (status NOT IN ('ENDED_SUCCESSFULLY', 'ENDED_WITH_FAILURE', 'UNKNOWN'))),
    CONSTRAINT command_end_not_before_create CHECK (end_time >= create_time),
    CONSTRAINT command_root_names_itself CHECK ((parent_command_id = '') = (flow_command_id = command_id)),
    CONSTRAINT command_root_is_owned
        CHECK (num_nulls(coordinator_id, epoch, sequence, commit_revision, commit_time)
               = CASE WHEN parent_command_id = '' THEN 0 ELSE 5 END)
) WITH (fillfactor = 50);
CREATE INDEX command_job_id ON command (job_id);

-- Every begun leaf of a plan: the row comes first, the act second.
CREATE TABLE host_task (
    create_time     timestamptz      NOT NULL,
    end_time        timestamptz,
    deadline        timestamptz,
    attempt         integer          NOT NULL DEFAULT 1,
    cleared         boolean          NOT NULL DEFAULT false,
    kind            host_task_kind   NOT NULL,
    state           task_state,      -- NULL while under way
    result          task_result,
    entity_type     entity_type,
    entity_id       text COLLATE "C" NOT NULL DEFAULT '',
    task_id         text COLLATE "C" PRIMARY KEY,
    command_id      text COLLATE "C" NOT NULL,
    flow_command_id text COLLATE "C" NOT NULL,
    job_id          text COLLATE "C" NOT NULL REFERENCES job ON DELETE CASCADE,
    step_id         text COLLATE "C" NOT NULL DEFAULT '',
    host_id         text COLLATE "C" NOT NULL DEFAULT '',
    incarnation     text COLLATE "C" NOT NULL DEFAULT '',
    correlation_id  text COLLATE "C" NOT NULL,
    span_id         text COLLATE "C" NOT NULL DEFAULT '',
    path            text COLLATE "C" NOT NULL DEFAULT '',
    verb            text COLLATE "C" NOT NULL DEFAULT '',
    arguments       jsonb            NOT NULL DEFAULT '{}',
    answer          jsonb,
    error           bytea,
    CONSTRAINT host_task_end_time_iff_over
        CHECK ((end_time IS NOT NULL) = (coalesce(state, '') IN ('FINISHED', 'UNKNOWN'))),
    CONSTRAINT host_task_result_only_when_finished CHECK (result IS NULL OR coalesce(state, '') = 'FINISHED'),
    CONSTRAINT host_task_cleared_only_when_over CHECK (NOT cleared OR end_time IS NOT NULL),
    CONSTRAINT host_task_has_a_host_or_waits CHECK ((host_id = '') = (kind = 'WAIT')),
    CONSTRAINT host_task_entity_is_whole CHECK ((entity_type IS NULL) = (entity_id = ''))
) WITH (fillfactor = 50);
CREATE INDEX host_task_job_id ON host_task (job_id);
CREATE INDEX host_task_uncleared ON host_task (host_id) WHERE NOT cleared;

CREATE TABLE entity (
    revision             bigint           NOT NULL,  -- of the last change, observed columns included
    version              bigint           NOT NULL,  -- raised by every change of name, status or declared
    observed_number      bigint           NOT NULL DEFAULT 0,
    entity_type          entity_type      NOT NULL,
    entity_id            text COLLATE "C" NOT NULL,
    name                 text             NOT NULL DEFAULT '',
    status               text COLLATE "C" NOT NULL DEFAULT 'OK',
    observed_state       text COLLATE "C" NOT NULL DEFAULT '',
    observed_host_id     text COLLATE "C" NOT NULL DEFAULT '',
    observed_error       text             NOT NULL DEFAULT '',
    observed_incarnation text COLLATE "C" NOT NULL DEFAULT '',
    declared             jsonb            NOT NULL DEFAULT '{}',
    PRIMARY KEY (entity_type, entity_id),
    CONSTRAINT entity_version_is_positive CHECK (version > 0)
);
CREATE INDEX entity_revision ON entity (revision);

-- What an entity was before a command of a live flow changed it; goes with the flow's last commit.
CREATE TABLE entity_snapshot (
    number          integer          NOT NULL,  -- order of the change within the flow
    entity_type     entity_type      NOT NULL,
    entity_id       text COLLATE "C" NOT NULL,
    flow_command_id text COLLATE "C" NOT NULL REFERENCES command ON DELETE CASCADE,
    command_id      text COLLATE "C" NOT NULL,
    former          jsonb,                      -- {"name", "status", "declared"}; NULL: it did not exist
    PRIMARY KEY (flow_command_id, number)
);

-- Held by flows; a holder's row is fenced by the flow's epoch like everything else of it.
CREATE TABLE entity_lock (
    create_time     timestamptz      NOT NULL,
    exclusive       boolean          NOT NULL,
    entity_type     entity_type      NOT NULL,
    entity_id       text COLLATE "C" NOT NULL,
    flow_command_id text COLLATE "C" NOT NULL REFERENCES command ON DELETE CASCADE,
    job_id          text COLLATE "C" NOT NULL,
    command_id      text COLLATE "C" NOT NULL,
    reason          text             NOT NULL DEFAULT '',
    PRIMARY KEY (entity_type, entity_id, flow_command_id)
);
CREATE UNIQUE INDEX entity_lock_exclusive ON entity_lock (entity_type, entity_id) WHERE exclusive;
CREATE INDEX entity_lock_flow_command_id ON entity_lock (flow_command_id);

-- The audit log. Step events are derived from the steps, not stored.
CREATE TABLE event (
    time           timestamptz      NOT NULL,
    event_id       text COLLATE "C" NOT NULL,
    event_type     text COLLATE "C" NOT NULL,
    severity       severity         NOT NULL,
    job_id         text COLLATE "C" NOT NULL DEFAULT '',
    correlation_id text COLLATE "C" NOT NULL DEFAULT '',
    entity_type    entity_type,
    entity_id      text COLLATE "C" NOT NULL DEFAULT '',
    "user"         text             NOT NULL DEFAULT '',
    message        text             NOT NULL,
    PRIMARY KEY (time, event_id),
    CONSTRAINT event_entity_is_whole CHECK ((entity_type IS NULL) = (entity_id = ''))
);
-- Those of a flow are guarded by its sequence; others may be sent twice.
CREATE UNIQUE INDEX event_of_no_flow ON event (event_id) WHERE job_id = '';
CREATE INDEX event_job_id ON event (job_id) WHERE job_id <> '';
-- Events of a job are found through the job's correlation id.
CREATE INDEX event_correlation_id ON event (correlation_id) WHERE job_id = '' AND correlation_id <> '';
CREATE INDEX event_entity ON event (entity_type, entity_id) WHERE entity_id <> '';

-- Intents for the owner of a flow; a row goes with the commit that deals with it.
CREATE TABLE flow_request (
    revision        bigint           NOT NULL,
    create_time     timestamptz      NOT NULL,
    request_id      text COLLATE "C" PRIMARY KEY,
    flow_command_id text COLLATE "C" NOT NULL REFERENCES command ON DELETE CASCADE,
    job_id          text COLLATE "C" NOT NULL,
    kind            text COLLATE "C" NOT NULL,
    "user"          text             NOT NULL DEFAULT '',
    reason          text             NOT NULL DEFAULT ''
);
CREATE INDEX flow_request_flow_command_id ON flow_request (flow_command_id);

CREATE TABLE coordinator_lease (
    counter        bigint           NOT NULL,  -- changes while the coordinator lives
    update_time    timestamptz      NOT NULL,  -- for people; nobody decides by it
    released       boolean          NOT NULL DEFAULT false,
    coordinator_id text COLLATE "C" PRIMARY KEY,
    address        text             NOT NULL
);

-- Which coordinator listens to a host. A lost lease leaves its hosts unowned.
CREATE TABLE host_claim (
    create_time    timestamptz      NOT NULL,
    host_id        text COLLATE "C" PRIMARY KEY,
    coordinator_id text COLLATE "C" NOT NULL REFERENCES coordinator_lease ON DELETE CASCADE
);
CREATE INDEX host_claim_coordinator_id ON host_claim (coordinator_id);

-- What was deleted, so that a watch that resumes is told. One of a job or of an entity.
CREATE TABLE tombstone (
    revision    bigint           NOT NULL,
    time        timestamptz      NOT NULL,
    version     bigint           NOT NULL DEFAULT 0,  -- of the removed entity: one of the same id goes on from there
    job_id      text COLLATE "C",
    entity_type entity_type,
    entity_id   text COLLATE "C",
    CONSTRAINT tombstone_of_one_thing CHECK (num_nonnulls(job_id, entity_id) = 1),
    CONSTRAINT tombstone_entity_is_whole CHECK ((entity_type IS NULL) = (entity_id IS NULL))
);
CREATE INDEX tombstone_revision ON tombstone (revision);
CREATE UNIQUE INDEX tombstone_job_id ON tombstone (job_id) WHERE job_id IS NOT NULL;
CREATE UNIQUE INDEX tombstone_entity ON tombstone (entity_type, entity_id) WHERE entity_id IS NOT NULL;
