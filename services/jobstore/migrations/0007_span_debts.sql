-- Spans that dead coordinators owed: kept until whoever took over has delivered them, and not only until it took over.

CREATE TABLE span_debt (
    coordinator_id  text COLLATE "C" PRIMARY KEY,  -- the dead one's, which its ended flows still bear
    traced_revision bigint           NOT NULL,     -- up to there it had delivered
    heir_id         text COLLATE "C" NOT NULL      -- who delivers the rest; once that has no lease, who claims next
);
