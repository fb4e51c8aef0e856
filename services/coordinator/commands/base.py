"""What a command is, and the registry of command types.

A command is a frozen record of its parameters with a few methods. `validate` and `execute` have no effect: they read
the world, note entity changes, and `execute` returns a plan that says all that is to be done. The end methods only
read and note, too; their notes go with the commit that ends the work.

    @command("RemoveVm", version=1, cancel=Cancel.FINISH_FORWARD, description="Removing VM ${vm}")
    class RemoveVm(Command):
        vm_id: EntityId
        …

Types are found through the entry point group `waybill.commands`: each entry names a module whose import registers its
commands. Ours are one package among others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from string import Template
from typing import Annotated, Any, ClassVar, Final, TypeVar, cast, dataclass_transform

from pydantic import StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as parameters_class

from chassis.errors import invalid_argument, not_found
from coordinator.flow.attempts import FailedAttempt
from coordinator.plan import Attempt, EntityRef, Plan, nothing
from coordinator.rows import Cancel, LockKey, LockScope
from coordinator.world import World

HOST: Final = "HOST"
VM: Final = "VM"
DISK: Final = "DISK"
SNAPSHOT: Final = "SNAPSHOT"
STORAGE_DOMAIN: Final = "STORAGE_DOMAIN"
TEMPLATE: Final = "TEMPLATE"
CLUSTER: Final = "CLUSTER"

GROUP: Final = "waybill.commands"

EntityId = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""The id of an entity: 1-256 characters without control characters."""
Name = Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""A name for people: at most 256 characters without control characters."""


class Command:
    """The base of all commands: subclass it with the parameters as annotated fields, and register it with `command`."""

    type_: ClassVar[CommandType]

    @property
    def command_type(self) -> str:
        """The name under which its class is registered."""
        return self.type_.name

    @property
    def parameters_version(self) -> int:
        """The version of its parameters."""
        return self.type_.version

    def parameters(self) -> dict[str, Any]:
        """Its parameters as JSON."""
        dumped: dict[str, Any] = self.type_.adapter.dump_python(self, mode="json")
        return dumped

    @classmethod
    def upgrade(cls, version: int, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """Turns parameters that an older version wrote into today's; raises ValueError if it cannot."""
        return parameters

    def locks(self) -> list[LockKey]:
        """The locks that the flow must hold before anything of this command begins: all or none."""
        return []

    def subjects(self) -> list[EntityRef]:
        """What a job of this command is about; what it locks, unless it says otherwise."""
        return [key.entity for key in self.locks() if not key.by_name]

    async def validate(self, world: World) -> None:
        """Raises `Refused` (or any WaybillError) if the command must not run now."""

    async def execute(self, world: World) -> Plan:
        """Returns all that is to be done; notes what changes at once."""
        return nothing()

    async def after_failure(self, world: World, failed: FailedAttempt) -> Attempt | None:
        """Says what is to be done after a plan that did not go well; None: nothing, it has failed.

        `instead(plan)` is a further attempt whose result replaces the failure, `cleanup(plan)` puts right what is left.
        Like `execute` it has no effect. It is asked again if the further attempt fails, but not after a clean-up, which
        is done also when the job was cancelled; then nothing is tried instead.
        """
        return None

    async def end_successfully(self, world: World) -> None:
        """Notes what is true now that the plan went well."""

    async def end_with_failure(self, world: World) -> None:
        """Notes what is true now that the plan failed. Not overridden: the command's entity changes are undone."""


def exclusive(
    entity_type: str, entity_id: str, *, wait: float = 0.0, scope: LockScope = LockScope.COMMAND
) -> list[LockKey]:
    """An exclusive lock on an entity; `wait` (seconds) and `scope` as `LockKey` says."""
    return [LockKey(EntityRef(entity_type, entity_id), wait=wait, scope=scope)]


def shared(
    entity_type: str, entity_id: str, *, wait: float = 0.0, scope: LockScope = LockScope.COMMAND
) -> list[LockKey]:
    """A shared lock on an entity; `wait` (seconds) and `scope` as `LockKey` says."""
    return [LockKey(EntityRef(entity_type, entity_id), exclusive=False, wait=wait, scope=scope)]


def named(entity_type: str, name: str, *, wait: float = 0.0, scope: LockScope = LockScope.COMMAND) -> list[LockKey]:
    """An exclusive lock on a name, of what may have no id yet: two that would be called the same exclude each other."""
    return [LockKey(EntityRef(entity_type, f"name:{name}"), by_name=True, wait=wait, scope=scope)]


@dataclass(frozen=True, slots=True)
class CommandType:
    """A registered type; see `command` for the fields."""

    name: str
    version: int
    cls: type[Command]
    cancel: Cancel
    description: str
    categories: tuple[str, ...]
    monitored: bool
    by_entity: bool
    doc: str
    adapter: TypeAdapter[Any]
    fields: tuple[str, ...]

    @property
    def schema(self) -> dict[str, Any]:
        """JSON Schema of the parameters."""
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **self.adapter.json_schema()}

    @property
    def ends_plainly(self) -> bool:
        """True if nothing is to be run when it ends well."""
        return self.cls.end_successfully is Command.end_successfully

    @property
    def takes_failures(self) -> bool:
        """True if nothing is tried after a plan that failed."""
        return self.cls.after_failure is Command.after_failure

    @property
    def compensates(self) -> bool:
        """True if it leaves what is to be done after a failure to the default."""
        return self.cls.end_with_failure is Command.end_with_failure

    def read(self, version: int, parameters: Mapping[str, Any]) -> Command:
        """Makes the command of stored or submitted parameters.

        Raises:
            WaybillError: PARAMETERS_INVALID, naming each field.
        """
        try:
            if version < self.version:
                parameters = self.cls.upgrade(version, parameters)
            read: Command = self.adapter.validate_python(dict(parameters))
            return read
        except ValidationError as error:
            violations = [_violation(item) for item in error.errors(include_url=False)]
            summary = "; ".join(f"{name.removeprefix('parameters.')}: {what}" for name, what in violations[:3])
            raise invalid_argument(
                "PARAMETERS_INVALID", f"{self.name} does not take these parameters: {summary}", *violations
            ) from error
        except ValueError as error:
            raise invalid_argument("PARAMETERS_INVALID", f"{self.name}: {error}", ("parameters", str(error))) from error

    def describe(self, command: Command, name_of: Callable[[EntityRef], str]) -> str:
        """Fills in the description: `${vm}` is the name of the VM among the subjects, `${field}` a parameter."""
        words: dict[str, str] = {}
        for field in self.fields:
            words[field] = str(getattr(command, field))
        for entity in command.subjects():
            words[entity.entity_type.lower()] = name_of(entity) or entity.entity_id
        return Template(self.description).safe_substitute(words)


def _violation(item: Any) -> tuple[str, str]:
    field = ".".join(["parameters", *(str(part) for part in item["loc"])])
    what = "is required" if item["type"] == "missing" else item["msg"]
    return field, what


_registered: dict[str, CommandType] = {}

C = TypeVar("C", bound=type[Command])


@dataclass_transform(kw_only_default=True, frozen_default=True)
def command(
    name: str,
    *,
    version: int = 1,
    cancel: Cancel = Cancel.NONE,
    description: str = "",
    categories: Iterable[str] = (),
    monitored: bool = True,
    by_entity: bool = False,
) -> Callable[[C], C]:
    """Registers a command class under a name.

    `version` is that of its parameters; `cancel` what CancelJob does; `description` a template (see
    `CommandType.describe`); `monitored=False` keeps its jobs out of lists unless asked for. `by_entity` says how a flow
    whose root it is coordinates: its children are inlined into its plan instead of having rows of their own.
    """

    def register(cls: C) -> C:
        known = _registered.get(name)
        if known is not None and (known.cls.__module__, known.cls.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"two commands are called {name}: in {known.cls.__module__} and in {cls.__module__}")
        doc = (cls.__doc__ or "").strip().split("\n\n")[0]
        checked: Any = parameters_class(frozen=True, kw_only=True)(cls)
        checked.type_ = _registered[name] = CommandType(
            name=name,
            version=version,
            cls=checked,
            cancel=cancel,
            description=description or name,
            categories=tuple(categories),
            monitored=monitored,
            by_entity=by_entity,
            doc=doc,
            adapter=TypeAdapter(checked),
            fields=tuple(each.name for each in fields(checked)),
        )
        return cast(C, checked)

    return register


class Registry:
    """The command types that this process can run."""

    def __init__(self, types: Mapping[str, CommandType]) -> None:
        self._types = dict(types)

    @classmethod
    def load(cls) -> Registry:
        """Imports every module of the entry point group and returns what they registered."""
        for entry_point in entry_points(group=GROUP):
            entry_point.load()
        return cls(_registered)

    def __iter__(self) -> Iterator[CommandType]:
        return iter(sorted(self._types.values(), key=lambda each: each.name))

    def get(self, name: str) -> CommandType | None:
        """Returns the type, or None if it is not registered here."""
        return self._types.get(name)

    def find(self, name: str) -> CommandType:
        """Returns the type. Raises COMMAND_TYPE_UNKNOWN."""
        found = self._types.get(name)
        if found is None:
            message = f"there is no command type {name!r}; ListCommandTypes has those there are"
            raise not_found("COMMAND_TYPE_UNKNOWN", message, command_type=name)
        return found
