-- Jobs that other systems report: what they have besides a job's columns.

CREATE TABLE external_job (
    beats             bigint  NOT NULL DEFAULT 0,  -- how often it was heard of: who watches for silence compares it
    heartbeat_seconds integer,                     -- silence after which it ends UNKNOWN; NULL: never, or it has ended
    steps             integer NOT NULL DEFAULT 0,  -- all of them; counted, for a large job is not to be read for a small change
    top_steps         integer NOT NULL DEFAULT 0,  -- those with no step above
    finished_steps    integer NOT NULL DEFAULT 0,
    job_id            text COLLATE "C" PRIMARY KEY REFERENCES job ON DELETE CASCADE,
    CONSTRAINT external_job_heartbeat_is_positive CHECK (heartbeat_seconds > 0),
    CONSTRAINT external_job_counts_fit CHECK (0 <= finished_steps AND finished_steps <= steps AND top_steps <= steps)
);
CREATE INDEX external_job_heartbeat ON external_job (job_id) WHERE heartbeat_seconds IS NOT NULL;

-- The steps below a step of an external job; those of flows have a command, and cost nothing here.
CREATE INDEX step_external ON step (parent_step_id, number) WHERE command_id = '' AND parent_step_id <> '';
