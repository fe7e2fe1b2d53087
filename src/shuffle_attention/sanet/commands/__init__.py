"""The commands of ``sanet``: one file each, with a :class:`Command` whose fields are its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..recipes.settings import Settings


def flag_of(name: str) -> str:
    """Return the flag of a field; a Python keyword such as ``from`` is a field with an underscore behind it."""
    return "--" + name.rstrip("_").replace("_", "-")


@dataclass(kw_only=True)
class Command(Settings):
    """A command: its fields are its options, the docstring of its class is its description.

    Defining a subclass with a ``name`` adds a command. What takes time to import is imported by :meth:`run`, since the
    files of all commands are read for ``sanet --help``.

    Attributes:
        name: What is typed after ``sanet``; two words for a command of a group, such as ``detect train``.
        summary: One line for the list of commands.
        examples: Lines to end the help with.
        recipe_type: Class of the recipe whose fields are options too, if any.
        recipe_fields: Names of those fields; None for all.
        modules: Modules of the extra ``sanet`` that it cannot do without.
        overrides: Fields of the recipe that were given.
        known: All commands by name.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    examples: ClassVar[str] = ""
    recipe_type: ClassVar[Any] = None
    recipe_fields: ClassVar[str | None] = None
    modules: ClassVar[tuple[str, ...]] = ("rich", "matplotlib", "jinja2", "sklearn", "scipy")
    overrides: dict[str, Any] = field(default_factory=dict)
    known: ClassVar[dict[str, type[Command]]] = {}

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            Command.known[cls.name] = cls

    @classmethod
    def label(cls, name: str) -> str:
        """Return an option as it is typed."""
        return name if cls.options()[name][0].positional else flag_of(name)

    def run(self) -> int:
        """Run the command and return its exit code."""
        raise NotImplementedError
