"""The plan algebra: values that survive JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.texts import any_text

from coordinator.flow.planjson import MAX_NESTING, plan_from_json, plan_to_json
from coordinator.plan import (
    Change,
    Child,
    Condition,
    EntityRef,
    Former,
    Observation,
    Plan,
    call,
    change,
    child,
    concurrently,
    nothing,
    serially,
    state,
    task,
    wait_for,
)
from coordinator.world import Entity

VM = EntityRef("VM", "vm-1")
DISK = EntityRef("DISK", "disk-1")


def through_json(plan: Plan) -> Plan:
    return plan_from_json(json.loads(json.dumps(plan_to_json(plan))))


texts = any_text(max_size=6)
refs = st.builds(EntityRef, st.sampled_from(["VM", "DISK", "HOST"]), texts)
seconds = st.none() | st.floats(0, 1e6)
arguments = st.dictionaries(
    texts, st.none() | st.booleans() | st.integers(-99, 99) | texts | st.lists(texts), max_size=3
)
conditions = st.builds(
    Condition,
    st.lists(
        st.tuples(st.sampled_from(["state", "host_id"]), st.lists(texts, max_size=2).map(tuple)),
        unique_by=lambda f: f[0],
    ).map(tuple),
)
options = st.fixed_dictionaries(
    {},
    optional={
        "step": texts,
        "description": texts,
        "weight": st.floats(0, 100),
        "subjects": st.lists(refs, max_size=2).map(tuple),
        "best_effort": st.booleans(),
        "no_return": st.booleans(),
    },
)
formers = st.none() | st.builds(Former, texts, texts, arguments)
leaves = st.one_of(
    options.map(lambda o: nothing(**o)),
    st.builds(
        lambda o, h, v, a, e, d, g, s: task(h, v, a, entity=e, deadline=d, expected_generation=g, stall_seconds=s, **o),
        *(options, texts, texts, arguments, st.none() | refs, seconds, st.none() | st.integers(0, 9), seconds),
    ),
    st.builds(
        lambda o, h, v, a, e, d: call(h, v, a, entity=e, deadline=d, **o),
        *(options, texts, texts, arguments, st.none() | refs, seconds),
    ),
    st.builds(
        lambda o, c, p, v: Child(command_type=c, parameters=p, parameters_version=v, **o),
        options,
        texts,
        arguments,
        st.integers(1, 9),
    ),
    st.builds(
        lambda o, e, u, f, d: wait_for(e, until=u, fails_if=f, deadline=d, **o),
        *(options, refs, conditions, conditions, seconds),
    ),
    st.builds(
        lambda o, e, n, s, d, r, f: Change(entity=e, name=n, status=s, declared=d, remove=r, former=f, **o),
        *(options, refs, st.none() | texts, st.none() | texts, st.none() | arguments, st.booleans(), formers),
    ),
)
plans = st.recursive(
    leaves,
    lambda below: st.builds(
        lambda o, parts, together: (concurrently if together else serially)(parts, **o),
        options,
        st.lists(below, max_size=3),
        st.booleans(),
    ),
    max_leaves=8,
)


@pytest.mark.rule("semantics §2: Plans are small trees: a node may name its step type, weight, subjects, and be best")
@given(plans)
def test_a_plan_survives_json_unchanged(plan: Plan) -> None:
    assert through_json(plan) == plan


def test_what_is_as_usual_is_not_written() -> None:
    assert plan_to_json(task("h1", "copy")) == {"kind": "task", "host_id": "h1", "verb": "copy"}


def test_a_long_chain_is_no_deep_one() -> None:
    chain = serially(task("h1", "copy", {"n": n}) for n in range(5_000))
    assert through_json(chain) == chain


def test_a_plan_that_nests_too_deeply_is_refused() -> None:
    plan: Plan = nothing()
    for _ in range(MAX_NESTING + 1):
        plan = serially([plan])
    with pytest.raises(ValueError, match="nested"):
        plan_to_json(plan)


@pytest.mark.parametrize("data", [{}, {"kind": "dance"}, {"kind": "task", "host": "h1"}, {"kind": "task"}])
def test_what_is_no_plan_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="plan node"):
        plan_from_json(data)


def test_a_condition_holds_when_all_its_fields_match() -> None:
    condition = Condition((("state", ("UP", "DOWN")), ("host_id", ("h1",))))
    assert condition.holds(Observation(state="DOWN", host_id="h1"))
    assert not condition.holds(Observation(state="UP", host_id="h2"))


def test_an_empty_condition_never_holds() -> None:
    assert not Condition().holds(Observation())


def test_a_state_is_one_of_several() -> None:
    assert state("UP", "PAUSED").holds(Observation(state="PAUSED"))
    assert not state("UP", "PAUSED").holds(Observation(state=""))


def test_a_child_is_planned_with_its_parameters() -> None:
    class RemoveImage:
        command_type = "RemoveImage"
        parameters_version = 3

        def parameters(self) -> dict[str, Any]:
            return {"disk_id": "disk-1"}

    planned = child(RemoveImage(), step="DELETE_IMAGE")
    assert planned == Child(
        command_type="RemoveImage", parameters={"disk_id": "disk-1"}, parameters_version=3, step="DELETE_IMAGE"
    )


def test_a_change_of_what_was_read_keeps_what_it_was_and_what_is_not_named() -> None:
    disk = Entity(DISK, "disk one", "OK", {"host_id": "h1", "size_mb": 5}, version=4)
    planned = change(disk, status="LOCKED", declared={"host_id": "h2"})
    assert planned.declared == {"host_id": "h2", "size_mb": 5}
    assert planned.former == Former("disk one", "OK", {"host_id": "h1", "size_mb": 5})


def test_a_change_of_what_does_not_exist_makes_it() -> None:
    assert change(Entity(DISK), status="LOCKED").former is None
