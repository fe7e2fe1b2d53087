"""Settings: fields with types, ranges and help, each declared once for YAML files, Python and the command line."""

import contextlib
import dataclasses
import math
import operator
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar

import yaml

from ...errors import InputError, brief, unknown

S = TypeVar("S", bound="Settings")

_BRACKETS = 500  # in each other
_OPENING = (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken)
_FLOW = (*_OPENING, yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken)
# Groups of a recipe's fields, in the order in which the help of a command shows them.
GROUPS = ("data", "images", "model", "optimisation", "machine")
# Limits of what a field may hold; more is not a setting but a mistake or an attack.
_MOST_VALUES, _DEEPEST, _LONGEST, _INTEGERS = 100_000, 20, 10_000, range(-(2**63), 2**63)
_HOLDS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}


@dataclass(frozen=True, kw_only=True)
class Option:
    """How a field is checked, and how the command line shows it.

    Attributes:
        default: Value of a field that is not given; ``...`` if it must be.
        help: Meaning of the field. ``{recipes}`` stands for the names of the shipped recipes.
        group: Group of the command's help.
        first: Whether the help shows the field among the first of its group.
        minimum: Smallest value, of a list's items if the field is a list.
        maximum: Largest value.
        above: Value that must be exceeded.
        below: Value that must not be reached.
        metavar: Name of the value in the help; by default its choices, or a name for its type.
        positional: Whether the command line takes the value without a flag.
        nargs: How many values a list takes, as argparse counts them.
        separator: Character between the items of a list that is given as one word.
        const: Value of the flag if nothing follows it.
        aliases: Old flags, which are accepted and not shown.
    """

    default: Any
    help: str
    group: str = "options"
    first: bool = False
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    metavar: str | None = None
    positional: bool = False
    nargs: int | str = "*"
    separator: str | None = None
    const: Any = None
    aliases: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raise InputError if a number, or one of a list of numbers, is out of range."""
        limits = {"at least": self.minimum, "above": self.above, "at most": self.maximum, "below": self.below}
        limits = {words: limit for words, limit in limits.items() if limit is not None}
        contract = " and ".join(f"{words} {limit}" for words, limit in limits.items())
        if limits.keys() == {"at least", "at most"}:
            contract = f"between {self.minimum} and {self.maximum}"
        for number in value if isinstance(value, list) else [value]:
            right = number is None or all(_HOLDS[words](number, limit) for words, limit in limits.items())
            require(right, name, contract, value)


def option(default: Any, help: str, group: str = "options", **settings: Any) -> Any:
    """Return a field of :class:`Settings`; the arguments are those of :class:`Option`."""
    metadata = {"option": Option(default=default, help=help, group=group, **settings)}
    if default is ...:
        return field(metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class Settings:
    """Named values, each converted to the type that its field declares and held to its range.

    Attributes:
        refused: Reasons against fields that people may look for here.

    Raises:
        InputError: If a value has the wrong type or is out of range.
    """

    refused: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        for name, (option, hint) in self.options().items():
            label, value = self.label(name), getattr(self, name)
            require_plain(label, value)
            value = _converted(label, value, hint)
            option.check(label, value)
            setattr(self, name, value)

    @classmethod
    def options(cls) -> dict[str, tuple[Option, Any]]:
        """Return the option and the type of each field that has an option."""
        hints = typing.get_type_hints(cls)
        declared = {each.name: each.metadata.get("option") for each in dataclasses.fields(cls)}
        return {name: (option, hints[name]) for name, option in declared.items() if option is not None}

    @classmethod
    def label(cls, name: str) -> str:
        """Return the name by which errors call a field."""
        return name

    @classmethod
    def of(cls: type[S], fields: Mapping[Any, Any]) -> S:
        """Return settings with the fields that a YAML file or a checkpoint has.

        Raises:
            InputError: If a name is not a field, or a value cannot be one.
        """
        for name in fields:
            if not isinstance(name, str):
                raise InputError(f"names of fields must be text, got {brief(name)}")
        return cls().replaced(**fields)

    def replaced(self: S, **overrides: Any) -> S:
        """Return these settings with some fields changed.

        Raises:
            InputError: If a name is not a field, or a value cannot be one.
        """
        known = [each.name for each in dataclasses.fields(self)]
        for name in overrides:
            if name in self.refused:
                raise InputError(f"{self.label(name)}: {self.refused[name]}")
            if name not in known:
                raise unknown("field", name, known)
        return dataclasses.replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for YAML and JSON."""
        return dataclasses.asdict(self)

    def defaults(self) -> dict[str, Any]:
        """Return the default values of the fields."""
        return type(self)().to_dict()


def require(holds: bool, name: str, contract: str, received: Any) -> None:
    """Raise InputError, which states what a setting must be and what was received, unless it holds."""
    if not holds:
        raise InputError(f"{name} must be {contract}, got {brief(received, quoted=False)}")


def require_plain(name: str, value: Any) -> None:
    """Raise InputError unless a value consists of text, numbers, lists and mappings, within limits."""
    count = 0

    def visit(value: Any, depth: int) -> None:
        nonlocal count
        count += 1
        require(count <= _MOST_VALUES, name, f"at most {_MOST_VALUES:,} values", "more")
        require(depth <= _DEEPEST, name, f"nested at most {_DEEPEST} deep", "more")
        if isinstance(value, dict):
            for key, part in value.items():
                visit(key, depth + 1)
                visit(part, depth + 1)
        elif isinstance(value, list | tuple):
            for part in value:
                visit(part, depth + 1)
        elif isinstance(value, str):
            require(len(value) <= _LONGEST, name, f"of at most {_LONGEST:,} characters", f"{len(value):,}")
        elif isinstance(value, int):
            require(value in _INTEGERS, name, "an integer of at most 64 bits", value)
        else:
            require(value is None or isinstance(value, float), name, "made of text, numbers, lists and mappings", value)

    visit(value, 0)


def without_none(hint: Any) -> Any:
    """Return the type of a field that may be None, or the type itself."""
    if typing.get_origin(hint) in (UnionType, typing.Union):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def choices_text(hint: Any) -> str:
    """Return the choices of a field in brackets, empty if it has none."""
    kind = without_none(hint)
    return f" ({', '.join(map(str, typing.get_args(kind)))})" if typing.get_origin(kind) is Literal else ""


def parsed(text: str, hint: Any) -> Any:
    """Return the value that a word of the command line stands for, which :class:`Settings` then checks."""
    if typing.get_origin(hint) is Literal:
        return next((choice for choice in typing.get_args(hint) if str(choice) == text), text)
    if hint is str:
        return text
    try:
        return read_yaml(text)
    except InputError:
        return text


class _Loader(yaml.SafeLoader):
    """Loads plain values; keys that are given twice, or multiplied by merging, are errors."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    problem = f"{brief(key.value)} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return node

    def flatten_mapping(self, node: Any) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_VALUES:
            raise yaml.constructor.ConstructorError(None, None, "too many merged keys", node.start_mark)


def _are_deep(openings: Iterable[bool]) -> bool:
    """Return whether brackets, of which each opens or closes, lie in too many others; stop at the first that does."""
    return any(depth > _BRACKETS for depth in accumulate(1 if opens else -1 for opens in openings))


def read_yaml(text: str) -> Any:
    """Return the plain values in a YAML text.

    Raises:
        InputError: If it is not YAML, has a key twice, or is nested too deeply.
    """
    try:
        # PyYAML takes quadratic time for brackets. Those in comments and quotes do not count.
        brackets = (bracket in "[{" for bracket in re.findall(r"[\[\]{}]", text))
        if _are_deep(brackets) and _are_deep(isinstance(t, _OPENING) for t in yaml.scan(text) if isinstance(t, _FLOW)):
            raise RecursionError
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise InputError("is nested too deeply") from error
    # The readers of tagged values fail in many ways on a value of another kind.
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise InputError(f"is not YAML: {line}{brief(reason, quoted=False)}") from error


def _converted(name: str, value: Any, hint: Any) -> Any:
    """Return the value as the type that its field declares; YAML reads 1e-4 as text and 30 as an integer."""
    kind = without_none(hint)
    if kind is not hint:
        return None if value is None else _converted(name, value, kind)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in args):
            raise InputError(f"{name} must be one of {', '.join(map(str, args))}, got {brief(value, quoted=False)}")
        return value
    if origin is list:
        require(isinstance(value, list | tuple), name, "a list", value)
        return [_converted(name, item, args[0]) for item in value]
    if origin is dict:
        require(isinstance(value, dict), name, "a mapping", value)
        return dict(value)
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(value)
        require(isinstance(value, float) and math.isfinite(value), name, "a finite number", value)
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    require(right, name, f"of type {kind.__name__}", brief(value))
    return value
