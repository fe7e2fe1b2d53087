"""The options of ``sanet report``; what it does is imported when it runs."""

import argparse
from typing import Any

from ..recipes.arguments import add_fields, overrides
from ..recipes.recipe import Recipe


def add_report(commands: Any) -> None:
    """Adds the subcommand."""
    command = commands.add_parser(
        "report",
        help="write the report of a finished run or comparison again",
        description="Write report.html of a finished run of sanet train or sanet detect train, or of a comparison.",
        allow_abbrev=False,
    )
    command.set_defaults(run=_run)
    command.add_argument("folder", metavar="DIR", help="folder of the run or of the comparison")
    command.add_argument("--runs", action="store_true", help="those of all finished runs of a comparison as well")
    add_fields(command, Recipe, only=["data", "data_dir", "workers", "device"])


def _run(options: argparse.Namespace) -> int:
    from .report import report_command

    return report_command(options.folder, overrides(options), runs=options.runs)
