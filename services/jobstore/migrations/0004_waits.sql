-- Flows that wait before they begin: for other jobs, and for locks; and intents that say more than who and why.

-- What a waiting job depends on; goes when it waits no longer. Without a foreign key to the job that is waited for:
-- one that is deleted meanwhile is told of, not forgotten.
CREATE TABLE job_dependency (
    flow_command_id text COLLATE "C" NOT NULL REFERENCES command ON DELETE CASCADE,
    depends_on      text COLLATE "C" NOT NULL,
    policy          text COLLATE "C" NOT NULL DEFAULT 'SKIP'
        CONSTRAINT job_dependency_policy_known CHECK (policy IN ('SKIP', 'RUN')),
    PRIMARY KEY (flow_command_id, depends_on)
);
CREATE INDEX job_dependency_depends_on ON job_dependency (depends_on);

-- A row may also be a place in the queue for a lock: then it holds nothing.
ALTER TABLE entity_lock ADD COLUMN waits_since bigint;       -- revision: the order of the queue; NULL: it is held
ALTER TABLE entity_lock ADD COLUMN waits_until timestamptz;  -- when its flow gives up
ALTER TABLE entity_lock ADD CONSTRAINT entity_lock_waits_whole
    CHECK ((waits_since IS NULL) = (waits_until IS NULL));
DROP INDEX entity_lock_exclusive;
CREATE UNIQUE INDEX entity_lock_exclusive ON entity_lock (entity_type, entity_id)
    WHERE exclusive AND waits_since IS NULL;
CREATE INDEX entity_lock_waits_since ON entity_lock (waits_since) WHERE waits_since IS NOT NULL;

ALTER TABLE flow_request ADD COLUMN arguments jsonb NOT NULL DEFAULT '{}';  -- by kind
