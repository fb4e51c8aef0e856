"""What a host takes in, and what it refuses.

A start goes through these, in this order; the first that refuses answers it, and nothing of it is kept:

| check | refusal |
| --- | --- |
| known, or coming in: the same again is a success, if its sender owns the flow; while it waits it | |
| takes on the priority that it comes with | TASK_DIFFERS, STALE_EPOCH |
| made for this memory of the host | INCARNATION_CHANGED |
| the driver has the verb, and it is of the asked kind | VERB_UNKNOWN |
| its arguments fit | ARGUMENTS_INVALID |
| there is room in the queue | QUEUE_FULL, to be sent again |
| the host would do it now (generation of the object) | the driver's: GENERATION_MISMATCH … |
| not cleared, not from an old owner: together with writing it down | ALREADY_CLEARED, STALE_EPOCH |

If the ledger cannot be written the whole call fails as UNAVAILABLE: nothing is known then, the same is sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import grpc

from chassis import errors
from chassis.clock import Clock
from chassis.errors import WaybillError
from hostagent.drivers.driver import Host, Verb
from hostagent.ledger import FlowOwner, Ledger, LedgerRow
from hostagent.observations import Observations
from hostagent.task import TaskSpec

_RETRY_SECONDS: Final = 0.5


class _Coming:
    """A task that is being taken in."""

    __slots__ = ("answer", "delivery", "row")

    def __init__(self, row: LedgerRow, delivery: asyncio.Future[None]) -> None:
        self.row = row
        self.delivery = delivery
        """Done when all that came with it is answered; fails if nothing could be written down."""
        self.answer: LedgerRow | WaybillError | None = None
        """Its row once it is in the ledger, or why it was refused; None until then."""


class Intake:
    """Decides on starts and writes down what it accepts."""

    def __init__(
        self,
        *,
        verbs: Mapping[str, Verb],
        host: Host,
        ledger: Ledger,
        observations: Observations,
        clock: Clock,
        known: Callable[[str], LedgerRow | None],
        room: Callable[[bool], int],
        accepted: Callable[[LedgerRow], None],
        repeated: Callable[[TaskSpec], Awaitable[None]],
    ) -> None:
        """`known` finds a live task by its id; `room` tells how many more tasks (calls, if True) may wait; `accepted`
        is told of each new task in the moment in which it is in the ledger; `repeated` of a start of a live one."""
        self._verbs = verbs
        self._host = host
        self._ledger = ledger
        self._observations = observations
        self._clock = clock
        self._known = known
        self._room = room
        self._accepted = accepted
        self._repeated = repeated
        self._coming: dict[str, _Coming] = {}

    def is_coming(self, task_id: str) -> bool:
        """Says whether a task is being taken in right now."""
        return task_id in self._coming

    async def take(self, specs: Sequence[TaskSpec], *, is_call: bool) -> list[LedgerRow | WaybillError]:
        """Takes in what it can; answers each in order, with its row in the ledger or why it was refused."""
        delivery = asyncio.get_running_loop().create_future()
        mine: list[_Coming] = []
        try:
            places = [await self._place(spec, is_call, mine, delivery) for spec in specs]
            await self._write_down(mine)
        except BaseException as error:
            delivery.set_exception(error)
            delivery.exception()  # somebody who waits for it is welcome, nobody has to
            raise
        finally:
            for coming in mine:
                del self._coming[coming.row.spec.task_id]
        delivery.set_result(None)
        return await self._answers(specs, places, delivery)

    async def _place(
        self, spec: TaskSpec, is_call: bool, mine: list[_Coming], delivery: asyncio.Future[None]
    ) -> LedgerRow | _Coming | WaybillError:
        known = self._known(spec.task_id)
        coming = self._coming.get(spec.task_id)
        if known is not None:
            return known if _same(spec, is_call, known) else _differs(spec, known)
        if coming is not None:
            return coming if _same(spec, is_call, coming.row) else _differs(spec, coming.row)
        try:
            verb = self._check(spec, is_call)
        except WaybillError as refusal:
            return refusal
        fresh = self._coming[spec.task_id] = _Coming(self._row(spec, is_call), delivery)
        mine.append(fresh)
        try:
            await self._host.admit(verb, spec.arguments, spec.expected_generation)
        except WaybillError as refusal:
            fresh.answer = refusal
        return fresh

    def _check(self, spec: TaskSpec, is_call: bool) -> Verb:
        if spec.incarnation and spec.incarnation != self._ledger.incarnation:
            raise _incarnation_changed(self._ledger.incarnation)
        verb = self._verbs.get(spec.verb)
        if verb is None or verb.is_call != is_call:
            raise _verb_unknown(spec.verb, verb)
        if violations := verb.arguments.violations(spec.arguments):
            raise errors.invalid_argument(
                "ARGUMENTS_INVALID", f"{spec.verb}: {violations[0][0]} {violations[0][1]}", *violations
            )
        if self._room(is_call) <= len(self._coming):
            raise errors.resource_exhausted(
                "the host has as many tasks waiting as it takes", reason="QUEUE_FULL", retry_after=_RETRY_SECONDS
            )
        return verb

    def _row(self, spec: TaskSpec, is_call: bool) -> LedgerRow:
        return self._ledger.row_for(
            spec, is_call=is_call, observation_number=self._observations.newest, create_time=self._clock.now()
        )

    async def _write_down(self, mine: Sequence[_Coming]) -> None:
        admitted = [coming for coming in mine if coming.answer is None]
        if not admitted:
            return
        refusals = await self._ledger.accept([coming.row for coming in admitted], self._clock.now())
        for coming, refusal in zip(admitted, refusals, strict=True):
            coming.answer = refusal or coming.row
            if refusal is None:
                self._accepted(coming.row)

    async def _answers(
        self,
        specs: Sequence[TaskSpec],
        places: Sequence[LedgerRow | _Coming | WaybillError],
        delivery: asyncio.Future[None],
    ) -> list[LedgerRow | WaybillError]:
        answers: list[LedgerRow | WaybillError] = []
        repeated: list[int] = []
        for index, place in enumerate(places):
            if isinstance(place, _Coming):
                await place.delivery  # another caller's, where it came twice at once
                assert place.answer is not None
                answers.append(place.answer)
            else:
                answers.append(place)
            if isinstance(place, LedgerRow) or (isinstance(place, _Coming) and place.delivery is not delivery):
                repeated.append(index)
        if repeated:
            await self._fence_repeats(specs, answers, repeated)
        return answers

    async def _fence_repeats(
        self, specs: Sequence[TaskSpec], answers: list[LedgerRow | WaybillError], repeated: Sequence[int]
    ) -> None:
        """Checks whose repeats these are; new tasks were checked while they were written down."""
        owners = [FlowOwner(specs[index].flow_command_id, specs[index].epoch) for index in repeated]
        for index, stale in zip(repeated, await self._ledger.fence(owners, self._clock.now()), strict=True):
            answers[index] = stale or answers[index]
            if stale is None:
                await self._repeated(specs[index])


def _same(spec: TaskSpec, is_call: bool, row: LedgerRow) -> bool:
    return is_call == row.is_call and spec.asks_the_same_as(row.spec)


def _differs(spec: TaskSpec, row: LedgerRow) -> WaybillError:
    return errors.already_exists(
        "TASK_DIFFERS", f"task {spec.task_id} is known as another {row.spec.verb} than this {spec.verb}"
    )


def _incarnation_changed(incarnation: str) -> WaybillError:
    return errors.failed_precondition(
        "INCARNATION_CHANGED",
        "this host has lost the memory for which the task was made, or it is another one",
        incarnation=incarnation,
    )


def _verb_unknown(name: str, verb: Verb | None) -> WaybillError:
    if verb is None:
        message = f"this host's driver has no verb {name}"
    else:
        message = f"{name} is started by {'Call' if verb.is_call else 'StartTasks'}"
    return WaybillError(grpc.StatusCode.UNIMPLEMENTED, "VERB_UNKNOWN", message)
