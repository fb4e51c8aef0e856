"""What the embedded server's folder is believed to say."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from jobstore.postgres.datafolder import DataFolder, socket_folder
from jobstore.postgres.postgres import refuse_old_server
from jobstore.postgres.postmaster import DatabaseError, leftover


def a_pid_file(pid: int, folder: Path, started: float) -> str:
    return f"{pid}\n{folder}\n{int(started)}\n5432\n/run\n\n  1234 5678\nready\n"


def test_a_process_that_is_no_postgres_is_no_leftover(tmp_path: Path) -> None:
    """Its pid was used again: by us."""
    us = psutil.Process()
    assert leftover(a_pid_file(us.pid, tmp_path, us.create_time()), tmp_path) is None


@pytest.mark.parametrize("text", ["", "12", "not a pid\n/x\n1\n", "999999999\n/x\n1\n"])
def test_a_torn_or_outdated_pid_file_speaks_of_nobody(text: str, tmp_path: Path) -> None:
    assert leftover(text, tmp_path) is None


def test_the_socket_is_in_the_data_folder(tmp_path: Path) -> None:
    assert socket_folder(Path("/var/lib/waybill")) == Path("/var/lib/waybill/run")


def test_where_that_path_is_too_long_it_is_elsewhere_and_always_the_same(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    assert socket_folder(deep) == socket_folder(deep) != socket_folder(deep / "other")
    assert len(os.fsencode(socket_folder(deep) / ".s.PGSQL.5432")) < 107


def test_the_url_names_the_socket(tmp_path: Path) -> None:
    assert DataFolder(Path("/a b")).url("waybill") == "postgresql://waybill@/waybill?host=%2Fa%20b%2Frun"


def test_an_old_server_is_refused() -> None:
    refuse_old_server(15, "15.0")
    with pytest.raises(DatabaseError, match=r"PostgreSQL 14\.9; Waybill needs 15"):
        refuse_old_server(14, "14.9")
