"""Options that several commands have: a run's, and a recipe's fields."""

import argparse
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields
from types import UnionType
from typing import Any

import yaml

from .recipe import RunRecipe, recipe_names
from .settings import GROUPS


def add_training(commands: Any, kind: type[RunRecipe], run: Callable[[argparse.Namespace], int]) -> None:
    """Adds the command ``train`` for a kind of network."""
    train = commands.add_parser(
        "train",
        help=f"train a {kind.kind}",
        description=f"Train a {kind.kind}. Any field of the recipe can be given here as well.",
        allow_abbrev=False,
    )
    train.set_defaults(run=run)
    group = train.add_argument_group("run")
    group.add_argument("--recipe", metavar="NAME", help=f"{', '.join(recipe_names(kind))}, or a YAML file")
    group.add_argument("--output", metavar="DIR", help="folder of the run; runs/NETWORK-TIME by default")
    group.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="DIR",
        help="continue the run in DIR, or in --output; 'auto' starts it where there is none yet",
    )
    add_fields(train, kind)


def add_evaluation(
    commands: Any,
    kind: type[RunRecipe],
    run: Callable[[argparse.Namespace], int],
    *,
    checkpoint: str,
    batch_size: int,
    fields: str,
) -> argparse.ArgumentParser:
    """Adds the command ``eval`` for a kind of network, with some of the fields of its recipe, and returns it."""
    evaluate = commands.add_parser("eval", help=f"evaluate a {kind.kind}", allow_abbrev=False)
    evaluate.set_defaults(run=run)
    evaluate.add_argument("checkpoint", help=checkpoint)
    evaluate.add_argument("--ema", action=argparse.BooleanOptionalAction, help="averaged weights; where there are some")
    evaluate.add_argument(
        "--batch-size", type=int, default=batch_size, metavar="N", help=f"images at a time ({batch_size})"
    )
    evaluate.add_argument("--json", metavar="FILE", help="write the figures there too")
    add_fields(evaluate, kind, only=fields.split())
    return evaluate


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


def separated(text: str) -> list[str]:
    """Returns the names in a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) is UnionType


def _value(text: str) -> Any:
    return None if text.lower() == "none" else yaml.safe_load(text)
