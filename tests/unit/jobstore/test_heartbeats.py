"""For how long jobs have been silent: no clock, counts in, the silent ones come out."""

from __future__ import annotations

import itertools

from jobstore.heartbeats import SHUT_SECONDS, Beat, Silence

_leases = itertools.count()


def look(silence: Silence, now: float, *beats: Beat, leases: str | None = None) -> list[str]:
    """Looks, with a coordinator that has renewed its lease meanwhile unless said otherwise."""
    seen = silence.seen(beats, f"c {next(_leases)}" if leases is None else leases, now)
    return [beat.job_id for beat in seen]


def test_a_job_whose_count_stands_still_for_its_time_is_silent() -> None:
    silence, job = Silence(), Beat("job-1", 3, 10)
    assert look(silence, 100.0, job) == []
    assert silence.next(100.0) == 10.0
    assert look(silence, 109.9, job) == []
    assert look(silence, 110.0, job) == ["job-1"]


def test_a_job_that_was_heard_of_has_its_whole_time_again() -> None:
    silence = Silence()
    look(silence, 0.0, Beat("job-1", 0, 10))
    assert look(silence, 9.0, Beat("job-1", 1, 10)) == []
    assert look(silence, 18.9, Beat("job-1", 1, 10)) == []
    assert look(silence, 19.0, Beat("job-1", 1, 10)) == ["job-1"]


def test_each_job_has_its_own_time() -> None:
    silence, quick, slow = Silence(), Beat("quick", 0, 5), Beat("slow", 0, 50)
    look(silence, 0.0, quick, slow)
    assert look(silence, 5.0, quick, slow) == ["quick"]
    assert silence.next(5.0) == 0.0
    assert look(silence, 6.0, slow) == []
    assert silence.next(6.0) == 44.0


def test_time_in_which_nobody_could_look_does_not_count() -> None:
    silence, job = Silence(), Beat("job-1", 0, 10)
    look(silence, 0.0, job)
    silence.forget()
    assert look(silence, 11.0, job) == []
    assert look(silence, 21.0, job) == ["job-1"]


def test_time_in_which_no_coordinator_lived_does_not_count() -> None:
    silence, job = Silence(), Beat("job-1", 0, 60)
    look(silence, 0.0, job, leases="c 7")
    look(silence, SHUT_SECONDS, job, leases="c 7")
    assert look(silence, 60.0, job, leases="c 7") == []
    assert look(silence, 61.0, job, leases="c 8") == []
    assert look(silence, 121.0, job, leases="c 9") == ["job-1"]


def test_looks_in_quick_succession_do_not_make_a_coordinator_seem_dead() -> None:
    silence, job = Silence(), Beat("job-1", 0, 2)
    found = [look(silence, tenth / 10, job, leases=f"c {tenth // 10}") for tenth in range(21)]
    assert found[-1] == ["job-1"]


def test_nobody_is_waited_for_where_nobody_wants_to_be_listened_to() -> None:
    silence = Silence()
    assert look(silence, 0.0) == []
    assert silence.next(0.0) == float("inf")
