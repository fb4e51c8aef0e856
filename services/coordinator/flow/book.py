"""A flow's rows, as they will be once everything that was decided is stored, and the only door by which they change.

    the tree decides ──▶ book: the row changes, `pending` remembers ──▶ outbox: a commit ──▶ stored
                                   ▲                                        │
                                   └──────── take_back: as it was ◀─────────┘ refused

Every change notes the row's former image once, so that what a refused commit held can be taken back exactly: then the
rows are again those of the store, and the flow can live what followed once more (`tree.py`). That costs a tuple per
changed row and saves every other part of the tree from knowing how to undo itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from coordinator.flow.mutations import Mutations
from coordinator.rows import Command, FlowRows, Job, Leaf, Snapshot, Step


class Book:
    """See the module. The dicts are by id; they stay the same objects for the flow's life."""

    def __init__(self, job: Job, root: Command) -> None:
        self.job = job
        self.root = root
        self.commands: dict[str, Command] = {root.command_id: root}
        self.child_jobs: dict[str, Job] = {}  # of children that show as jobs
        self.steps: dict[str, Step] = {}
        self.leaves: dict[str, Leaf] = {}
        self.snapshots: list[Snapshot] = []
        self.pending = Mutations()
        self._children: dict[str, list[str]] = {}  # ids by parent
        self._leaves_of: dict[str, list[Leaf]] = {}  # by command

    @classmethod
    def of(cls, rows: FlowRows) -> Book:
        """Opens the book of a flow that is stored."""
        root = next(command for command in rows.commands if not command.parent_command_id)
        book = cls(rows.job, root)
        book.commands = {command.command_id: command for command in rows.commands}
        book.child_jobs = {job.job_id: job for job in rows.child_jobs}
        book.steps = {step.step_id: step for step in rows.steps}
        book.leaves = {leaf.task_id: leaf for leaf in rows.leaves}
        book.snapshots = list(rows.snapshots)
        book._index()
        return book

    # --- what is new -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Enters the job and the root command of a new flow."""
        root, pending = self.root, self.pending
        pending.former += ((self.job, self.job.image()), (root, root.image()))
        pending.new_job = True
        pending.new_commands[root.command_id] = self.commands[root.command_id] = root

    def add_child_job(self, job: Job) -> None:
        """Enters the job that shows a child."""
        self.child_jobs[job.job_id] = self.pending.new_child_jobs[job.job_id] = job

    def add_step(self, step: Step) -> None:
        """Enters a step."""
        self.steps[step.step_id] = self.pending.new_steps[step.step_id] = step

    def add_command(self, command: Command) -> None:
        """Enters a child command."""
        self.commands[command.command_id] = self.pending.new_commands[command.command_id] = command
        self._children.setdefault(command.parent_command_id, []).append(command.command_id)

    def add_leaf(self, leaf: Leaf) -> None:
        """Enters the intent of a task, call or wait."""
        self.leaves[leaf.task_id] = self.pending.new_leaves[leaf.task_id] = leaf
        self._leaves_of.setdefault(leaf.command_id, []).append(leaf)

    def add_snapshot(self, snapshot: Snapshot) -> None:
        """Enters what an entity was."""
        self.snapshots.append(snapshot)
        self.pending.snapshots.append(snapshot)

    # --- what changes: to be said before it does ---------------------------------------------------------------------

    def change_job(self) -> Job:
        """Returns the job, which is about to change."""
        pending, job = self.pending, self.job
        if not (pending.job or pending.new_job):
            pending.job = True
            pending.former.append((job, job.image()))
        return job

    def change_child_job(self, job: Job) -> None:
        """The job that shows a child is about to change."""
        pending, key = self.pending, job.job_id
        if key not in pending.child_jobs and key not in pending.new_child_jobs:
            pending.child_jobs[key] = job
            pending.former.append((job, job.image()))

    def is_new(self, job: Job) -> bool:
        """Tells whether a job is not in the store yet, nor on its way there."""
        return self.pending.new_job if job is self.job else job.job_id in self.pending.new_child_jobs

    def rename(self, job: Job) -> None:
        """A job that is stored is about to have its names."""
        if job is self.job:
            self.change_job()
        else:
            self.change_child_job(job)
        self.pending.named.add(job.job_id)

    def change_step(self, step: Step) -> None:
        """A step is about to change."""
        pending, key = self.pending, step.step_id
        if key not in pending.steps and key not in pending.new_steps:
            pending.steps[key] = step
            pending.former.append((step, step.image()))

    def change_command(self, command: Command) -> None:
        """A command is about to change."""
        pending, key = self.pending, command.command_id
        if key not in pending.commands and key not in pending.new_commands:
            pending.commands[key] = command
            pending.former.append((command, command.image()))

    def change_leaf(self, leaf: Leaf) -> None:
        """A leaf is about to change."""
        pending, key = self.pending, leaf.task_id
        if key not in pending.leaves and key not in pending.new_leaves:
            pending.leaves[key] = leaf
            pending.former.append((leaf, leaf.image()))

    def take_back(self, commits: Iterable[Mutations]) -> None:
        """Makes the rows what they were before these; the newest first."""
        for mutations in commits:
            for row, image in reversed(mutations.former):
                row.restore(image)
            _drop(self.child_jobs, mutations.new_child_jobs)
            _drop(self.steps, mutations.new_steps)
            _drop(self.commands, mutations.new_commands)
            _drop(self.leaves, mutations.new_leaves)
            del self.snapshots[len(self.snapshots) - len(mutations.snapshots) :]
        self._index()

    # --- reading -----------------------------------------------------------------------------------------------------

    def leaves_below(self, command_id: str) -> Iterator[Leaf]:
        """All leaves that a command and those below it have begun."""
        commands = [command_id]
        while commands:
            command_id = commands.pop()
            yield from self._leaves_of.get(command_id, ())
            commands += self._children.get(command_id, ())

    def begun_places(self) -> set[tuple[str, int, str]]:
        """(command id, attempt, path) of every node that has begun: those with a row, and all that they are part of."""
        places = set()
        for command_id, attempt, path in self._rows_with_places():
            while (command_id, attempt, path) not in places:
                places.add((command_id, attempt, path))
                path = path.rpartition(".")[0]
        return places

    def _rows_with_places(self) -> Iterator[tuple[str, int, str]]:
        for leaf in self.leaves.values():
            yield leaf.command_id, leaf.attempt, leaf.path
        for command in self.commands.values():
            if command.parent_command_id:
                attempt, _, path = command.node.partition(":")
                yield command.parent_command_id, int(attempt), path

    def _index(self) -> None:
        self._children, self._leaves_of = {}, {}
        for command in self.commands.values():
            self._children.setdefault(command.parent_command_id, []).append(command.command_id)
        for leaf in self.leaves.values():
            self._leaves_of.setdefault(leaf.command_id, []).append(leaf)


def _drop(rows: dict[str, Any], new: Iterable[str]) -> None:
    for key in new:
        del rows[key]
