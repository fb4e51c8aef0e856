"""Page sizes, page tokens, and the order of trees."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from chassis.errors import WaybillError
from jobstore.display import in_display_order, plan_order
from jobstore.queries.paging import Paging, microseconds, time_of
from waybill.v1.jobs_pb2 import Job
from waybill.v1.jobstore_pb2 import ListJobsRequest, ListStepsRequest

JOBS = [Job(job_id=str(number)) for number in range(4)]
KEYS = [(number, str(number)) for number in range(4)]


def a_token(**fields: object) -> str:
    request = ListJobsRequest(page_size=3, **fields)  # type: ignore[arg-type]
    return Paging(request, int, str).page(JOBS, KEYS).next_page_token


def test_a_token_opens_to_the_key_of_the_last_item() -> None:
    paging = Paging(ListJobsRequest(filter="owner = x", page_token=a_token(filter="owner = x")), int, str)
    assert paging.after == (2, "2")


def test_the_last_page_has_no_token() -> None:
    page = Paging(ListJobsRequest(page_size=4), int, str).page(JOBS, KEYS)
    assert (page.items, page.next_page_token) == (JOBS, "")


def test_the_size_may_change_between_pages() -> None:
    assert Paging(ListJobsRequest(page_size=1, page_token=a_token()), int, str).after == (2, "2")


@pytest.mark.parametrize(("asked", "given"), [(0, 50), (7, 7), (1_000, 1_000), (1_001, 1_000)])
def test_sizes(asked: int, given: int) -> None:
    assert Paging(ListJobsRequest(page_size=asked), int, str).size == given


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(WaybillError, match="page_size"):
        Paging(ListJobsRequest(page_size=-1), int, str)


@pytest.mark.parametrize("token", ["x", "🙂", "AAAA", "====", a_token()[:-1], a_token(filter="owner = x")])
def test_a_token_of_something_else_is_refused(token: str) -> None:
    with pytest.raises(WaybillError) as caught:
        Paging(ListJobsRequest(page_token=token), int, str)
    assert caught.value.reason == "PAGE_TOKEN_INVALID"


def test_a_token_of_another_call_is_refused() -> None:
    with pytest.raises(WaybillError, match="page_token"):
        Paging(ListStepsRequest(page_token=a_token()), int, str)


def test_items_that_are_too_large_for_a_message_wait_for_the_next_page() -> None:
    large = [Job(job_id=str(number), description="x" * 2_000_000) for number in range(4)]
    page = Paging(ListJobsRequest(), int, str).page(large, KEYS)
    assert len(page.items) == 1
    assert Paging(ListJobsRequest(page_token=page.next_page_token), int, str).after == (0, "0")


def test_times_survive_a_token_to_the_microsecond() -> None:
    time = datetime(2026, 11, 21, 12, 0, 0, 123_457, tzinfo=UTC)
    assert time_of(microseconds(time)) == time


def shown(*items: tuple[str, str, int]) -> str:
    ordered = in_display_order(
        items, name=lambda item: item[0], parent=lambda item: item[1], number=lambda item: item[2]
    )
    return "".join(item[0] for item in ordered)


def test_parents_come_before_children_and_siblings_by_number() -> None:
    assert shown(("c", "b", 1), ("d", "b", 0), ("b", "", 1), ("a", "", 0), ("e", "", 2)) == "abdce"


def test_one_whose_parent_is_not_there_counts_as_a_root() -> None:
    assert shown(("b", "elsewhere", 1), ("a", "elsewhere", 0), ("c", "b", 0)) == "abc"


def test_a_very_deep_tree_is_walked_all_the_same() -> None:
    chain = [(f"{number} ", f"{number - 1} " if number else "", 0) for number in range(5_000)]
    assert shown(*reversed(chain)) == "".join(name for name, _, _ in chain)


def test_places_in_a_plan_are_ordered_by_number_not_by_letter() -> None:
    assert sorted(["1:10", "1:2", "2:", "1:", "1:2.1"], key=plan_order) == ["1:", "1:2", "1:2.1", "1:10", "2:"]
