"""The sim's volumes and counters."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from chassis.clock import ManualClock
from chassis.errors import WaybillError
from hostagent.drivers.sim.documents import Documents
from hostagent.drivers.sim.model import Fenced, Legality, Model, ObjectKey, Vm, VmState, Volume


def a_model() -> Model:
    return Model(Documents(":memory:", ManualClock()))


def with_volume(volume_id: str = "v") -> Model:
    model = a_model()
    model.begin_making(volume_id, 10, "maker")
    model.finish_writing(volume_id)
    return model


@pytest.mark.rule("semantics §3: ILLEGAL before writing, LEGAL and generation + 1 at the end")
def test_a_volume_is_illegal_until_it_is_made() -> None:
    model = a_model()
    model.begin_making("v", 10, "t1")
    assert model.volume("v") == Volume(10, Legality.ILLEGAL, 0, writer="t1", maker="t1")
    assert model.finish_writing("v") == 1
    assert model.volume("v") == Volume(10, Legality.LEGAL, 1, writer="", maker="t1", written_by="t1")


@pytest.mark.rule("semantics §3: ILLEGAL before writing, LEGAL and generation + 1 at the end")
def test_a_volume_is_illegal_while_it_is_written_and_has_the_next_generation_then() -> None:
    model = with_volume()
    model.begin_writing("v", "t1")
    assert (model.volume("v").legality, model.volume("v").generation) == (Legality.ILLEGAL, 1)
    assert model.finish_writing("v", size_mb=20) == 2
    assert (model.volume("v").legality, model.volume("v").size_mb) == (Legality.LEGAL, 20)


def test_two_tasks_never_write_to_one_volume() -> None:
    model = with_volume()
    model.begin_writing("v", "t1")
    model.begin_writing("v", "t1")  # a repeat
    with pytest.raises(WaybillError) as refused:
        model.begin_writing("v", "t2")
    assert refused.value.reason == "OBJECT_STATE"
    model.begin_deleting("v", "t2")


def test_a_volume_is_made_by_one_task_only() -> None:
    model = a_model()
    model.begin_making("v", 10, "t1")
    model.begin_making("v", 10, "t1")  # a repeat
    for task_id in ("t2", "t1"):
        if task_id == "t1":
            model.finish_writing("v")
        with pytest.raises(WaybillError) as refused:
            model.begin_making("v", 10, task_id)
        assert refused.value.reason == "OBJECT_EXISTS"


def test_a_task_that_expects_another_generation_is_refused() -> None:
    model = with_volume()
    model.expect_generation("v", None)
    model.expect_generation("v", 1)
    model.expect_generation("none", 0)
    with pytest.raises(WaybillError) as refused:
        model.expect_generation("v", 0)
    assert (refused.value.reason, refused.value.metadata["generation"]) == ("GENERATION_MISMATCH", "1")


@pytest.mark.rule("semantics §3: a fence (raising the generation) makes sure that it no longer will")
def test_a_fence_raises_the_generation_under_a_task_that_writes() -> None:
    model = with_volume()
    former = asdict(model.volume("v"))
    model.begin_writing("v", "t1")
    assert model.fence("v", 1, 101, "t1") is Fenced.FENCED
    assert (model.volume("v").legality, model.volume("v").generation) == (Legality.ILLEGAL, 101)
    with pytest.raises(WaybillError, match="has generation 101, not 1"):
        model.expect_generation("v", 1)
    with pytest.raises(WaybillError, match="changed since"):
        model.restore_volume("v", former, "t1")
    assert model.fence("v", 1, 101, "t1") is Fenced.FENCED  # a repeat
    assert model.volume("v").generation == 101


def test_what_had_not_begun_to_write_when_it_was_fenced_has_done_no_harm() -> None:
    model = with_volume()
    assert model.fence("v", 1, 101, "t1") is Fenced.FENCED
    assert model.volume("v").legality is Legality.LEGAL


@pytest.mark.rule("semantics §3: So one read of an object tells whether a silent host did the work")
def test_a_fence_that_comes_too_late_finds_the_work_done() -> None:
    model = with_volume()
    model.begin_writing("v", "t1")
    model.finish_writing("v", size_mb=20)
    assert model.fence("v", 1, 101, "t1") is Fenced.DONE
    assert (model.volume("v").legality, model.volume("v").generation) == (Legality.LEGAL, 2)


def test_a_fence_takes_nobody_else_s_work_for_a_task_s() -> None:
    model = with_volume()
    model.begin_writing("v", "t2")
    model.finish_writing("v")
    assert model.fence("v", 1, 101, "t1") is Fenced.DOUBTFUL
    model.begin_writing("v", "t1")
    assert model.fence("v", 1, 101, "t1") is Fenced.DOUBTFUL
    model.finish_writing("v")
    assert model.fence("v", 1, 101, "t1") is Fenced.DOUBTFUL
    with pytest.raises(WaybillError) as refused:
        model.fence("none", 0, 100, "t1")
    assert refused.value.reason == "OBJECT_NOT_FOUND"


def test_a_change_is_taken_back_in_the_middle_of_it() -> None:
    model = with_volume()
    former = asdict(model.volume("v"))
    model.begin_writing("v", "t1")
    model.restore_volume("v", former, "t1")
    assert asdict(model.volume("v")) == former


def test_a_change_that_was_made_is_taken_back_under_a_new_generation() -> None:
    model = with_volume()
    former = asdict(model.volume("v"))
    model.begin_writing("v", "t1")
    model.finish_writing("v", size_mb=20)
    model.restore_volume("v", former, "t1")
    assert asdict(model.volume("v")) == {**former, "generation": 3}


def test_a_change_that_others_built_upon_is_not_taken_back() -> None:
    model = with_volume()
    former = asdict(model.volume("v"))
    for task_id in ("t1", "t2"):
        model.begin_writing("v", task_id)
        model.finish_writing("v")
    with pytest.raises(WaybillError, match="changed since"):
        model.restore_volume("v", former, "t1")


def test_a_change_that_never_began_leaves_others_alone() -> None:
    model = with_volume()
    former = asdict(model.volume("v"))
    model.begin_writing("v", "t2")
    model.restore_volume("v", former, "t1")
    assert model.volume("v").writer == "t2"


def test_what_is_missing_is_named() -> None:
    model = a_model()
    with pytest.raises(WaybillError) as refused:
        model.volume("v9")
    assert (refused.value.reason, refused.value.metadata) == ("OBJECT_NOT_FOUND", {"volume_id": "v9"})
    with pytest.raises(WaybillError):
        model.vm("vm9")


def test_objects_show_their_counters_also_when_they_are_gone() -> None:
    model = with_volume()
    model.put_vm("vm", Vm(VmState.UP, 512, "c1"))
    model.count(ObjectKey("volume", "v"), "createVolume", attempts=2, effects=1)
    model.count(ObjectKey("volume", "gone"), "deleteImage", attempts=1, effects=1)
    model.count(ObjectKey("object", "o"), "simWork", attempts=1)
    found = {(each.kind, each.object_id): each for each in model.objects()}
    assert found["volume", "v"].state == "LEGAL"
    assert found["volume", "v"].generation == 1
    assert found["volume", "v"].counters == {"createVolume": (2, 1)}
    assert found["volume", "gone"].state == "GONE"
    assert found["vm", "vm"].state == "UP"
    assert found["object", "o"].counters == {"simWork": (1, 0)}


def test_what_a_task_did_is_kept_until_it_is_forgotten() -> None:
    model = a_model()
    assert model.done("t1") is None
    for task_id in ("t1", "t2", "t3"):
        model.remember(task_id, None)
    assert model.done("t1") == {"answer": None}
    model.forget(["t1"])
    model.forget_all_but(["t3"])
    assert [model.done(task_id) for task_id in ("t1", "t2", "t3")] == [None, None, {"answer": None}]
