-- Children that show as jobs of their own: what a job is a part of, and which command it shows.

ALTER TABLE job ADD COLUMN parent_job_id text COLLATE "C" NOT NULL DEFAULT '';  -- empty: of none
ALTER TABLE job ADD COLUMN command_id text COLLATE "C" NOT NULL DEFAULT '';     -- empty: that of flow_command_id
ALTER TABLE job ADD CONSTRAINT job_part_is_whole CHECK ((parent_job_id = '') = (command_id = ''));
-- Of a flow; those of no child are not in it, and pay nothing for it.
CREATE INDEX job_part_of_flow ON job (flow_command_id) WHERE parent_job_id <> '';
