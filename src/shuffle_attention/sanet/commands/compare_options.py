"""The command ``sanet compare``; what it does is imported when it runs."""

import argparse
from typing import Any

from ..recipes.arguments import add_fields, overrides, separated
from ..recipes.recipe import Recipe, recipe_names


def add_compare(commands: Any) -> None:
    """Adds the command."""
    compare = commands.add_parser(
        "compare",
        help="train several networks alike and compare them",
        description="Train the same recipe with several networks and seeds. The same command goes on where it was "
        "stopped. Any field of the recipe but the model can be given here as well.",
        allow_abbrev=False,
    )
    compare.set_defaults(run=_run)
    run = compare.add_argument_group("comparison")
    run.add_argument(
        "--attention", type=separated, default=[], metavar="A,B", help="attentions; the first is the baseline"
    )
    run.add_argument("--depth", type=int, metavar="N", help="layers of their ResNet (18)")
    run.add_argument("--models", type=separated, default=[], metavar="A,B", help="models, in place of attentions")
    run.add_argument("--from", dest="start", metavar="FILE", help="trained plain network to attach the attentions to")
    run.add_argument("--where", metavar="PLACE", help="residual, stage, last or a glob (residual)")
    run.add_argument("--preserve", choices=["both", "yes", "no"], help="attached with what it computed kept (both)")
    run.add_argument("--seeds", type=int, metavar="N", help="how many, from --seed on (3)")
    run.add_argument("--recipe", metavar="NAME", help=f"{', '.join(recipe_names())}, or a YAML file")
    run.add_argument("--output", metavar="DIR", required=True, help="folder of the comparison")
    run.add_argument("--report-only", action="store_true", help="report what the folder holds, and train nothing")
    add_fields(compare, Recipe)


def _run(options: argparse.Namespace) -> int:
    from .compare import compare_command

    return compare_command(
        options.recipe,
        overrides(options),
        options.output,
        attentions=options.attention,
        depth=options.depth,
        models=options.models,
        seeds=options.seeds,
        report_only=options.report_only,
        start=options.start,
        where=options.where,
        preserve=options.preserve,
    )
