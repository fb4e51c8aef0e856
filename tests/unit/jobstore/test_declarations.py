"""Several changes of one entity in one transaction, folded."""

from __future__ import annotations

from typing import Any

from jobstore.journal.declarations import Declarations
from waybill.v1 import jobs_pb2, jobstore_pb2

KEY = ("VM", "vm-1")


def change(**fields: Any) -> jobstore_pb2.EntityChange:
    ref = jobstore_pb2.EntityRef(entity_type=jobs_pb2.ENTITY_TYPE_VM, entity_id="vm-1")
    return jobstore_pb2.EntityChange(entity=ref, **fields)


def folded(*changes: jobstore_pb2.EntityChange, stored: bool) -> Declarations:
    declarations = Declarations({KEY} if stored else set())
    for each in changes:
        declarations.change(each)
    return declarations


def test_a_new_entity_gets_what_is_not_said_of_it() -> None:
    declarations = folded(change(name="web"), stored=False)
    assert declarations.created == [(*KEY, "web", "OK", "{}")]
    assert declarations.changed == declarations.removed == []


def test_what_a_change_does_not_name_stays() -> None:
    declarations = folded(change(status="LOCKED"), stored=True)
    assert declarations.changed == [(*KEY, "", "LOCKED", "", "f")]


def test_later_changes_go_over_earlier_ones() -> None:
    declarations = folded(change(name="web", status="LOCKED"), change(status="OK", declared_json="[]"), stored=True)
    assert declarations.changed == [(*KEY, "web", "OK", "[]", "f")]


def test_an_entity_is_removed() -> None:
    declarations = folded(change(name="web"), change(remove=True), stored=True)
    assert declarations.removed == [KEY]
    assert declarations.created == declarations.changed == []


def test_what_comes_and_goes_at_once_is_never_written() -> None:
    declarations = folded(change(name="web"), change(remove=True), stored=False)
    assert declarations.created == declarations.changed == declarations.removed == []


def test_what_goes_and_comes_back_starts_anew() -> None:
    declarations = folded(change(remove=True), change(name="new"), stored=True)
    assert declarations.changed == [(*KEY, "new", "OK", "{}", "t")]
    assert declarations.removed == []


def test_removing_what_is_not_there_changes_nothing() -> None:
    declarations = folded(change(remove=True), stored=False)
    assert declarations.created == declarations.changed == declarations.removed == []


def test_replacing_sets_every_field() -> None:
    declarations = Declarations({KEY})
    declarations.replace(KEY, "", "", "")
    assert declarations.changed == [(*KEY, "", "OK", "{}", "t")]
