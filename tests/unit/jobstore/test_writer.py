"""What an exception from the driver means."""

from __future__ import annotations

import asyncpg
import pytest
from asyncpg.exceptions import _base

from jobstore.journal.writer import DiskFull, Lost, Misfit, understood


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (ConnectionResetError("said"), Lost),
        (asyncpg.ConnectionDoesNotExistError("said"), Lost),
        (asyncpg.InterfaceError("connection is closed"), Lost),
        (asyncpg.InternalClientError("cannot switch to state 12"), Lost),
        (asyncpg.AdminShutdownError("said"), Lost),
        (asyncpg.CannotConnectNowError("said"), Lost),
        (asyncpg.DeadlockDetectedError("said"), Lost),
        (asyncpg.LockNotAvailableError("said"), Lost),
        (asyncpg.IdleInTransactionSessionTimeoutError("said"), Lost),
        (asyncpg.InvalidCachedStatementError("said"), Lost),
        (asyncpg.DiskFullError("said"), DiskFull),
        (asyncpg.CheckViolationError("said"), Misfit),
        (asyncpg.UniqueViolationError("said"), Misfit),
        (asyncpg.CharacterNotInRepertoireError("said"), Misfit),
        (_base.DataError("value out of int32 range"), Misfit),
        (asyncpg.UndefinedColumnError("said"), Misfit),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_an_exception_is_understood(error: Exception, meaning: type[Exception]) -> None:
    with pytest.raises(meaning), understood():
        raise error


@pytest.mark.parametrize(
    ("error", "defect"), [(asyncpg.UndefinedColumnError("ours"), True), (asyncpg.CheckViolationError("theirs"), False)]
)
def test_what_is_our_own_fault_is_told_from_what_is_the_callers(error: Exception, defect: bool) -> None:
    with pytest.raises(Misfit) as misfit, understood():
        raise error
    assert misfit.value.defect is defect


def test_what_is_none_of_postgres_passes() -> None:
    with pytest.raises(KeyError), understood():
        raise KeyError
