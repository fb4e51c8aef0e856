"""A child that shows as a job of its own: what that job is. Pure.

    child(RunVm(…), as_job=True)

Its row is stored in the commit that begins the child and ends in the one that ends it: flow, lease and epoch are the
flow's, so whoever takes the flow up has both, and neither outlives it. It carries on what the job above it is: owner,
correlation id, trace, visibility, priority, deadline. The steps of the child, and of those below it, are this job's
and not of the one above (`steptree.py`); tasks, locks and commands stay the flow's.

What is asked of it (to cancel it, to run it again) is refused, with the name of the job that it is a part of: the plan
above counts on the child, so who wants to stop it stops that.
"""

from __future__ import annotations

from coordinator.flow.nodes import LiveCommand
from coordinator.plan import Child
from coordinator.rows import Job, Status, Subject


def begun(job_id: str, flows: Job, command: LiveCommand, plan: Child) -> Job:
    """The job of a child that begins. Named by its plan, until its code is known (`tree.py`)."""
    row = command.row
    return Job(
        job_id=job_id,
        command_type=row.command_type,
        description=plan.description or row.command_type,
        owner=flows.owner,
        correlation_id=flows.correlation_id,
        parameters=row.parameters,
        status=Status.STARTED,
        subjects=tuple(Subject(ref.entity_type, ref.entity_id) for ref in plan.subjects),
        visible=flows.visible,
        auto_cleared=flows.auto_cleared,
        priority=flows.priority,
        deadline=flows.deadline,
        trace_id=flows.trace_id,
        span_id=row.span_id,
        parent_job_id=_above(command, flows),
        command_id=row.command_id,
    )


def _above(command: LiveCommand, flows: Job) -> str:
    """The job that the child's is a part of: that of the nearest command above which has one."""
    node = command.node
    while node is not None:
        if node.command.job is not None:
            return node.command.job.job_id
        node = node.command.node
    return flows.job_id
