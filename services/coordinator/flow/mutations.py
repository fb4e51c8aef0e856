"""What one commit changes, and what has to be known to take it back.

A commit is whole consequences of what the flow was told: everything in it becomes true at once or not at all. Rows are
shared with the tree and go on changing, so a commit must be written down when it is handed out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.plan import EntityRef
from coordinator.rows import Command, Dependency, EventNote, Image, Job, Leaf, LockKey, Notes, Snapshot, Step

Row = Job | Step | Command | Leaf


@dataclass(slots=True)
class Mutations:
    """See the module. Rows are by id; those in `new_…` are inserted as they are, with all that changed since.

    `notes` are by (command id, occasion): a command's notes of one occasion are stored once, or they would come true
    twice. `child_jobs` are of children that show as jobs; `named` are jobs that had been stored before their names were
    known. `sealed` are the commands whose plan is new. `former` is not stored: it has the images, in order, of the rows
    that were there before and changed.
    """

    new_job: bool = False
    job: bool = False
    new_child_jobs: dict[str, Job] = field(default_factory=dict)
    child_jobs: dict[str, Job] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    new_steps: dict[str, Step] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    new_commands: dict[str, Command] = field(default_factory=dict)
    commands: dict[str, Command] = field(default_factory=dict)
    sealed: set[str] = field(default_factory=set)
    new_leaves: dict[str, Leaf] = field(default_factory=dict)
    leaves: dict[str, Leaf] = field(default_factory=dict)
    notes: dict[tuple[str, str], Notes] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)
    report_entities: dict[EntityRef, None] = field(default_factory=dict)
    handled_requests: list[str] = field(default_factory=list)
    events: list[EventNote] = field(default_factory=list)
    ends_flow: bool = False
    dependencies: tuple[Dependency, ...] = ()
    lock_waits: tuple[LockKey, ...] = ()
    waits_until: float = 0.0
    ends_wait: bool = False
    priority: bool = False  # of the job, which changes with it
    former: list[tuple[Row, Image]] = field(default_factory=list)

    def __bool__(self) -> bool:
        """True if there is anything to store."""
        return bool(
            self.new_job
            or self.job
            or self.child_jobs
            or self.steps
            or self.leaves
            or self.commands
            or self.new_steps
            or self.new_commands
            or self.new_leaves
            or self.notes
            or self.events
            or self.handled_requests
            or self.lock_waits
        )

    def absorb(self, later: Mutations) -> None:
        """Takes in what gathered after it: it was refused, and goes again with that."""
        self.job |= later.job
        self.ends_flow |= later.ends_flow
        self.ends_wait |= later.ends_wait
        self.priority |= later.priority
        if later.lock_waits:
            self.lock_waits, self.waits_until = later.lock_waits, later.waits_until
        self.sealed |= later.sealed
        self.named |= later.named
        for name in ("new_child_jobs", "new_steps", "new_commands", "new_leaves", "notes", "report_entities"):
            getattr(self, name).update(getattr(later, name))
        for name in ("child_jobs", "steps", "commands", "leaves"):
            new = getattr(self, f"new_{name}")
            getattr(self, name).update({key: row for key, row in getattr(later, name).items() if key not in new})
        for name in ("snapshots", "handled_requests", "events", "former"):
            getattr(self, name).extend(getattr(later, name))
