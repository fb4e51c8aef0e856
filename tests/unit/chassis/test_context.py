"""Correlation ids, and who calls."""

import asyncio

import pytest

from chassis import context
from chassis.context import CallContext, valid_correlation_id


@pytest.mark.parametrize("text", ["a", "A-Z_09", "x" * 50])
def test_a_well_formed_correlation_id_is_taken(text: str) -> None:
    assert valid_correlation_id(text)


@pytest.mark.parametrize("text", ["", "x" * 51, "a b", "a\n", "a\0", "é", "a.b", "٣"])  # noqa: RUF100
def test_anything_else_is_refused(text: str) -> None:
    assert not valid_correlation_id(text)


def test_outside_a_call_nobody_calls() -> None:
    assert context.current() == CallContext(correlation_id="", user="anonymous")


async def test_a_call_is_current_in_its_own_task_and_in_those_it_starts() -> None:
    async def current() -> CallContext:
        return context.current()

    async def call(name: str) -> CallContext:
        context.enter(CallContext(name, "joe"))
        await asyncio.sleep(0)
        return await asyncio.create_task(current())

    first, second = await asyncio.gather(call("first"), call("second"))
    assert (first.correlation_id, second.correlation_id) == ("first", "second")
    assert context.current().correlation_id == ""
