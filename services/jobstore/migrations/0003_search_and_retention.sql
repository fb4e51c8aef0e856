-- For filters: the reason that a stored error gives. For retention: what a deleted job leaves behind.

-- The fields of a message of protobuf that are messages, texts or bytes themselves and have this number, in order.
-- What cannot be read ends the list: a filter must not fail over one row.
CREATE FUNCTION protobuf_fields(message bytea, wanted integer) RETURNS SETOF bytea
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    size  integer := octet_length(message);
    place integer := 0;
    key   bigint;
    value bigint;  -- of a varint: itself; of bytes: their length
BEGIN
    WHILE place < size LOOP
        SELECT v.value, v.next INTO key, place FROM protobuf_varint(message, place) AS v;
        EXIT WHEN key IS NULL;
        CASE key & 7
            WHEN 0, 2 THEN
                SELECT v.value, v.next INTO value, place FROM protobuf_varint(message, place) AS v;
                EXIT WHEN value IS NULL;
                IF key & 7 = 2 THEN
                    EXIT WHEN value > size - place;
                    IF key >> 3 = wanted THEN
                        RETURN NEXT substring(message FROM place + 1 FOR value::integer);
                    END IF;
                    place := place + value::integer;
                END IF;
            WHEN 1 THEN
                place := place + 8;
            WHEN 5 THEN
                place := place + 4;
            ELSE
                EXIT;
        END CASE;
    END LOOP;
END
$$;

-- The number that stands at a place, and where it ends; NULL: none does, or one of more than 56 bits, whose sign is all
-- that a code has of it.
CREATE FUNCTION protobuf_varint(message bytea, place integer, OUT value bigint, OUT next integer)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    size  integer := octet_length(message);
    shift integer := 0;
    part  integer;
BEGIN
    value := 0;
    next := place;
    LOOP
        IF next >= size THEN
            value := NULL;
            RETURN;
        END IF;
        part := get_byte(message, next);
        next := next + 1;
        IF shift < 56 THEN
            value := value | ((part & 127)::bigint << shift);
        END IF;
        EXIT WHEN part < 128;
        shift := shift + 7;
    END LOOP;
END
$$;

-- The reason that a google.rpc.Status gives in its ErrorInfo; NULL: it gives none.
CREATE FUNCTION error_reason(error bytea) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT (SELECT convert_from(reason, 'UTF8')
            FROM protobuf_fields((SELECT v FROM protobuf_fields(detail, 2) AS v LIMIT 1), 1) AS reason LIMIT 1)
    FROM protobuf_fields(error, 3) AS detail
    WHERE (SELECT v FROM protobuf_fields(detail, 1) AS v LIMIT 1) = 'type.googleapis.com/google.rpc.ErrorInfo'::bytea
    LIMIT 1
$$;

-- A deleted job's request id stays used for as long as its tombstone is kept, so that a request that is repeated late
-- is not carried out again.
ALTER TABLE tombstone ADD COLUMN owner text COLLATE "C";
ALTER TABLE tombstone ADD COLUMN request_id text COLLATE "C";  -- NULL: it had none
CREATE INDEX tombstone_request_id ON tombstone (owner, request_id) WHERE request_id IS NOT NULL;
-- Those of jobs are purged after a time; those of entities, whose versions go on, are not.
CREATE INDEX tombstone_of_job ON tombstone (revision) WHERE job_id IS NOT NULL;
