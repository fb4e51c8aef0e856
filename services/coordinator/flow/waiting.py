"""What a flow waits for before anything of it begins. Pure.

    PENDING ─┬─ for jobs:  all of them have ended ────────────────┐
             │             one not well, and the policy is SKIP ──┼─▶ never begins: SKIPPED, naming it
             │             one was deleted before it was seen ────┼─▶ never begins: FAILED, naming it
             └─ for locks: they may be free ─────────────────────▶ planned, and its first commit tried (anew)
                           its time is over ─────────────────────▶ tried once more, the refusal counts

A flow that waits is PENDING, has no lock and no plan; validate and execute run when its turn comes, on what is true
then. What it waits for is stored, so whoever takes it up goes on waiting. How jobs end is told and never forgotten
(an end does not change); that locks are free is only a reason to try: the store decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.flow import failures
from coordinator.rows import Dependency, DependencyPolicy, Failure, LockKey, Status


@dataclass(slots=True)
class Waiting:
    """See the module.

    `locks` are those that it is to queue for, `queued` those that it has stored places for; `until`: when it gives up
    (0.0: it does not queue).
    """

    dependencies: dict[str, Dependency] = field(default_factory=dict)
    locks: list[LockKey] = field(default_factory=list)
    queued: tuple[LockKey, ...] = ()
    until: float = 0.0
    since: float = 0.0  # when it began to wait for locks
    barred: bool = False  # by somebody's lock, as far as we know
    barred_by: str = ""  # in words
    told: bool = False  # that locks may be free, since the last try began
    last_try: bool = False  # its time is over

    @classmethod
    def of(cls, dependencies: Iterable[Dependency], until: float = 0.0, *, barred: bool = False) -> Waiting | None:
        """What a flow waits for that is submitted or taken up; None if nothing."""
        known = {each.job_id: each for each in dependencies}
        return cls(known, until=until, barred=barred) if known or until else None

    def learn(self, dependencies: Iterable[Dependency]) -> None:
        """Hears how jobs are; an end stays one, also when the job is deleted afterwards."""
        for news in dependencies:
            known = self.dependencies.get(news.job_id)
            if known is not None and not known.ended:
                self.dependencies[news.job_id] = Dependency(news.job_id, known.policy, news.status, news.gone)

    def hindrance(self) -> Failure | None:
        """Why it will never begin; None as long as it may."""
        for dependency in self.dependencies.values():
            if dependency.gone:
                return failures.dependency_gone(dependency.job_id)
            if dependency.policy is DependencyPolicy.SKIP and dependency.ended and dependency.status != Status.FINISHED:
                return failures.dependency_failed(dependency.job_id, dependency.status)
        return None

    @property
    def is_ready(self) -> bool:
        """True if there is nothing to wait for, as far as we know."""
        return not self.barred and all(dependency.ended for dependency in self.dependencies.values())

    def try_now(self) -> None:
        """A try begins: what is told of locks from now on is news."""
        self.barred = self.told = False

    def hear_of_locks(self) -> None:
        """Locks may be free."""
        self.barred, self.told = False, True

    def give_up(self) -> None:
        """Its time is over: there is one more try."""
        self.barred, self.last_try = False, True

    def bar(self, keys: Iterable[LockKey], wait: float, now: float, words: str) -> bool:
        """A try was refused for a lock. True if it queues (on); False if its time is over."""
        self.since = self.since or now
        until = self.until or self.since + wait
        if self.last_try or now >= until:
            return False
        self.locks, self.until, self.barred_by = list(keys), until, words
        self.barred, self.told = not self.told, False
        return True
