-- How far a coordinator has delivered the spans of its ended flows: what it still owed when it died, its heir delivers.

ALTER TABLE coordinator_lease ADD COLUMN traced_revision bigint NOT NULL DEFAULT -1;  -- below 0: it makes no spans
