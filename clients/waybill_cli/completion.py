"""What the shell offers on Tab. It asks the running services, briefly, and offers nothing when they are away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import typer

from waybill_cli.session import session_of
from waybill_client import WaybillClient, WaybillError, status_word
from waybill_client.words import plain

Offers: TypeAlias = list[tuple[str, str]]  # values, and what is said about each

_SECONDS = 1.0
_JOBS = 20


def command_types(context: typer.Context, incomplete: str) -> Offers:
    """Names of command types."""

    async def ask(client: WaybillClient) -> Offers:
        return [(each.name, each.description) for each in await client.list_command_types()]

    return _beginning_with(incomplete, _offers(context, ask))


def parameters(context: typer.Context, incomplete: str) -> Offers:
    """`name=` for each parameter of the command type that was typed before."""

    async def ask(client: WaybillClient) -> Offers:
        types = {each.name: each for each in await client.list_command_types()}
        schema = plain(types[context.params["command_type"]].parameters_schema)
        return [(f"{name}=", each.get("description", "")) for name, each in schema["properties"].items()]

    return _beginning_with(incomplete, _offers(context, ask))


def job_ids(context: typer.Context, incomplete: str) -> Offers:
    """The newest jobs."""

    async def ask(client: WaybillClient) -> Offers:
        offers: Offers = []
        async for job in client.list_jobs(page_size=_JOBS):
            offers.append((job.job_id, f"{status_word(job.status)} {job.description}"))
            if len(offers) == _JOBS:
                break
        return offers

    return _beginning_with(incomplete, _offers(context, ask))


def _offers(context: typer.Context, question: Callable[[WaybillClient], Awaitable[Offers]]) -> Offers:
    async def ask() -> Offers:
        async with session_of(context).client() as client, asyncio.timeout(_SECONDS):
            return await question(client)

    try:
        return asyncio.run(ask())
    except (WaybillError, TimeoutError, KeyError):
        return []


def _beginning_with(incomplete: str, offers: Offers) -> Offers:
    return [offer for offer in offers if offer[0].startswith(incomplete)]
