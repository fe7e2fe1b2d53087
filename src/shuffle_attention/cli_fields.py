"""The fields of a recipe as options of a command."""

import argparse
import typing
from collections.abc import Sequence
from dataclasses import fields
from types import UnionType
from typing import Any

import yaml

from .recipe import RunRecipe
from .settings import GROUPS


def add_fields(parser: argparse.ArgumentParser, kind: type[RunRecipe], only: Sequence[str] | None = None) -> None:
    """Adds an option for each field of a kind of recipe, or for some; :func:`overrides` tells which were given."""
    hints = typing.get_type_hints(kind)
    groups: dict[str, Any] = {}
    for field in sorted(fields(kind), key=lambda field: GROUPS.index(field.metadata["group"])):
        if only is not None and field.name not in only:
            continue
        name = field.metadata["group"]
        group = groups.setdefault(name, parser.add_argument_group(name) if name not in groups else None)
        flag = "--" + field.name.replace("_", "-")
        hint = hints[field.name]
        common = {"dest": f"recipe_{field.name}", "default": argparse.SUPPRESS, "help": field.metadata["help"]}
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)] if _is_union(hint) else [hint]
        if kinds == [bool]:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
            continue
        is_list = typing.get_origin(kinds[0]) is list
        metavar = "X" if is_list else {int: "N", float: "X", str: "NAME"}.get(kinds[0], "VALUE")
        is_text = str in (*kinds, *typing.get_args(kinds[0])) and typing.get_origin(kinds[0]) is not dict
        read = str if is_text and not _is_union(hint) else _value
        group.add_argument(flag, type=read, metavar=metavar, **common, **({"nargs": "*"} if is_list else {}))


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields that were given as options."""
    return {name.removeprefix("recipe_"): v for name, v in vars(options).items() if name.startswith("recipe_")}


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) is UnionType


def _value(text: str) -> Any:
    return None if text.lower() == "none" else yaml.safe_load(text)
