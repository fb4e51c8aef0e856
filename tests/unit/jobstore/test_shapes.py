"""How rows travel to Postgres."""

from __future__ import annotations

import pytest

from jobstore.journal.shapes import Shape, carried, columns_of


def test_rows_travel_a_column_at_a_time() -> None:
    assert columns_of([("a", "1"), ("b", "2"), ("c", "3")]) == ["a\x1fb\x1fc", "1\x1f2\x1f3"]


@pytest.mark.parametrize(
    ("column", "text"),
    [([], ""), ([""], ""), (["", ""], "\x1f"), (["a\x1fb", "c"], "a\u241fb\x1fc"), (["\x1f"], "\u241f")],
)
def test_no_value_gets_a_column_out_of_step(column: list[str], text: str) -> None:
    assert carried(column) == text


def test_a_shape_says_what_its_columns_are() -> None:
    shape = Shape("job_id text, error bytea?, plans jsonb, epoch bigint?")
    assert shape.names == "job_id, error, plans, epoch"
    assert shape.values == "u.job_id, u.error, u.plans, u.epoch"
    assert shape.rows(3) == (
        "(SELECT coalesce(job_id, '') AS job_id, decode(nullif(error, ''), 'hex') AS error, "
        "coalesce(plans, '')::jsonb AS plans, nullif(epoch, '')::bigint AS epoch "
        "FROM ROWS FROM (string_to_table($3::text, E'\\x1f'), string_to_table($4::text, E'\\x1f'), "
        "string_to_table($5::text, E'\\x1f'), string_to_table($6::text, E'\\x1f')) "
        "AS carried (job_id, error, plans, epoch)) AS u"
    )
