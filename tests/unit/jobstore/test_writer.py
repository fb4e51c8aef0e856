"""What an exception from the driver means."""

from __future__ import annotations

import asyncpg
import pytest
from asyncpg.exceptions import _base

from jobstore.writer import DiskFull, Lost, Misfit, understood


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (ConnectionResetError(), Lost),
        (asyncpg.ConnectionDoesNotExistError(), Lost),
        (asyncpg.InterfaceError("connection is closed"), Lost),
        (asyncpg.InternalClientError("cannot switch to state 12"), Lost),
        (asyncpg.AdminShutdownError(), Lost),
        (asyncpg.CannotConnectNowError(), Lost),
        (asyncpg.DeadlockDetectedError(), Lost),
        (asyncpg.LockNotAvailableError(), Lost),
        (asyncpg.IdleInTransactionSessionTimeoutError(), Lost),
        (asyncpg.InvalidCachedStatementError(), Lost),
        (asyncpg.DiskFullError(), DiskFull),
        (asyncpg.CheckViolationError(), Misfit),
        (asyncpg.UniqueViolationError(), Misfit),
        (asyncpg.CharacterNotInRepertoireError(), Misfit),
        (_base.DataError("value out of int32 range"), Misfit),
        (asyncpg.UndefinedColumnError(), Misfit),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_an_exception_is_understood(error: Exception, meaning: type[Exception]) -> None:
    with pytest.raises(meaning), understood():
        raise error


@pytest.mark.parametrize(
    ("error", "defect"), [(asyncpg.UndefinedColumnError(), True), (asyncpg.CheckViolationError(), False)]
)
def test_what_is_our_own_fault_is_told_from_what_is_the_callers(error: Exception, defect: bool) -> None:
    with pytest.raises(Misfit) as misfit, understood():
        raise error
    assert misfit.value.defect is defect


def test_what_is_none_of_postgres_passes() -> None:
    with pytest.raises(KeyError), understood():
        raise KeyError
