"""The words of the contract are those of the design, all of them and no others."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from coordinator import commands, rows, wire
from coordinator.flow import steptree
from hostagent.settings import Settings
from hostagent.task import TaskResult, TaskState
from waybill.v1 import hostagent_pb2, jobs_pb2

TASK_STATES = "INIT RUNNING FINISHED ABORTING CLEANING UNKNOWN"
TASK_RESULTS = "SUCCESS CLEAN_SUCCESS CLEAN_FAILURE"
STATUSES = "PENDING STARTED FINISHED FAILED ABORTED UNKNOWN SKIPPED"
END_STATUSES = "FINISHED FAILED ABORTED UNKNOWN SKIPPED"
COMMAND_STATUSES = "NOT_STARTED ACTIVE EXECUTION_FAILED SUCCEEDED FAILED ENDED_SUCCESSFULLY ENDED_WITH_FAILURE UNKNOWN"
ENTITY_TYPES = "HOST VM DISK SNAPSHOT STORAGE_DOMAIN TEMPLATE CLUSTER"
PHASES = "VALIDATION EXECUTION FINALIZATION"
STEP_TYPES_OF_HOSTS = (
    "TEST_POWER_MANAGEMENT INSTALLING_HOST PREPARE_FOR_MAINTENANCE MAINTENANCE_HOST MIGRATE_VM "
    "DISCONNECT_FROM_STORAGE ACTIVATE_HOST"
)
STEP_TYPES_OF_VMS = "START_VM STOP_VM REMOVE_VM"
STEP_TYPES_OF_STORAGE = (
    "CREATE_VOLUME DELETE_VOLUME COPY_IMAGE MOVE_IMAGE DELETE_IMAGE CREATE_SNAPSHOT MERGE_SNAPSHOTS "
    "CLONE_IMAGE_STRUCTURE REPLICATE_START SYNC_IMAGE_DATA REPLICATE_FINISH EXTEND_IMAGE"
)
TASK_VERBS = "getTaskStatus getTaskInfo getAllTasksStatuses getAllTasksInfo stopTask revertTask clearTask"


def words(enum: Any, prefix: str) -> set[str]:
    """The names of an enum of the contract, but for the one that says nothing."""
    return {name.removeprefix(prefix) for name in enum.keys()} - {"UNSPECIFIED"}  # noqa: SIM118 - not a dict


@pytest.mark.rule("semantics §1: ExecutionStatus (job and step): `PENDING` planned, not begun")
def test_jobs_and_steps_have_the_statuses_of_the_design() -> None:
    assert words(jobs_pb2.ExecutionStatus, "EXECUTION_STATUS_") == set(STATUSES.split()) == set(rows.Status)
    assert {status for status in rows.Status if status.ended} == set(END_STATUSES.split())


@pytest.mark.rule("semantics §1: CommandStatus: `NOT_STARTED` · `ACTIVE` · `EXECUTION_FAILED`")
def test_commands_have_the_statuses_of_the_design() -> None:
    assert words(jobs_pb2.CommandStatus, "COMMAND_STATUS_") == set(COMMAND_STATUSES.split()) == set(rows.CommandStatus)


@pytest.mark.rule("semantics §1: TaskState as a host publishes it: `INIT RUNNING FINISHED ABORTING CLEANING UNKNOWN`")
def test_a_host_publishes_the_states_of_the_design() -> None:
    assert words(jobs_pb2.TaskState, "TASK_STATE_") == set(TASK_STATES.split()) == set(TaskState)


@pytest.mark.rule("semantics §1: TaskResult: `SUCCESS`, `CLEAN_SUCCESS`")
def test_a_host_publishes_the_results_of_the_design() -> None:
    assert words(jobs_pb2.TaskResult, "TASK_RESULT_") == set(TASK_RESULTS.split()) == set(TaskResult)


@pytest.mark.rule("semantics §1: StepType: host: VM: storage: plus any a plug-in registers")
def test_the_steps_of_our_commands_are_of_the_types_of_the_design() -> None:
    modules = [each for each in vars(commands).values() if inspect.ismodule(each)]
    named = {step_type for module in modules for step_type in steps_named_in(module)}
    assert len(named) >= 15  # or they are named in a way that nobody sees here
    assert named <= set(f"{STEP_TYPES_OF_HOSTS} {STEP_TYPES_OF_VMS} {STEP_TYPES_OF_STORAGE}".split())
    assert PHASES.split() == [steptree.VALIDATION, steptree.EXECUTION, steptree.FINALIZATION]


def steps_named_in(module: ModuleType) -> Iterator[str]:
    """What plans made in a module call their steps."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.keyword) and node.arg == "step":
            words = [each.value for each in ast.walk(node.value) if isinstance(each, ast.Constant)]
            yield from (word for word in words if word and isinstance(word, str))


@pytest.mark.rule("semantics §1: EntityType: `HOST VM DISK SNAPSHOT STORAGE_DOMAIN TEMPLATE CLUSTER`")
def test_entities_are_of_the_types_of_the_design() -> None:
    assert words(jobs_pb2.EntityType, "ENTITY_TYPE_") == set(ENTITY_TYPES.split())
    assert set(wire.ENTITY_NAMES.values()) >= set(ENTITY_TYPES.split())


@pytest.mark.rule("semantics §1: ExternalSystemType: `HOST_AGENT EXTERNAL`")
def test_steps_are_done_by_a_host_agent_or_by_another_system() -> None:
    assert words(jobs_pb2.ExternalSystemType, "EXTERNAL_SYSTEM_TYPE_") == {"HOST_AGENT", "EXTERNAL"}


@pytest.mark.rule("semantics §3: Verbs of the task API keep VDSM's names")
def test_the_calls_about_tasks_have_vdsms_names() -> None:
    calls = {method.name for method in hostagent_pb2.DESCRIPTOR.services_by_name["HostAgent"].methods}
    of_many = {"ClearTask": "ClearTasks"}  # many at once
    names = [verb[0].upper() + verb[1:] for verb in TASK_VERBS.split()]
    assert {of_many.get(name, name) for name in names} <= calls


@pytest.mark.rule("semantics §3: Bounded workers (10) and queue (500), by priority")
@pytest.mark.rule("semantics §3: Cleared ids are remembered 7 days")
def test_a_host_has_the_limits_of_the_design_unless_it_is_told_otherwise() -> None:
    fields = Settings.model_fields
    assert (fields["workers"].default, fields["queue"].default, fields["cleared_days"].default) == (10, 500, 7.0)
