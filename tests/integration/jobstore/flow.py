"""A flow as a coordinator would write it, for tests of the journal.

flow = a_flow()
await journal.commit(request(flow.first()))
await journal.commit(request(flow.last()))
"""

from __future__ import annotations

import hashlib
from typing import Any

from chassis.clock import Uuid7Ids
from waybill.v1 import jobs_pb2, jobstore_pb2

IDS = Uuid7Ids()
COORDINATOR = "coordinator-1"

PENDING = jobs_pb2.EXECUTION_STATUS_PENDING
STARTED = jobs_pb2.EXECUTION_STATUS_STARTED
FINISHED = jobs_pb2.EXECUTION_STATUS_FINISHED
FAILED = jobs_pb2.EXECUTION_STATUS_FAILED
ABORTED = jobs_pb2.EXECUTION_STATUS_ABORTED
SKIPPED = jobs_pb2.EXECUTION_STATUS_SKIPPED


def vm(entity_id: str) -> jobstore_pb2.EntityRef:
    return jobstore_pb2.EntityRef(entity_type=jobs_pb2.ENTITY_TYPE_VM, entity_id=entity_id)


def host(entity_id: str) -> jobstore_pb2.EntityRef:
    return jobstore_pb2.EntityRef(entity_type=jobs_pb2.ENTITY_TYPE_HOST, entity_id=entity_id)


def lock(entity: jobstore_pb2.EntityRef, *, exclusive: bool = True, reason: str = "Running") -> jobstore_pb2.LockRow:
    return jobstore_pb2.LockRow(entity=entity, exclusive=exclusive, reason=reason)


def request(*commits: jobstore_pb2.FlowCommit, coordinator_id: str = COORDINATOR) -> jobstore_pb2.CommitRequest:
    return jobstore_pb2.CommitRequest(coordinator_id=coordinator_id, commits=commits)


class Flow:
    """A flow with one job, a step of each kind, one command and one task."""

    def __init__(self, **job: Any) -> None:
        self.flow_command_id = IDS.new()
        self.job_id = IDS.new()
        self.task_id = IDS.new()
        self.epoch = 1
        self.sequence = 0
        self.steps = {kind: IDS.new() for kind in ("VALIDATION", "EXECUTION", "DELETE_IMAGE", "FINALIZATION")}
        self.job: dict[str, Any] = {
            "command_type": "RemoveImage",
            "description": "Removing image disk-1",
            "status": STARTED,
            "owner": "alice",
            "correlation_id": f"test-{self.job_id[:8]}",
            "visible": True,
            "auto_cleared": True,
            "cancelable": jobs_pb2.CANCEL_KIND_FINISH_FORWARD,
            "parameters_json": '{"disk_id": "disk-1"}',
            **job,
        }

    def first(self, **fields: Any) -> jobstore_pb2.FlowCommit:
        """Begins the flow: one task is about to be started."""
        return self.next(
            new_job=jobstore_pb2.JobRow(job_id=self.job_id, **self.job),
            new_steps=[
                self._step("VALIDATION", 0, FINISHED, progress=100),
                self._step("EXECUTION", 1, STARTED),
                self._step("DELETE_IMAGE", 0, STARTED, parent="EXECUTION", external_id=self.task_id),
                self._step("FINALIZATION", 2, PENDING),
            ],
            new_commands=[
                jobstore_pb2.CommandRow(
                    command_id=self.flow_command_id,
                    command_type="RemoveImage",
                    parameters_json='{"disk_id": "disk-1"}',
                    parameters_version=1,
                    status=jobs_pb2.COMMAND_STATUS_ACTIVE,
                    plans_json='[{"task": "deleteImage"}]',
                )
            ],
            new_tasks=[
                jobstore_pb2.TaskRow(
                    task_id=self.task_id,
                    kind=jobs_pb2.HOST_TASK_KIND_TASK,
                    command_id=self.flow_command_id,
                    step_id=self.steps["DELETE_IMAGE"],
                    host_id="host-1",
                    verb="deleteImage",
                    arguments_json='{"volume_id": "disk-1"}',
                    attempt=1,
                )
            ],
            **fields,
        )

    def last(self, **fields: Any) -> jobstore_pb2.FlowCommit:
        """Ends the flow well."""
        return self.next(
            job=jobstore_pb2.JobChange(status=FINISHED, progress=100, cancelable=jobs_pb2.CANCEL_KIND_NONE),
            steps=[
                jobstore_pb2.StepChange(step_id=self.steps[kind], status=FINISHED, progress=100)
                for kind in ("EXECUTION", "DELETE_IMAGE", "FINALIZATION")
            ],
            commands=[
                jobstore_pb2.CommandChange(
                    command_id=self.flow_command_id, status=jobs_pb2.COMMAND_STATUS_ENDED_SUCCESSFULLY
                )
            ],
            tasks=[
                jobstore_pb2.TaskChange(
                    task_id=self.task_id,
                    state=jobs_pb2.TASK_STATE_FINISHED,
                    result=jobs_pb2.TASK_RESULT_SUCCESS,
                    incarnation="incarnation-1",
                )
            ],
            ends_flow=True,
            **fields,
        )

    def progress(self, percent: int, **fields: Any) -> jobstore_pb2.FlowCommit:
        """Something in between."""
        change = jobstore_pb2.StepChange(step_id=self.steps["DELETE_IMAGE"], status=STARTED, progress=percent)
        return self.next(job=jobstore_pb2.JobChange(progress=percent), steps=[change], **fields)

    def next(self, **fields: Any) -> jobstore_pb2.FlowCommit:
        """The next commit of the flow."""
        self.sequence += 1
        return jobstore_pb2.FlowCommit(
            flow_command_id=self.flow_command_id,
            job_id=self.job_id,
            epoch=self.epoch,
            sequence=self.sequence,
            **fields,
        )

    def _step(
        self, step_type: str, number: int, status: Any, *, parent: str = "", **fields: Any
    ) -> jobstore_pb2.StepRow:
        return jobstore_pb2.StepRow(
            step_id=self.steps[step_type],
            parent_step_id=self.steps.get(parent, ""),
            command_id=self.flow_command_id,
            step_type=step_type,
            number=number,
            status=status,
            weight=1.0,
            **fields,
        )


def a_flow(**job: Any) -> Flow:
    return Flow(**job)


def hashed(body: str) -> bytes:
    """What a request id is compared by."""
    return hashlib.sha256(body.encode()).digest()
