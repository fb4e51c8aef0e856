"""The embedded server: started, restarted, stopped, refused, and what an earlier life has left."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest
from tests.integration.jobstore.processes import PATHS, a_jobstore, await_listening, end

from chassis.clock import SystemClock
from jobstore.postgres.datafolder import DataFolder, socket_folder
from jobstore.postgres.postgres import EmbeddedPostgres, check_server, database
from jobstore.postgres.postmaster import DatabaseError, Postmaster


@asynccontextmanager
async def postgres(data_dir: Path, **settings: str) -> AsyncIterator[EmbeddedPostgres]:
    async with EmbeddedPostgres(data_dir, SystemClock(), settings) as running:
        yield running


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        connection.terminate()  # the server may be dead, and then there is nobody to say goodbye to


async def test_data_survives_a_stop_and_a_start(data_dir: Path) -> None:
    async with postgres(data_dir) as running, connected(running.url) as connection:
        await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    async with postgres(data_dir) as running, connected(running.url) as connection:
        assert await connection.fetchval("SELECT answer FROM kept") == 42


async def test_it_keeps_what_was_committed_whatever_happens(data_dir: Path) -> None:
    async with postgres(data_dir) as running, connected(running.url) as connection:
        for name in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums"):
            assert await connection.fetchval(f"SHOW {name}") == "on"


async def test_nobody_else_can_reach_it(data_dir: Path) -> None:
    async with postgres(data_dir) as running, connected(running.url) as connection:
        assert await connection.fetchval("SHOW listen_addresses") == ""
        assert stat.S_IMODE((data_dir / "run").stat().st_mode) == 0o700


async def test_its_url_is_left_for_further_jobstores(data_dir: Path) -> None:
    async with postgres(data_dir) as running:
        assert (data_dir / "database_url").read_text().strip() == running.url
        await check_server(running.url)


async def test_nothing_of_it_is_left_when_it_is_stopped(data_dir: Path) -> None:
    async with postgres(data_dir) as running:
        process = psutil.Process(running.pid)
        family = [process, *process.children(recursive=True)]
    assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


async def test_killed_it_is_started_again_with_its_data(data_dir: Path) -> None:
    async with postgres(data_dir) as running:
        for number in range(3):
            before = running.pid
            async with connected(running.url) as connection:
                await connection.execute(f"CREATE TABLE t{number} ()")
                os.kill(before, signal.SIGKILL)
            async with asyncio.timeout(20):
                await until_back(running.url)
            assert running.pid != before
        async with connected(running.url) as connection:
            assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE tablename ~ '^t[0-9]$'") == 3


async def until_back(url: str) -> None:
    while True:
        try:
            async with connected(url):
                return
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await asyncio.sleep(0.01)


async def test_a_second_owner_of_the_folder_is_refused_and_told_where_the_database_is(data_dir: Path) -> None:
    async with postgres(data_dir) as running:
        with pytest.raises(DatabaseError) as refused:
            async with postgres(data_dir):
                pass
        assert f"JOBSTORE_DATABASE_URL={running.url}" in str(refused.value)
        assert f"pid {os.getpid()}" in str(refused.value)


async def test_a_leftover_postmaster_is_ended(data_dir: Path) -> None:
    async with postgres(data_dir) as running, connected(running.url) as connection:
        await connection.execute("CREATE TABLE kept ()")
    folder, forgotten = DataFolder(data_dir), Postmaster()
    folder.prepare()
    with folder.open_log() as output:
        settings = {"listen_addresses": "", "unix_socket_directories": str(data_dir / "run")}
        forgotten.start(folder.cluster, settings, folder.identity, output)
    await until_back(folder.url("waybill"))
    async with postgres(data_dir) as running, connected(running.url) as connection:
        assert forgotten.over
        assert running.pid != forgotten.pid
        assert await connection.fetchval("SELECT to_regclass('kept') IS NOT NULL")


async def test_a_pid_file_of_another_life_is_not_believed(data_dir: Path) -> None:
    """Its pid is another process's now: ours, whom nobody must end."""
    async with postgres(data_dir):
        pid_file = data_dir / "postgres" / "postmaster.pid"
        text = pid_file.read_text()
    lines = text.splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    async with postgres(data_dir) as running:
        await check_server(running.url)


async def test_data_of_another_version_is_refused_and_left_as_it_is(data_dir: Path) -> None:
    (data_dir / "postgres" / "PG_VERSION").write_text("9.6\n")
    before = everything_in(data_dir)
    with pytest.raises(DatabaseError, match=r"PostgreSQL 9\.6, this is \d+; it is left as it is"):
        async with postgres(data_dir):
            pass
    assert everything_in(data_dir) >= before


def everything_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


async def test_a_folder_that_is_no_cluster_is_not_made_one(tmp_path: Path) -> None:
    data_dir = tmp_path / "new"
    (data_dir / "postgres").mkdir(parents=True)
    (data_dir / "postgres" / "precious").touch()
    with pytest.raises(DatabaseError, match="an unknown version"):
        async with postgres(data_dir):
            pass
    assert (data_dir / "postgres" / "precious").exists()


async def test_a_cluster_whose_making_was_interrupted_is_made_again(tmp_path: Path) -> None:
    data_dir = tmp_path / "new"
    (data_dir / "postgres.new" / "base").mkdir(parents=True)
    async with postgres(data_dir) as running:
        await check_server(running.url)


async def test_what_it_says_of_a_bad_start_is_told(data_dir: Path) -> None:
    with pytest.raises(DatabaseError, match="max_connections"):
        async with postgres(data_dir, max_connections="none"):
            pass
    async with postgres(data_dir) as running:  # and nothing is in the way of a better one
        await check_server(running.url)


async def test_a_data_folder_too_deep_for_a_socket(data_dir: Path) -> None:
    deep = data_dir.parent / ("d" * 120)
    shutil.move(data_dir, deep)
    async with postgres(deep) as running:
        await check_server(running.url)
        assert f"waybill-{os.geteuid()}" in running.url
        assert socket_folder(deep).exists()
    assert not socket_folder(deep).exists()


async def test_a_database_that_does_not_let_us_in(data_dir: Path) -> None:
    async with postgres(data_dir) as running:
        with pytest.raises(DatabaseError, match="does not let us in"):
            await check_server(running.url.replace("/waybill?", "/missing?"))


async def test_a_url_is_used_as_it_is(postgres_url: str, tmp_path: Path) -> None:
    async with database(postgres_url, tmp_path / "unused", SystemClock()) as url:
        assert url == postgres_url
    assert not (tmp_path / "unused").exists()


# --- a jobstore around it --------------------------------------------------------------------------------------------


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="waybill-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def postmaster_of(data_dir: Path) -> psutil.Process:
    return psutil.Process(int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0]))


def an_interpreter_for(user: pwd.struct_passwd) -> str:
    """An interpreter of our version that a user may run: ours, or, where that is root's alone, the system's."""
    for interpreter in (sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"):
        try:
            subprocess.run([interpreter, "-c", "import jobstore"], user=user.pw_uid, cwd="/", env=PATHS, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return interpreter
    pytest.skip("no interpreter that this user may run")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_runs_it_as_himself(open_folder: Path) -> None:
    user = pwd.getpwnam("nobody")
    interpreter = an_interpreter_for(user)
    os.chown(open_folder, user.pw_uid, user.pw_gid)
    with a_jobstore(
        open_folder / "data", interpreter=interpreter, user=user.pw_uid, group=user.pw_gid, extra_groups=[]
    ) as process:
        await_listening(process)
        assert postmaster_of(open_folder / "data").uids().real == user.pw_uid
        end(process)
    assert not (open_folder / "data" / "postgres" / "postmaster.pid").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_root_without_user_namespaces_runs_it_as_another_user(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = pwd.getpwnam("nobody")
    monkeypatch.setattr("jobstore.postgres.datafolder._identities", lambda: [f"user:{user.pw_uid}:{user.pw_gid}"])
    async with postgres(open_folder / "data") as running:
        assert psutil.Process(running.pid).uids().real == user.pw_uid
        await check_server(running.url)
    monkeypatch.undo()
    async with postgres(open_folder / "data") as running:  # and back again, on the same data
        await check_server(running.url)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next start ends it")
def test_it_does_not_outlive_a_killed_jobstore(data_dir: Path) -> None:
    with a_jobstore(data_dir) as process:
        await_listening(process)
        postmaster = postmaster_of(data_dir)
        process.kill()
        process.wait()
    psutil.wait_procs([postmaster], timeout=20)
    assert not postmaster.is_running() or postmaster.status() == psutil.STATUS_ZOMBIE
    with a_jobstore(data_dir) as again:
        await_listening(again)
        end(again)


def test_a_jobstore_that_cannot_use_its_folder_says_so(data_dir: Path) -> None:
    with a_jobstore(data_dir) as first:
        await_listening(first)
        with a_jobstore(data_dir) as second:
            assert second.wait(20) == 4
        end(first)
