"""What a policy lets somebody see, as a condition: in SQL for lists, of a message for watches.

It is ANDed to whatever a reader asks for. Nothing in it ever changes about a job, so a watcher is never shown one that
he may not see, nor told that it is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from chassis.policy import EXTERNAL, Grant, Scope, Thing
from jobstore.messages import ENTITY_TYPE_NAME
from jobstore.search.fields import Seen
from jobstore.search.filter import Comparison, Conjunction, Filter
from jobstore.search.kinds import Bindings
from waybill.v1 import jobs_pb2


def thing_of(job: jobs_pb2.Job) -> Thing:
    """Returns a job as a policy looks at it."""
    return Thing(
        EXTERNAL if job.external else job.command_type,
        job.categories,
        job.owner,
        [entity_of(subject) for subject in job.subjects],
    )


def entity_of(entity: jobs_pb2.Subject | jobs_pb2.Entity) -> str:
    """Returns an entity as a policy names it: `VM/vm-1`."""
    return f"{ENTITY_TYPE_NAME.get(entity.entity_type) or 'UNSPECIFIED'}/{entity.entity_id}"


def within(filter: Filter, scope: Scope) -> Filter:
    """Returns the filter of those that match and are in the scope."""
    return filter if scope.is_boundless else Filter(Conjunction((filter.tree, Permitted(scope))))


@dataclass(frozen=True)
class Permitted:
    """A part of a filter: jobs that are in a scope."""

    scope: Scope

    def __str__(self) -> str:
        return f"permitted {self.scope}"

    def sql(self, bind: Bindings, *, leave_out_changing: bool = False) -> str:
        grants = [_sql(grant, self.scope.user, bind) for grant in self.scope.grants]
        return f"({' OR '.join(grants)})" if grants else "false"

    def truth(self, seen: Seen, *, leave_out_changing: bool = False) -> bool | None:
        return self.scope.holds(thing_of(seen.job))

    def demanded(self, name: str) -> None:
        return None

    def comparisons(self) -> Iterable[Comparison]:
        return ()


def _sql(grant: Grant, user: str, bind: Bindings) -> str:
    conditions = ["true"]
    if not grant.any_owner:
        conditions.append(f"job.owner = {bind(user)}")
    if not grant.every_type:
        kind = f"CASE WHEN job.external THEN '{EXTERNAL}' ELSE job.command_type END"
        types, categories = bind(sorted(grant.command_types)), bind(sorted(grant.categories))
        conditions.append(f"({kind} = ANY ({types}::text[]) OR job.categories && {categories}::text[])")
    if grant.entities:
        subjects = "SELECT FROM job_subject_entity AS subject WHERE subject.job_id = job.job_id"
        likes = " OR ".join(_like(pattern, bind) for pattern in grant.entities)
        conditions.append(f"EXISTS ({subjects}) AND NOT EXISTS ({subjects} AND NOT ({likes}))")
    return f"({' AND '.join(conditions)})"


def _like(pattern: str, bind: Bindings) -> str:
    entity = "(subject.entity_type::text || '/' || subject.entity_id)"
    if pattern.endswith("*"):
        return f"starts_with({entity}, {bind(pattern[:-1])})"
    return f"{entity} = {bind(pattern)}"
