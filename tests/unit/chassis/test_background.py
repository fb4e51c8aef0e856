"""Whose context work in the background has."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, copy_context

from chassis import context
from chassis.background import Background
from chassis.context import CallContext

process: ContextVar[str] = ContextVar("process")


async def test_work_belongs_to_the_background_s_owner_not_to_the_call_that_gave_the_occasion() -> None:
    async def look() -> tuple[str, str]:
        return process.get(), context.current().correlation_id

    process.set("coordinator")
    async with Background() as background:

        def during_a_call() -> asyncio.Task[tuple[str, str]]:
            context.enter(CallContext("corr-1", "ada"))
            return background.start(look(), "look")

        assert await copy_context().run(during_a_call) == ("coordinator", "")
