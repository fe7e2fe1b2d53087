"""The command ``sanet report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ..recipes.recipe import Recipe, load_recipe
from ..recipes.settings import option
from . import Command

if TYPE_CHECKING:
    from ..training.run_folder import RunFolder


@dataclass(kw_only=True)
class Report(Command):
    """Write report.html of a finished run of sanet train or sanet detect train, or of a comparison."""

    name = "report"
    summary = "write the report of a finished run or comparison again"
    recipe_type = Recipe
    recipe_fields = "data data_dir workers device"

    folder: str = option(..., "folder of the run or of the comparison", positional=True, metavar="DIR")
    runs: bool = option(False, "those of all finished runs of a comparison as well")

    def run(self) -> int:
        """Write the report."""
        from ..compare.comparison import read_comparison
        from ..compare.findings import findings, write_findings
        from ..console import console
        from ..report.comparison import write_comparison_report
        from ..training.run_folder import RunFolder

        overrides, path = self.overrides, Path(self.folder)
        if (path / "comparison.yaml").exists():
            comparison = read_comparison(path)
            if self.runs:
                if comparison.run_folder is not RunFolder:
                    raise InputError(f"--runs: the runs in {path} are those of ultralytics, which have no report.html")
                for run in comparison.runs:
                    if run.finished:
                        _report_run(run.files, overrides)
            elif overrides:
                raise InputError(f"{', '.join(overrides)}: read for the reports of the runs alone, with --runs")
            results = findings(comparison)
            write_findings(comparison, results, {})  # the charts that the report shows
            console.print(f"wrote {write_comparison_report(comparison, results, {})}")
            return 0
        files = RunFolder(path)
        if not files.summary.exists():
            raise InputError(
                f"{path} holds no comparison and no finished run: there is no {path / 'comparison.yaml'} and no "
                f"{files.summary}; --resume finishes a run"
            )
        if self.runs:
            raise InputError(f"--runs is for comparisons, and {path} holds a run")
        _report_run(files, overrides)
        return 0


def _report_run(files: RunFolder, overrides: dict[str, Any]) -> None:
    from ...checkpoints import CheckpointError, read_checkpoint
    from ..console import console
    from ..device import open_process
    from ..network import recipe_of
    from ..report.run import write_run_report
    from ..tasks import task_of

    if not files.config.exists():
        raise InputError(f"there is no {files.config}, which has the recipe of {files.best}")
    content = read_checkpoint(files.best)
    task = task_of(content)
    recipe = recipe_of(content, files.best, task.Recipe)[0].replaced(**{"device": "auto", **overrides})
    opened = task.open(recipe, check=False)
    opened.keep_classes(content.get("classes"))
    if opened.classes != content.get("classes"):
        raise CheckpointError(
            f"{files.best} was trained on {content['num_classes']} classes that are not, in the same order, the "
            f"{opened.num_classes} of {recipe.data}; --data DIR names the folder of its images"
        )
    # The recipe of a run that was continued for longer; the best checkpoint may be older.
    trained_with = load_recipe(files.config, task.Recipe)
    with open_process(recipe.device) as process:
        console.print(f"wrote {write_run_report(opened, files, process, trained_with=trained_with)}")
