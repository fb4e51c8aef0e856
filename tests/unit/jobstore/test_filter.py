"""Filters: what they say in SQL, what they say of a job, and how they are refused."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from chassis.errors import WaybillError, failed_precondition, for_the_wire
from jobstore.search.fields import ENTITIES, EVENTS, FILTERED, JOBS, Changes, filter_field_message
from jobstore.search.filter import MOST_AMONG, Filter, Verdict, entity_filter, event_filter, job_filter
from jobstore.search.grammar import MAX_DEPTH, MAX_TERMS
from jobstore.search.kinds import Bindings, Pattern
from waybill.v1 import jobs_pb2

JOB_ID = "0198c0de-0000-7000-8000-00000000000a"
NOON = 1_795_348_800  # 2026-11-22T12:00:00Z


@dataclass
class Seen:
    job: jobs_pb2.Job
    hosts: Collection[str] = ()


def a_job(*, hosts: Collection[str] = (), **fields: object) -> Seen:
    defaults: dict[str, object] = {
        "job_id": JOB_ID,
        "status": jobs_pb2.EXECUTION_STATUS_STARTED,
        "command_type": "RemoveVm",
        "categories": ["vm", "storage"],
        "owner": "anna",
        "correlation_id": "req-1",
        "description": "Removing VM Web-1 (50% done)",
        "subjects": [
            jobs_pb2.Subject(entity_type=jobs_pb2.ENTITY_TYPE_VM, entity_id="vm-1", name="web"),
            jobs_pb2.Subject(entity_type=jobs_pb2.ENTITY_TYPE_HOST, entity_id="host-1"),
        ],
        "create_time": Timestamp(seconds=NOON),
        "start_time": Timestamp(seconds=NOON + 1),
        "update_time": Timestamp(seconds=NOON + 1),
        "progress": 40,
        "priority": -3,
        "visible": True,
    }
    return Seen(jobs_pb2.Job(**(defaults | fields)), hosts)  # type: ignore[arg-type]


def a_failed_job() -> Seen:
    ended = Timestamp(seconds=NOON + 91, nanos=500_000_000)
    error = failed_precondition("LOCKED", "VM vm-1 is locked").to_status()
    return a_job(status=jobs_pb2.EXECUTION_STATUS_FAILED, end_time=ended, error=error)


def sql(filter: Filter) -> tuple[str, list[object]]:
    bind = Bindings()
    return filter.sql(bind), bind.values


def shown(text: str) -> str:
    """What was understood."""
    return str(job_filter(f"visible = true AND ({text})")).removeprefix("(visible = True AND ").removesuffix(")")


def refusal(text: str) -> WaybillError:
    with pytest.raises(WaybillError) as caught:
        job_filter(text)
    return caught.value


# --- the grammar ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("owner = a AND owner = b", "(owner = 'a' AND owner = 'b')"),
        ("owner = a OR owner = b AND owner = c", "((owner = 'a' OR owner = 'b') AND owner = 'c')"),
        ("owner = a AND owner = b OR owner = c", "(owner = 'a' AND (owner = 'b' OR owner = 'c'))"),
        ("owner = a owner = b OR owner = c", "(owner = 'a' AND (owner = 'b' OR owner = 'c'))"),
        ("(owner = a AND owner = b) OR owner = c", "((owner = 'a' AND owner = 'b') OR owner = 'c')"),
        ("NOT owner = a", "NOT owner = 'a'"),
        ("-owner:a", "NOT owner = 'a'"),
        ("NOT owner != a", "owner = 'a'"),
        ("NOT (owner = a OR -owner = b)", "(NOT owner = 'a' AND owner = 'b')"),
        ("NOT (owner = a owner = b)", "(NOT owner = 'a' OR NOT owner = 'b')"),
        ("owner = (a OR b)", "(owner = 'a' OR owner = 'b')"),
        ("owner != (a OR NOT b)", "(NOT owner = 'a' OR owner = 'b')"),
        ("priority > (-5 OR 3)", "(priority > -5 OR priority > 3)"),
        ("has(error)", "error * None"),
        ("has( error )", "error * None"),
        ("error:*", "error * None"),
        ("-has(host)", "NOT host * None"),
        ("owner = 'a*'", "owner like ('a', '')"),
        (r"owner = 'a\*'", "owner = 'a*'"),
        (r'owner = "a \"b\" \\ c"', r"""owner = 'a "b" \\ c'"""),
        ("ANDy", "description : 'ANDy'"),
        ("web -'the end'", "(description : 'web' AND NOT description : 'the end')"),
        ("type:x", "command_type = 'x'"),
        ("entity:VM/vm-1", "entity = ('VM', 'vm-1')"),
        ("entity = 'VM/*'", "entity like ('VM', ('', ''))"),
        ("create_time>2026-11-22T13:00:00+01:00", f"create_time > {Timestamp(seconds=NOON).ToDatetime()!r}"),
        ("duration >= 1h1m1.5s", "duration >= datetime.timedelta(seconds=3661, microseconds=500000)"),
    ],
)
def test_a_filter_means(text: str, means: str) -> None:
    assert shown(text).replace(", tzinfo=datetime.timezone.utc", "") == means


def test_spaces_are_free() -> None:
    assert sql(entity_filter("status=OK   AND\tstate!=\n'x'"))[1] == ["OK", "x"]


def test_filters_that_say_the_same_are_equal() -> None:
    assert job_filter("status=STARTED") == job_filter('  status = "STARTED"')
    assert str(job_filter("-type = a")) == str(job_filter("command_type != 'a'"))
    assert hash(job_filter("owner = a")) == hash(job_filter("owner = 'a'"))
    assert job_filter("owner = a") != job_filter("owner != a")


# --- SQL -----------------------------------------------------------------------------------------------------------


def test_values_are_bound_and_never_part_of_the_text() -> None:
    evil = "x'; DROP TABLE job; --"
    fields = ["owner", "command_type", "category", "host", "description", "error.reason"]
    text = " AND ".join(f'{field}:"{evil}"' for field in fields)
    condition, values = sql(job_filter(f'{text} AND "{evil}*" AND entity:"VM/{evil}" AND visible = true'))
    assert "DROP" not in condition
    assert sum("DROP" in str(value) or "drop" in str(value) for value in values) == len(fields) + 3  # host: two places


def test_an_empty_filter_of_jobs_is_all_visible_ones() -> None:
    assert sql(job_filter("  ")) == ("job.visible = $1", [True])


def test_a_filter_that_mentions_visible_decides_about_it_itself() -> None:
    assert sql(job_filter("visible = false")) == ("job.visible = $1", [False])
    assert sql(job_filter("visible = false OR owner = a"))[0] == "(job.visible = $1 OR job.owner = $2)"


def test_a_status_names_the_partial_index_unless_it_is_the_common_one() -> None:
    assert sql(job_filter("status = FAILED AND visible = true"))[0].startswith(
        "job.status = $1 AND job.status <> 'FINISHED'"
    )
    assert sql(job_filter("status = FINISHED AND visible = true"))[0] == "job.status = $1 AND job.visible = $2"


def test_unfinished_is_said_in_the_words_of_the_partial_index() -> None:
    assert (
        sql(job_filter("status != FINISHED AND visible = true"))[0] == "job.status <> 'FINISHED' AND job.visible = $1"
    )
    assert sql(job_filter("NOT status = FAILED AND visible = true"))[0] == "job.status <> $1 AND job.visible = $2"


def test_the_opposite_holds_where_there_is_nothing_to_compare() -> None:
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


def test_a_pattern_says_the_same_in_sql_as_in_python() -> None:
    pattern = Pattern(("5%", "_", "\\"))
    assert pattern.like() == r"5\%%\_%\\"
    assert pattern.matches("5% or a_b\\")
    assert not pattern.matches("5% or b\\")
    assert not Pattern(("ab", "ba")).matches("aba")  # no part may be used twice
    assert Pattern(("", "b", "b", "")).matches("abb")
    assert not Pattern(("", "b", "b", "")).matches("ab")


def test_ids_are_compared_in_lower_case() -> None:
    assert sql(job_filter(f"job_id = {JOB_ID.upper()} AND visible = true"))[1] == [JOB_ID, True]
    assert sql(job_filter("job_id = '0198C*' AND visible = true"))[1] == ["0198c%", True]


# --- verdicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "status = STARTED",
        "status != FAILED",
        "command_type = RemoveVm AND owner = anna",
        "type = 'Remove*'",
        "category = storage",
        "category != network",
        "correlation_id = req-1",
        "entity = VM/vm-1",
        "entity:'VM/*-1' AND has(entity)",
        "entity != VM/vm-2",
        "entity != DISK/vm-1",
        "host:host-1",
        "host = 'host-*' AND host != host-2",
        f"job_id = {JOB_ID}",
        "job_id = '*0a'",
        "create_time = 2026-11-22T12:00:00Z",
        "create_time < 2026-11-22T12:00:00.000001Z AND start_time > 2026-11-22T12:00:00Z",
        "NOT end_time > 2000-01-01T00:00:00Z AND NOT end_time < 2000-01-01T00:00:00Z",
        "-has(duration)",
        "progress >= 40 AND progress < 41",
        "priority = -3",
        "external = false",
        "web-1 REMOVING '50% D'",
        "description:'vm*done'",
        "description != 'removing*'",
        "-has(error) AND error.reason != LOCKED",
        "-has(restarted_from)",
    ],
)
def test_a_job_that_fits_matches(text: str) -> None:
    assert job_filter(text).verdict(a_job()) is Verdict.MATCHES


@pytest.mark.parametrize(
    "text",
    [
        "has(error)",
        "error:*",
        "error.reason = LOCKED",
        "error.reason = 'LO*'",
        "duration = 90.5s",
        "duration > 1m30s AND duration <= 90500ms",
        "status = (ABORTED OR FAILED)",
        "end_time:*",
    ],
)
def test_a_job_that_failed_can_be_found_by_it(text: str) -> None:
    assert job_filter(text).verdict(a_failed_job()) is Verdict.MATCHES
    assert job_filter(text).verdict(a_job()) is Verdict.LEFT, "one that runs may yet"
    assert job_filter(f"NOT ({text})").verdict(a_job()) is Verdict.MATCHES


def test_a_host_that_a_job_has_reached_counts_as_its_own() -> None:
    assert job_filter("host = host-7").verdict(a_job(hosts={"host-7"})) is Verdict.MATCHES
    assert job_filter("host = host-7").verdict(a_job()) is Verdict.LEFT, "it may reach it yet"


@pytest.mark.parametrize(
    "text",
    [
        "command_type = RunVm",
        "owner != anna",
        "correlation_id = req-2",
        "entity = VM/vm-2",
        "entity != VM/vm-1",
        "category = network",
        "create_time > 2026-11-22T12:00:00Z",
        "sleeping",
        "external = true",
    ],
)
def test_a_job_that_can_never_fit_is_never_sent(text: str) -> None:
    assert job_filter(text).verdict(a_job()) is Verdict.NEVER
    assert job_filter(f"status = FAILED AND {text}").verdict(a_job()) is Verdict.NEVER
    assert job_filter(f"owner = nobody OR {text}").verdict(a_job()) is Verdict.NEVER
    assert job_filter(f"status = FAILED OR {text}").verdict(a_job()) is Verdict.LEFT


def test_a_job_that_fits_but_for_its_status_has_left() -> None:
    assert job_filter("status = FAILED AND owner = anna").verdict(a_job()) is Verdict.LEFT
    assert job_filter("status != STARTED").verdict(a_job()) is Verdict.LEFT


def test_an_invisible_job_is_never_sent_unless_asked_for() -> None:
    assert job_filter("").verdict(a_job(visible=False)) is Verdict.NEVER
    assert job_filter("visible = false").verdict(a_job(visible=False)) is Verdict.MATCHES
    assert job_filter("visible != false").verdict(a_job(visible=False)) is Verdict.NEVER
    assert job_filter("has(visible)").verdict(a_job(visible=False)) is Verdict.MATCHES


def test_what_a_filter_names_decides_when_a_job_may_leave() -> None:
    assert job_filter("owner = anna").changes is Changes.NEVER
    assert job_filter("has(error) AND owner = anna").changes is Changes.WITH_STATUS
    assert job_filter("status = STARTED OR progress > 5").changes is Changes.ANY_TIME


def test_only_an_equality_that_must_hold_demands_one_value() -> None:
    assert event_filter(f"severity = ERROR AND (user = x OR user = y) AND job_id = {JOB_ID}").demanded("job_id") == (
        JOB_ID
    )
    for text in (f"job_id != {JOB_ID}", f"job_id = {JOB_ID} OR severity = ERROR", "job_id = '0198*'", "has(job_id)"):
        assert event_filter(text).demanded("job_id") is None
        assert event_filter(text).mentions("job_id")


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "state = STARTED",
            "at character 1: there is no field state; there are job_id, status, command_type (or type)",
        ),
        ("owner = a AND has(colour)", "at character 19: there is no field colour; there are job_id"),
        ("a(b)", "at character 1: there is no function a; there is has(field)"),
        ("has(error", "at the end: expected )"),
        ("has()", "at character 5: expected the name of a field"),
        ("status", "at character 1: expected = != : after status; in quotes it is a word to search for"),
        ("status =", "at the end: expected a value"),
        ("status = ) x", "at character 10: expected a value"),
        ("status == STARTED", "at character 9: expected a value"),
        ("status = STARTED AND", "at the end: expected the name of a field, or a word"),
        ("OR status = STARTED", "at character 1: expected the name of a field"),
        ("status = STARTED and owner = anna", "at character 18: AND is written in capitals"),
        ("owner = (a or b)", "at character 12: OR is written in capitals"),
        ("(status = STARTED", "at the end: expected AND, OR or )"),
        ("status = STARTED)", "at character 17: expected AND, OR or another term"),
        ("NOT NOT owner = a", "at character 5: expected the name of a field"),
        ("status < STARTED", "at character 8: status cannot be compared by <; = != : can be"),
        ("error = x", "at character 7: error cannot be compared by =; : can be"),
        ("error:x", "at character 7: expected for error * (it is there), no value; error.reason can be compared"),
        ("status = RUNNING", "at character 10: expected for status one of PENDING, STARTED, FINISHED"),
        ("status = EXECUTION_STATUS_STARTED", "expected for status one of"),
        ("status = 'FIN*'", "expected for status one of"),
        ("visible = yes", "expected for visible true or false"),
        ("job_id = 7", "expected for job_id a UUID"),
        ("job_id = 'x*'", "expected for job_id a UUID"),
        ("progress > half", "at character 12: expected for progress a whole number"),
        ("progress > 2147483648", "expected for progress a whole number"),
        ("create_time > yesterday", "at character 15: expected for create_time a time like 2026-11-22T08:00:00Z"),
        ("create_time > 2026-11-22T08:00:00", "expected for create_time a time like"),
        ("create_time > 2026-13-22T08:00:00Z", "expected for create_time a time like"),
        ("create_time > 0001-01-01T00:00:00+14:00", "expected for create_time a time like"),
        ("create_time > 2026-11-22T08:00:00.1234567Z", "expected for create_time a time like"),
        ("duration > 5", "expected for duration a duration like 20s"),
        ("duration > 0.0001ms", "expected for duration a duration like 20s"),
        ("entity = vm-1", "expected for entity TYPE/id"),
        ("entity = CAR/c1", "with TYPE one of HOST, VM, DISK"),
        ("entity = '*/c1'", "expected for entity TYPE/id"),
        ("correlation_id = 'a b'", "expected for correlation_id 1-50"),
        ("owner = 'open", "at character 9: expected a value"),
        ("'owner' = x", "at character 9: the name of a field stands before an operator, without quotes"),
        ("10:30", "at character 1: expected the name of a field, not 10; a word to search for stands in quotes"),
        ("owner = AND", "at character 9: expected a value"),
        (f"owner = {'x' * 257}", "expected for owner a text of at most 256 characters"),
        ("owner = 'a\0b'", "at character 11: must not contain NUL"),
        (" " * 4_001, "must be at most 4000 characters"),
        ("(" * (MAX_DEPTH + 1) + "a", "nested deeper than 16"),
        ("owner = " + "(" * (MAX_DEPTH + 1) + "a", "nested deeper than 16"),
        ("a " * (MAX_TERMS + 1), f"at character {2 * MAX_TERMS + 1}: has more than 100 terms"),
        (f"owner = ({'a OR ' * MAX_TERMS} b)", "has more than 100 terms"),
        (f"host:({'a OR ' * MOST_AMONG} b)", "at the end: has more than 20 terms over fields that have many values"),
    ],
)
def test_a_bad_filter_is_refused_with_the_place_and_what_would_be_right(text: str, says: str) -> None:
    error = refusal(text)
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "FILTER_INVALID")
    [(field, description)] = error.violations
    assert field == "filter"
    assert says in description
    if description.startswith("at character"):
        assert error.metadata["position"] == re.findall(r"\d+", description)[0]


def test_the_largest_filter_that_is_taken() -> None:
    assert len(list(job_filter("a " * MAX_TERMS).tree.comparisons())) == MAX_TERMS + 1
    assert job_filter("(" * MAX_DEPTH + "a" + ")" * MAX_DEPTH)


def test_all_known_fields_reach_who_named_another() -> None:
    _, [(_, details)] = for_the_wire(refusal("colour = red"))
    assert isinstance(details, bytes)
    [(_, description)] = WaybillError.from_status(status_pb2.Status.FromString(details)).violations
    assert description.endswith(str(JOBS))


def test_fields_of_one_kind_are_not_those_of_another() -> None:
    with pytest.raises(WaybillError, match="there is no field status; there are job_id, correlation_id, entity"):
        event_filter("status = STARTED")
    with pytest.raises(WaybillError, match="there are entity_id, name, status, state, host"):
        entity_filter("owner = anna")


# --- the published list --------------------------------------------------------------------------------------------


def test_the_contract_names_every_field() -> None:
    proto = (Path(__file__).parents[3] / "protos" / "waybill" / "v1" / "jobstore.proto").read_text()
    for request, published in (("ListJobs", JOBS), ("ListEvents", EVENTS), ("ListEntities", ENTITIES)):
        comment = proto.partition(f"message {request}Request {{")[2].partition("string filter")[0]
        said = re.sub(r"\s*//\s*", " ", comment).partition("Over ")[2].partition(". ")[0]
        assert said.strip(" .\n").replace(' ("VM/…")', "") == str(published), said


def test_every_field_is_told_with_all_that_one_must_know_to_use_it() -> None:
    for published in FILTERED.values():
        for field in published:
            told = filter_field_message(field)
            assert told.description.endswith(".")
            assert told.value_format
            assert told.operators
    assert list(filter_field_message(JOBS["status"]).values)[:2] == ["PENDING", "STARTED"]
    assert filter_field_message(JOBS["type"]).alias == "type"
    assert filter_field_message(JOBS["host"]).changing
    assert filter_field_message(JOBS["host"]).repeated
