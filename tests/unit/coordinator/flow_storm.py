"""Random flows in a random world: plans of every kind, and whatever can happen to them, in any order.

    storm = Storm(rng)      a plan, commands' code, what hosts will say, what cancelling does: all by chance
    storm.rage()            events in random order: reports, losses, observations, timers, cancels, refusals, crashes
    storm.calm_down()       no more faults; the flow must come to its end
    storm.judge()           the invariants, by an oracle that knows the plans and the rows, not the tree

The same source of chance gives the same history. `happened` counts what did: a storm in which nothing happens proves
nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from tests.unit.coordinator.flow_scenario import (
    BROKEN,
    HOST_STOPPED,
    RAISED,
    REFUSED,
    START,
    UNWILLING,
    VM,
    Scenario,
    Script,
)
from tests.unit.coordinator.flow_store import Entity

from coordinator.flow import events as ev
from coordinator.flow.fences import FENCE, RAISE
from coordinator.flow.planjson import attempt_from_json
from coordinator.plan import (
    Attempt,
    Call,
    Change,
    Child,
    Cleanup,
    Concurrently,
    EntityRef,
    Former,
    Inlined,
    Instead,
    Nothing,
    Observation,
    Plan,
    Serially,
    Task,
    WaitFor,
    state,
)
from coordinator.rows import Cancel, Command, CommandStatus, DependencyPolicy, Failure, Leaf, LeafKind, Status

TYPES = ("Root", "One", "Two", "Three")
LOCKS = (EntityRef("VM", "lock-1"), EntityRef("VM", "lock-2"))
STATES = ("UP", "DOWN", "PAUSED")
REPLACED = Failure(9, "TASK_LOST", "the host's data were replaced", {"incarnation": "i2"})
VOLUME_SAYS = (
    {"outcome": "DONE", "generation": 4, "legality": "LEGAL"},
    {"outcome": "FENCED", "generation": 3 + RAISE, "legality": "LEGAL"},
    {"outcome": "FENCED", "generation": 3 + RAISE, "legality": "ILLEGAL"},
    {"outcome": "DOUBTFUL", "generation": 5, "legality": "LEGAL"},
)
LONGEST = 2_000


def disk_of(command_type: str) -> EntityRef:
    """The disk that commands of a type change."""
    return EntityRef("DISK", f"of-{command_type}")


def _nodes(plan: Plan, path: str) -> Iterator[tuple[str, Plan]]:
    yield path, plan
    for n, part in enumerate(getattr(plan, "plans", ())):
        yield from _nodes(part, f"{path}.{n}" if path else str(n))


class Tried(NamedTuple):
    """An attempt of a command."""

    number: int
    plan: Plan
    cleans: bool = False


class Storm:
    """See the module."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.happened: Counter[str] = Counter()
        self._inlined = 0
        scripts = {kind: self._script(kind) for kind in TYPES}
        self.flow = Scenario(
            scripts.pop("Root"),
            scripts,
            cancel=rng.choice([*Cancel, Cancel.REVERT, Cancel.REVERT]),
            deadline=START + rng.choice([20, 200]) if self._chance(15) else 0.0,
            entities=[ref for ref in (*map(disk_of, TYPES), *LOCKS) if self._chance(80)],
            depends_on={job_id: self._status_of_another() for job_id in ("job-1", "job-2") if self._chance(14)},
            policy=rng.choice([*DependencyPolicy]),
        )
        self.flow.hold = {"plan", "revise", "end", "commit"}
        self._first_entities = {ref: entity.status for ref, entity in self.flow.store.entities.items()}
        self._fates: dict[str, ev.LeafReported] = {}  # what hosts have made of what they were told to do
        self._said: list[ev.LeafReported] = []
        self._cancels = 0
        self._wishes = 100  # other ones: tokens from here on
        self._number = 0
        self._ended_in_a_crash = False

    def _chance(self, percent: int) -> bool:
        return self.rng.randrange(100) < percent

    # --- plans and code ----------------------------------------------------------------------------------------------

    def _script(self, kind: str) -> Script:
        return Script(
            plan=self._plan(kind, 3),
            refused=REFUSED if kind != "Root" and self._chance(6) else None,
            raised=RAISED if self._chance(3) else None,
            locks=[ref for ref in LOCKS if self._chance(25)],
            lock_wait=self.rng.choice([0, 0, 5, 50]),
            reads=[ref for ref in LOCKS if self._chance(25)],
            changes={disk_of(kind): f"LOCKED by {kind}"} if self._chance(40) else {},
            ends={disk_of(kind): "ENDED"} if self._chance(30) else None,
            end_raises=self.rng.choice([1, 2, 9]) if self._chance(10) else 0,
            after=[self._after(kind) for _ in range(self.rng.choice([1, 2, 3]))] if self._chance(75) else (),
        )

    def _after(self, kind: str) -> Attempt | Failure | None:
        dice = self.rng.randrange(100)
        if dice < 10:
            return RAISED if dice < 5 else None
        plan = self._plan(kind, 2)
        return Instead(plan) if dice < 70 else Cleanup(plan)

    def _plan(self, kind: str, depth: int) -> Plan:
        group = depth > 0 and self._chance(95 if kind == "Root" and depth == 3 else 45)
        return self._group(kind, depth) if group else self._leaf(kind)

    def _group(self, kind: str, depth: int) -> Plan:
        parts = tuple(self._plan(kind, depth - 1) for _ in range(self.rng.choice([0, 1, 2, 2, 3, 3, 4, 5])))
        if self._chance(60):
            self._inlined += 1
            inlined = Inlined(f"Part {self._inlined}") if self._inlined % 5 == 0 else None
            return Serially(plans=parts, inlined=inlined, **self._options())
        return Concurrently(plans=parts, **self._options())

    def _leaf(self, kind: str) -> Plan:
        options, entity = self._options(), disk_of(kind) if self._chance(40) else None
        below = TYPES[TYPES.index(kind) + 1 :]
        dice = self.rng.randrange(100)
        if dice < 8:
            return Nothing(**options)
        if dice < 18:
            return Change(entity=disk_of(kind), status="CHANGED", former=Former("", "OK", {}), **options)
        if dice < 30:
            until, fails_if = state(self.rng.choice(STATES)), state(self.rng.choice(STATES))
            return WaitFor(entity=VM, until=until, fails_if=fails_if, deadline=30, **options)
        if dice < 45:
            return Call(host_id="h2", verb="call", entity=entity, **options)
        if dice < 70 and below:
            return Child(command_type=self.rng.choice(below), as_job=self._chance(30), **options)
        if self._chance(70):
            options |= {"arguments": {"volume_id": "v1"}, "expected_generation": 3}
        return Task(host_id="h1", verb="work", entity=entity, deadline=self.rng.choice([None, None, 15]), **options)

    def _options(self) -> dict[str, Any]:
        return {
            "step": self.rng.choice(["", "A", "B", "C"]),
            "best_effort": self._chance(8),
            "no_return": self._chance(5),
            "weight": self.rng.choice([0, 1, 1, 5]),
        }

    # --- what happens ------------------------------------------------------------------------------------------------

    def rage(self) -> None:
        """Lets things happen until the flow has ended or there has been enough."""
        self.flow.submit()
        for _ in range(self.rng.randrange(10, 100)):
            if self._is_over():
                return
            self._something(faults=True)

    def calm_down(self) -> None:
        """Lets only what must happen do so, until the flow has ended."""
        self._free_locks()
        for _ in range(LONGEST):
            if self._is_over():
                return
            self._something(faults=False)
        raise AssertionError(f"it does not end: {self.flow.asks()}")

    def _is_over(self) -> bool:
        return self.flow.store.ended or self.flow.refused is not None

    def _something(self, *, faults: bool) -> None:
        flow = self.flow
        possible: list[Callable[[], None]] = []
        possible += [self._plan_one] * 4 * bool(flow.plans)
        possible += [self._revise_one] * 4 * bool(flow.revisions)
        possible += [self._end_one] * 4 * bool(flow.ends)
        possible += [self._record if faults else flow.record] * 5 * bool(flow.commit)
        possible += [self._report] * 8 * bool(flow.begun)
        possible += [self._see] * bool(list(flow.tree.waits_for()))
        possible += [self._fire] * bool(flow.timers)
        possible += [self._another_ends] * bool(self._others())
        if faults:
            possible += [self._repeat_report, self._cancel, self._crash, self._crash, self._meddle, self._wish]
            possible += [self._stall] * bool(flow.begun)
        self.rng.choice(possible)()

    def _note(self, what: str) -> None:
        self.happened[what] += 1

    def _plan_one(self) -> None:
        self._note("plan")
        self.flow.plan(self.rng.choice(list(self.flow.plans)))

    def _revise_one(self) -> None:
        self._note("after failure")
        self.flow.revise(self.rng.choice(list(self.flow.revisions)))

    def _end_one(self) -> None:
        self._note("end")
        self.flow.end(self.rng.choice(list(self.flow.ends)))

    def _record(self) -> None:
        flow = self.flow
        assert flow.commit is not None
        if self._chance(6):
            if flow.store.sequence > 0:
                flow.store.refusals.append(UNWILLING)
            elif self._chance(30):
                flow.store.refusals.append(Failure(6, "REQUEST_ID_REUSED", "used with another body"))
        failure = flow.store.refusals[0] if flow.store.refusals else flow.store.refusal(flow.commit)
        when = "first" if flow.store.sequence == 0 else "later"
        self._note(f"{when} commit refused {failure.reason}" if failure else "recorded")
        flow.record()

    def _report(self) -> None:
        flow = self.flow
        leaf = flow.begun[self.rng.choice(list(flow.begun))]
        if self._chance(25):
            self._note("progress")
            flow.report(leaf.task_id, "", progress=self.rng.randrange(101))
            return
        fate = self._fates.get(leaf.task_id) or self._fate_of(leaf)
        self._note("lost" if fate.lost else fate.result)
        self._say(fate)

    def _fate_of(self, leaf: Leaf) -> ev.LeafReported:
        """Decides, once and for all, what a host makes of a task or call."""
        self._number += 1
        numbers = {"observation_number": self._number, "incarnation": "i1"}
        dice = self.rng.randrange(100)
        if leaf.verb == FENCE and dice < 80:
            said = self.rng.choice(VOLUME_SAYS)
            self._note(f"fence {said['outcome']}")
            fate = ev.LeafReported(leaf.task_id, "SUCCESS", answer=said, **numbers)
        elif leaf.task_id in self.flow.stopped and dice < 60:
            fate = ev.LeafReported(leaf.task_id, "CLEAN_SUCCESS", error=HOST_STOPPED, **numbers)
        elif dice < 84:
            fate = ev.LeafReported(leaf.task_id, "SUCCESS", **numbers)
        elif dice < 91:
            fate = ev.LeafReported(leaf.task_id, "CLEAN_SUCCESS", error=BROKEN, **numbers)
        elif dice < 96:
            error = HOST_STOPPED if self._chance(30) else BROKEN
            fate = ev.LeafReported(leaf.task_id, "CLEAN_FAILURE", error=error, **numbers)
        else:
            fate = ev.LeafReported(leaf.task_id, lost=True, error=self.rng.choice([BROKEN, None, REPLACED, REPLACED]))
        self._fates[leaf.task_id] = fate
        return fate

    def _say(self, report: ev.LeafReported) -> None:
        self._said.append(report)
        self.flow.begun.pop(report.task_id, None)
        self.flow.take(report)

    def _stall(self) -> None:
        leaf = self.flow.begun[self.rng.choice(list(self.flow.begun))]
        if leaf.kind is LeafKind.TASK:
            self._note("stall")
            for _ in range(self.rng.choice([1, 2])):
                self.flow.take(ev.TaskStalled(leaf.task_id, 600.0))

    def _repeat_report(self) -> None:
        if self._said:
            self._note("repeated report")
            report = self.rng.choice(self._said)
            if self._chance(30):
                report = ev.LeafReported(report.task_id, "", progress=50)
            if report.task_id not in self.flow.begun:  # else it would be the first word to a new process
                self.flow.take(report)

    def _see(self) -> None:
        self._note("seen")
        self._number += self._chance(80)
        seen = Observation(self.rng.choice(STATES), "h1", "", self.rng.choice(["i1", "i1", "i2"]), self._number)
        self.flow.store.observed[VM] = seen
        if VM in set(self.flow.tree.waits_for()):
            self.flow.take(ev.EntitySeen(VM, seen))

    def _fire(self) -> None:
        key = min(self.flow.timers, key=lambda key: (self.flow.timers[key], key))
        self._note(f"timer {key.split()[0]}")
        self.flow.fire(key)

    def _cancel(self) -> None:
        if self._cancels < 3 and self._chance(30):
            self._cancels += 1
            self._note("cancel")
            self.flow.cancel(self._cancels, request_id=f"r{self._cancels}" if self._chance(50) else "")

    def _wish(self) -> None:
        """Somebody wants tasks stopped, or another priority."""
        if not self._chance(15):
            return
        self._wishes += 1
        if self._chance(50):
            running = [leaf.task_id for leaf in self.flow.begun.values()]
            task_ids = tuple(self.rng.sample(running, min(len(running), self.rng.randrange(2))))
            self._note("stop asked")
            self.flow.take_wish(ev.StopAsked(self._wishes, task_ids, "ada"))
        else:
            self._note("priority asked")
            self.flow.take_wish(ev.PriorityAsked(self._wishes, self._wishes, "ada"))

    def _status_of_another(self) -> Status:
        return self.rng.choice([Status.STARTED, Status.PENDING, Status.FINISHED])

    def _others(self) -> list[str]:
        """Jobs that it waits for and that have not ended."""
        jobs = self.flow.store.jobs
        return [job_id for job_id in self.flow.store.dependencies if (at := jobs[job_id]) is not None and not at.ended]

    def _another_ends(self) -> None:
        status = self.rng.choice([Status.FINISHED] * 4 + [Status.FAILED, None])
        self._note("another job ends")
        self.flow.job_ends(self.rng.choice(self._others()), status)

    def _free_locks(self) -> None:
        for ref in list(self.flow.store.foreign_locks):
            if ref in self.flow.store.places:
                self._note("a lock is freed that it queues for")
            self.flow.lock_is_freed(ref)

    def _crash(self) -> None:
        if self.flow.store.job is not None and self.flow.crashes < 3 and self._chance(25):
            lost = self._chance(50)
            self._note("crash" if self.flow.commit is None else f"crash, commit {'lost' if lost else 'stored'}")
            self.flow.crash(commit_is_lost=lost)
            self._ended_in_a_crash = self.flow.store.ended

    def _meddle(self) -> None:
        """Other flows change entities, take locks and free them."""
        store = self.flow.store
        if self._chance(60):
            ref = self.rng.choice([*LOCKS, *LOCKS, *map(disk_of, TYPES)])
            if ref not in store.locks:
                store.entities.setdefault(ref, Entity(version=0)).version += 1
        elif store.foreign_locks and self._chance(50):
            self._free_locks()
        else:
            ref = self.rng.choice(LOCKS)
            if ref not in store.locks:
                store.foreign_locks[ref] = "job-7"

    # --- what must hold ----------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Asserts what must be true of every flow that has ended."""
        flow, store = self.flow, self.flow.store
        if flow.refused is not None:
            self._note("refused to the submitter")
            assert store.job is None
            assert (flow.done, flow.answers) == (1, 0)
            return
        assert store.violations() == []
        assert flow.done == 1
        self._note(f"job {flow.job.status}")
        self.happened["compared with a loaded tree"] += flow.compared
        self.happened["stopped"] += len(flow.stopped)
        places = Counter((leaf.command_id, leaf.attempt, leaf.path) for leaf in store.leaves.values())
        assert set(places.values()) <= {1}, "one place began twice"
        self._judge_events()
        self._judge_ends()
        self._judge_child_jobs()
        self._judge_result()
        self._judge_steps()
        self._judge_inlined()
        self._judge_entities()
        assert set(store.handled.values()) <= {1}
        if not flow.crashes:
            assert flow.cancel_answers.keys() >= set(range(1, self._cancels + 1)), "a cancel was not answered"
            assert flow.answers_to_wishes.keys() >= set(range(101, self._wishes + 1)), "a wish was not answered"
        if not self._ended_in_a_crash:  # else whoever owns the hosts clears what is left
            begun = [leaf.task_id for leaf in store.leaves.values() if leaf.kind is not LeafKind.WAIT]
            assert sorted(flow.cleared) == sorted(begun)

    def _judge_events(self) -> None:
        kinds = Counter(self.flow.event_types())
        wished = bool(self.flow.job.cancel_requested_by)
        assert kinds["JOB_CANCELED"] + kinds["JOB_DEADLINE_EXCEEDED"] == wished
        lost = sum(leaf.state == "UNKNOWN" and leaf.verb != FENCE for leaf in self.flow.store.leaves.values())
        assert kinds["TASK_LOST"] == lost

    def _judge_ends(self) -> None:
        """The notes of an end are stored once, of a plan at most once; a plan is sealed with what it begins."""
        store = self.flow.store
        for command in store.commands.values():
            times = store.occasions[command.command_id, "end"]
            gave_up = self._gave_up(command.command_type)
            has_end = self.flow.scripts[command.command_type].ends is not None
            if command.plans and has_end and not gave_up:
                assert times == 1, f"the end of {command.command_type} took effect {times} times"
            if not command.plans:
                assert times == 0, f"{command.command_type} was refused, yet it ended"
                assert command.status is not CommandStatus.ENDED_SUCCESSFULLY

    def _gave_up(self, command_type: str) -> bool:
        return any(
            event.event_type == "END_METHOD_GAVE_UP" and event.message.startswith(f"{command_type} ")
            for event in self.flow.store.events
        )

    def _judge_child_jobs(self) -> None:
        """The job of a child says how the child went, and has a tree of its own."""
        store = self.flow.store
        for job in store.child_jobs.values():
            self._note("a child's job")
            command = store.commands[job.command_id]
            went_well = command.status is CommandStatus.ENDED_SUCCESSFULLY
            assert (job.status is Status.FINISHED) == went_well, f"{job.status}, but {command.status}"
            assert (job.error is None) == went_well
            tops = {
                s.step_type: s.status for s in store.steps.values() if s.job_id == job.job_id and not s.parent_step_id
            }
            assert tops.keys() >= {"VALIDATION", "EXECUTION"}
            assert not went_well or set(tops.values()) == {Status.FINISHED}

    def _judge_result(self) -> None:
        root = self.flow.store.commands[self.flow.tree.root.command_id]
        finished = self.flow.job.status is Status.FINISHED
        done = self._is_done("Root", root.command_id)
        if finished:
            assert done, "FINISHED with less than was declared"
        wished = bool(self.flow.job.cancel_requested_by)
        if not wished and not any(map(self._gave_up, TYPES)):
            assert finished == done, f"{self.flow.job.status}, though all is {'done' if done else 'not done'}"
        if self.flow.job.status is Status.ABORTED:
            stopped_there = any(
                leaf.error and leaf.error.reason == "ABORTED" for leaf in self.flow.store.leaves.values()
            )
            assert wished or stopped_there

    def _is_done(self, command_type: str, command_id: str) -> bool:
        """Whether all that a command declared was done, and nothing was begun that must not have been."""
        command = self.flow.store.commands[command_id]
        if not command.plans:
            assert not any(leaf.command_id == command_id for leaf in self.flow.store.leaves.values())
            return False
        *failed, last = self._attempts(command)
        wished = bool(self.flow.job.cancel_requested_by)  # then what had not begun is skipped, be it nothing at all
        for attempt in failed:
            went = self._went(command_id, attempt, attempt.plan, "")
            assert wished or not went, "tried again though it went well"
        return self._went(command_id, last, last.plan, "") and not last.cleans

    def _attempts(self, command: Command) -> list[Tried]:
        """All attempts of a command, as its script says; their plans are the ones that are stored."""
        script = self.flow.scripts[command.command_type]
        tried = [Tried(1, script.plan)]
        for number in range(2, len(command.plans) + 1):
            assert not callable(script.after)
            after = script.after[number - 2]
            assert isinstance(after, Instead | Cleanup)
            tried.append(Tried(number, after.plan, isinstance(after, Cleanup)))
        assert [attempt_from_json(plan) for plan in command.plans] == [(each.plan, each.cleans) for each in tried]
        assert not any(each.cleans for each in tried[:-1]), "something was tried after a clean-up"
        return tried

    def _went(self, command_id: str, attempt: Tried, plan: Plan, path: str) -> bool:
        """Whether a node went well as seen from above it."""
        went = self._went_itself(command_id, attempt, plan, path)
        return went or plan.best_effort

    def _leaf_at(self, command_id: str, attempt: Tried, path: str) -> Leaf | None:
        place = (command_id, attempt.number, path)
        [leaf] = [x for x in self.flow.store.leaves.values() if (x.command_id, x.attempt, x.path) == place] or [None]
        return leaf

    def _went_itself(self, command_id: str, attempt: Tried, plan: Plan, path: str) -> bool:
        store = self.flow.store
        prefix = f"{path}." if path else ""
        match plan:
            case Nothing():
                return True
            case Change():
                return self.flow.store.occasions[command_id, f"change {attempt.number}:{path}"] == 1
            case Task() | Call() | WaitFor():
                leaf = self._leaf_at(command_id, attempt, path)
                assert leaf is None or leaf.over
                return leaf is not None and leaf.result == "SUCCESS"
            case Child():
                place = (command_id, f"{attempt.number}:{path}")
                found = [x for x in store.commands.values() if (x.parent_command_id, x.node) == place]
                if not found:
                    return False
                done = self._is_done(plan.command_type, found[0].command_id)
                ended_well = found[0].status is CommandStatus.ENDED_SUCCESSFULLY
                assert done or not ended_well, f"{plan.command_type} ended well with less than was declared"
                return done and ended_well
            case Concurrently():
                return all(self._went(command_id, attempt, part, f"{prefix}{n}") for n, part in enumerate(plan.plans))
            case Serially():
                for n, part in enumerate(plan.plans):
                    if not self._went(command_id, attempt, part, f"{prefix}{n}"):
                        assert not list(self._begun_after(command_id, attempt, path, n)), "begun after a failure"
                        return False
                return True

    def _begun_after(self, command_id: str, attempt: Tried, path: str, index: int) -> Iterator[str]:
        """What was begun of the stages of a serial node that come after one."""
        places = [(leaf.command_id, f"{leaf.attempt}:{leaf.path}") for leaf in self.flow.store.leaves.values()]
        places += [(c.parent_command_id, c.node) for c in self.flow.store.commands.values()]
        prefix = f"{path}." if path else ""
        for of, node in places:
            number, _, place = node.partition(":")
            if of == command_id and number == str(attempt.number) and place.startswith(prefix) and place != path:
                stage = int(place.removeprefix(prefix).split(".")[0])
                if stage > index:
                    yield place

    def _judge_steps(self) -> None:
        """The step of a leaf or child says how it went, and of nothing else."""
        for command in self.flow.store.commands.values():
            attempts = self._attempts(command) if command.plans else []
            for attempt in attempts[1:]:
                self._note("cleaned up" if attempt.cleans else f"attempt {attempt.number}")
            for attempt in attempts:
                for path, plan in _nodes(attempt.plan, ""):
                    if plan.step and isinstance(plan, Task | Call | WaitFor | Child):
                        self._judge_step(command.command_id, attempt, path, plan)

    def _judge_step(self, command_id: str, attempt: Tried, path: str, plan: Plan) -> None:
        store = self.flow.store
        step = store.steps[str(uuid5(UUID(command_id), f"step:{attempt.number}:{path}"))]
        went = self._went_itself(command_id, attempt, plan, path)
        assert (step.status is Status.FINISHED) == went, f"{step.step_type} is {step.status}"
        begun = self._leaf_at(command_id, attempt, path)
        assert (step.status is Status.UNKNOWN) >= (begun is not None and begun.state == "UNKNOWN")
        if not isinstance(plan, Child):
            assert (step.status is Status.SKIPPED) == (begun is None)

    def _judge_inlined(self) -> None:
        """An inlined child of which something began is ended with its own result; others are not."""
        for command in self.flow.store.commands.values():
            ended = self.flow.parts.get(command.command_id)
            if not command.plans or ended is None or self._gave_up(command.command_type):
                continue
            for attempt in self._attempts(command):
                for path, plan in _nodes(attempt.plan, ""):
                    if isinstance(plan, Serially) and plan.inlined is not None:
                        self._judge_part(command.command_id, attempt, path, plan, ended)

    def _judge_part(
        self, command_id: str, attempt: Tried, path: str, plan: Serially, ended: Mapping[str, bool]
    ) -> None:
        assert plan.inlined is not None
        name = plan.inlined.command_type
        if name in ended:
            self._note("inlined child ended")
            assert ended[name] == self._went_itself(command_id, attempt, plan, path)
        else:
            assert not list(self._begun_after(command_id, attempt, path, -1)), "begun, and never ended"

    def _judge_entities(self) -> None:
        """A command alone on its disk, with default ends, leaves it as it was when it failed, or ILLEGAL."""
        store = self.flow.store
        commands = Counter(command.command_type for command in store.commands.values())
        for command in store.commands.values():
            kind, ref = command.command_type, disk_of(command.command_type)
            script = self.flow.scripts[kind]
            if commands[kind] > 1 or script.ends is not None or not command.plans or self._gave_up(kind):
                continue
            if command.status is CommandStatus.ENDED_SUCCESSFULLY or not script.changes:
                continue
            self._note("undone")
            entity = store.entity(ref)
            former = self._first_entities.get(ref, "")
            assert (entity.status if entity.version else "") in (former, "ILLEGAL", "OK")
