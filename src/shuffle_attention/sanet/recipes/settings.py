"""Settings with types, ranges and help, as YAML files and command lines give them."""

import contextlib
import dataclasses
import math
import typing
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, TypeVar

from ...errors import InputError, unknown

S = TypeVar("S", bound="Settings")

# The order in which a command line shows the groups of its options.
GROUPS = ("data", "images", "model", "optimisation", "machine")


def option(default: Any, help: str, group: str) -> Any:
    """Returns a field of :class:`Settings` with its default, what it means, and the group it is shown in."""
    metadata = {"help": help, "group": group}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class Settings:
    """Named values, each converted to the type that its field declares; a subclass says what range it has.

    Raises:
        InputError: If a value is of the wrong type.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for each in dataclasses.fields(self):
            setattr(self, each.name, _converted(each.name, getattr(self, each.name), hints[each.name]))

    def replaced(self: S, **overrides: Any) -> S:
        """Returns these settings with some fields changed.

        Raises:
            InputError: If a name is not a field, or a value cannot be one.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in overrides:
            if name not in known:
                raise unknown("field", name, known)
        return dataclasses.replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def require(holds: bool, name: str, contract: str, received: Any) -> None:
    """Raises InputError, which says what a setting must be and what was received, unless it holds."""
    if not holds:
        raise InputError(f"{name} must be {contract}, got {received}")


def _converted(name: str, value: Any, hint: Any) -> Any:
    """The value as the type that its field declares; YAML reads 1e-4 as text and 30 as an integer."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is UnionType:
        return None if value is None else _converted(name, value, next(a for a in args if a is not type(None)))
    if origin is Literal:
        require(value in args, name, f"one of {', '.join(args)}", value)
        return value
    if origin is list:
        require(isinstance(value, list | tuple), name, "a list", value)
        return [_converted(name, item, args[0]) for item in value]
    if origin is dict:
        require(isinstance(value, dict), name, "a mapping", value)
        return dict(value)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(value)
        require(isinstance(value, float) and math.isfinite(value), name, "a finite number", value)
    right = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    require(right, name, f"of type {hint.__name__}", repr(value))
    return value
