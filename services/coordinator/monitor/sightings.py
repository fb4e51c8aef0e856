"""What one host has said it sees. Pure.

Observations bear numbers that the host writes down, so within an incarnation the higher one is the later one, whatever
order they arrive in. A stream opens with a snapshot of all that the host sees, which says two things more: what was
passed on before is not news, and a VM that is not in it is not on the host.

    absent, though the store says it is there ─▶ DOWN, under the number of the host's newest observation
    the host has been silent for long         ─▶ the HOST is UNREACHABLE, under its own last number; its VMs stay as
                                                 they were seen, for nobody knows

Both are words about what the host said last and not new observations of it: the next thing that it says itself bears a
higher number, or the same as the word it takes back.
"""

from __future__ import annotations

from collections.abc import Iterable

from waybill.v1 import hostagent_pb2, jobs_pb2, jobstore_pb2

EntityKey = tuple[int, str]


class Sightings:
    """The observations of one host that were passed on."""

    def __init__(self, host_id: str) -> None:
        self.host_id = host_id
        self._incarnation = ""
        self._numbers: dict[EntityKey, int] = {}  # of what was passed on
        self._newest = 0
        self._shown: set[str] = set()  # VMs of the snapshot that is being heard
        self._unreachable = False

    def begin(self) -> None:
        """A stream opens: a snapshot comes first."""
        self._shown = set()

    def heard(self, message: hostagent_pb2.WatchEventsResponse) -> list[jobstore_pb2.ObservedRow]:
        """Takes a message; returns what is news."""
        if message.agent.incarnation and message.agent.incarnation != self._incarnation:
            self._start_over(message.agent.incarnation)
        self._newest = max(self._newest, message.newest_number)
        rows = [self._row(observation) for observation in message.observations if self._is_news(observation)]
        self._unreachable = False
        return rows

    def absent(self, vms: Iterable[jobs_pb2.Entity]) -> list[jobstore_pb2.ObservedRow]:
        """Of the VMs that the store says are here, returns as DOWN those that the snapshot did not show."""
        return [
            self._observed(jobs_pb2.ENTITY_TYPE_VM, vm.entity_id, "DOWN", self._newest)
            for vm in vms
            if vm.entity_id not in self._shown
        ]

    def unreachable(self) -> jobstore_pb2.ObservedRow | None:
        """The host has been silent for long; returns that as an observation of it, once, if it ever spoke."""
        number = self._numbers.pop((jobs_pb2.ENTITY_TYPE_HOST, self.host_id), 0)
        if self._unreachable or not number:
            return None
        self._unreachable = True
        return self._observed(jobs_pb2.ENTITY_TYPE_HOST, self.host_id, "UNREACHABLE", number)

    def _start_over(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._numbers.clear()
        self._newest = 0

    def _is_news(self, observation: hostagent_pb2.Observation) -> bool:
        if observation.entity_type == jobs_pb2.ENTITY_TYPE_VM:
            self._shown.add(observation.entity_id)
        key = (observation.entity_type, observation.entity_id)
        if observation.number <= self._numbers.get(key, 0):
            return False
        self._numbers[key] = observation.number
        self._newest = max(self._newest, observation.number)
        return True

    def _row(self, observation: hostagent_pb2.Observation) -> jobstore_pb2.ObservedRow:
        return self._observed(
            observation.entity_type, observation.entity_id, observation.state, observation.number, observation.error
        )

    def _observed(
        self, entity_type: jobs_pb2.EntityType.ValueType, entity_id: str, state: str, number: int, error: str = ""
    ) -> jobstore_pb2.ObservedRow:
        return jobstore_pb2.ObservedRow(
            entity=jobstore_pb2.EntityRef(entity_type=entity_type, entity_id=entity_id),
            observed=jobs_pb2.Observed(
                state=state, host_id=self.host_id, error=error, incarnation=self._incarnation, number=number
            ),
        )
