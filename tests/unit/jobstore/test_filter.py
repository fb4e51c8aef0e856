"""Filters: what they say in SQL, what they say of a job, and how they are refused."""

import pytest

from chassis.errors import WaybillError
from jobstore.fields import Bindings
from jobstore.filter import Filter, Verdict, entity_filter, event_filter, job_filter
from waybill.v1 import jobs_pb2

JOB_ID = "0198c0de-0000-7000-8000-00000000000a"


def a_job(**fields: object) -> jobs_pb2.Job:
    defaults: dict[str, object] = {
        "job_id": JOB_ID,
        "status": jobs_pb2.EXECUTION_STATUS_STARTED,
        "command_type": "RemoveVm",
        "owner": "anna",
        "correlation_id": "req-1",
        "subjects": [jobs_pb2.Subject(entity_type=jobs_pb2.ENTITY_TYPE_VM, entity_id="vm-1", name="web")],
        "visible": True,
    }
    return jobs_pb2.Job(**(defaults | fields))  # type: ignore[arg-type]


def sql(filter: Filter) -> tuple[str, list[object]]:
    bind = Bindings()
    return filter.sql(bind), bind.values


def refusal(text: str) -> WaybillError:
    with pytest.raises(WaybillError) as caught:
        job_filter(text)
    return caught.value


# --- SQL -----------------------------------------------------------------------------------------------------------


def test_values_are_bound_and_never_part_of_the_text() -> None:
    text, values = sql(job_filter('owner = "x\'; DROP TABLE job; --" AND visible = true'))
    assert text == "job.owner = $1 AND job.visible = $2"
    assert values == ["x'; DROP TABLE job; --", True]


def test_an_empty_filter_of_jobs_is_all_visible_ones() -> None:
    assert sql(job_filter("  ")) == ("true AND job.visible = $1", [True])


def test_a_filter_that_mentions_visible_decides_about_it_itself() -> None:
    assert sql(job_filter("visible = false")) == ("job.visible = $1", [False])


def test_a_status_names_the_partial_index_unless_it_is_the_common_one() -> None:
    assert sql(job_filter("status = FAILED AND visible = true"))[0].startswith(
        "job.status = $1 AND job.status <> 'FINISHED'"
    )
    assert sql(job_filter("status = FINISHED AND visible = true"))[0] == "job.status = $1 AND job.visible = $2"


def test_unfinished_is_said_in_the_words_of_the_partial_index() -> None:
    assert (
        sql(job_filter("status != FINISHED AND visible = true"))[0] == "job.status <> 'FINISHED' AND job.visible = $1"
    )
    assert sql(job_filter("status != FAILED AND visible = true"))[0] == "job.status <> $1 AND job.visible = $2"


def test_not_equal_holds_where_there_is_nothing_to_compare() -> None:
    assert sql(event_filter('entity != "VM/vm-1"')) == (
        "(event.entity_type = $1 AND event.entity_id = $2) IS NOT TRUE",
        ["VM", "vm-1"],
    )


def test_an_entity_is_looked_up_among_the_subjects() -> None:
    text, values = sql(job_filter('entity = "STORAGE_DOMAIN/sd/with/slashes" AND visible = true'))
    assert "job_subject_entity" in text
    assert values == ["STORAGE_DOMAIN", "sd/with/slashes", True]


def test_placeholders_go_on_from_the_values_bound_before() -> None:
    bind = Bindings("first")
    assert entity_filter("status = OK AND host != 'h1'").sql(bind) == (
        "entity.status = $2 AND (entity.observed_host_id = $3) IS NOT TRUE"
    )
    assert bind.values == ["first", "OK", "h1"]


def test_quotes_may_be_escaped_inside_quotes() -> None:
    assert sql(entity_filter(r'name = "a \"b\" \\ c"'))[1] == [r'a "b" \ c']
    assert sql(entity_filter(r"name = 'it\'s'"))[1] == ["it's"]


def test_spaces_are_free() -> None:
    assert sql(entity_filter("status=OK   AND\tname!=\n'x'"))[1] == ["OK", "x"]


def test_ids_are_compared_in_lower_case() -> None:
    assert sql(job_filter(f"job_id = {JOB_ID.upper()} AND visible = true"))[1] == [JOB_ID, True]


# --- verdicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "status = STARTED",
        "status != FAILED",
        "command_type = RemoveVm AND owner = anna",
        "correlation_id = req-1",
        "entity = VM/vm-1",
        "entity != VM/vm-2",
        "entity != DISK/vm-1",
        f"job_id = {JOB_ID}",
    ],
)
def test_a_job_that_fits_matches(text: str) -> None:
    assert job_filter(text).verdict(a_job()) is Verdict.MATCHES


@pytest.mark.parametrize(
    "text",
    ["command_type = RunVm", "owner != anna", "correlation_id = req-2", "entity = VM/vm-2", "entity != VM/vm-1"],
)
def test_a_job_that_can_never_fit_is_never_sent(text: str) -> None:
    assert job_filter(text).verdict(a_job()) is Verdict.NEVER
    assert job_filter(f"status = FAILED AND {text}").verdict(a_job()) is Verdict.NEVER


def test_a_job_that_fits_but_for_its_status_has_left() -> None:
    assert job_filter("status = FAILED AND owner = anna").verdict(a_job()) is Verdict.LEFT
    assert job_filter("status != STARTED").verdict(a_job()) is Verdict.LEFT


def test_an_invisible_job_is_never_sent_unless_asked_for() -> None:
    assert job_filter("").verdict(a_job(visible=False)) is Verdict.NEVER
    assert job_filter("visible = false").verdict(a_job(visible=False)) is Verdict.MATCHES
    assert job_filter("visible != false").verdict(a_job(visible=False)) is Verdict.NEVER


def test_only_a_filter_over_the_status_can_be_left() -> None:
    assert job_filter("status = STARTED AND owner = anna").changing
    assert not job_filter("owner = anna").changing


def test_only_an_equality_demands_one_value() -> None:
    assert event_filter(f"severity = ERROR AND job_id = {JOB_ID}").demanded("job_id") == JOB_ID
    assert event_filter(f"job_id != {JOB_ID}").demanded("job_id") is None
    assert event_filter(f"job_id != {JOB_ID}").mentions("job_id")


def test_filters_that_say_the_same_are_equal() -> None:
    assert job_filter("status=STARTED") == job_filter('  status = "STARTED"')
    assert hash(job_filter("owner = a")) == hash(job_filter("owner = 'a'"))
    assert job_filter("owner = a") != job_filter("owner != a")


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("state = STARTED", "there is no field state; there are job_id, status, command_type"),
        ("status", "at the end: expected = or !="),
        ("status =", "at the end: expected a value"),
        ("status = ) x", "at character 10: expected a value"),
        ("status = STARTED status = FAILED", "at character 18: expected AND"),
        ("status = STARTED OR status = FAILED", "at character 18: expected AND; OR, NOT and parentheses come in"),
        ("status = STARTED AND", "at the end: expected the name of a field"),
        ("NOT status = STARTED", "at character 1: expected the name of a field; OR, NOT"),
        ("(status = STARTED)", "OR, NOT and parentheses come in a later release"),
        ("status < STARTED", "at character 8: expected = or !=; other comparisons come in a later release"),
        ("status = RUNNING", "status must be one of PENDING, STARTED, FINISHED"),
        ("status = EXECUTION_STATUS_STARTED", "status must be one of"),
        ("visible = yes", "visible must be true or false"),
        ("job_id = 7", "job_id must be a UUID"),
        ("entity = vm-1", "entity must be TYPE/id"),
        ("entity = CAR/c1", "with TYPE one of HOST, VM, DISK"),
        ("correlation_id = 'a b'", "correlation_id must be 1-50"),
        ("owner = 'open", "at character 9: expected a value"),
        ("owner = AND", "at character 9: expected a value"),
        (f"owner = {'x' * 257}", "owner must be at most 256 characters"),
        ("owner = 'a\0b'", "must not contain NUL"),
        (" " * 4_001, "must be at most 4000 characters"),
    ],
)
def test_a_bad_filter_is_refused_with_what_would_be_right(text: str, says: str) -> None:
    error = refusal(text)
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "FILTER_INVALID")
    [(field, description)] = error.violations
    assert field == "filter"
    assert says in description


def test_fields_of_one_kind_are_not_those_of_another() -> None:
    with pytest.raises(WaybillError, match="there is no field status; there are job_id, correlation_id, entity"):
        event_filter("status = STARTED")
    with pytest.raises(WaybillError, match="there are name, status, state, host"):
        entity_filter("owner = anna")
