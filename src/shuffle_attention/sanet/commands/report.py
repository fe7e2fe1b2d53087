"""The command ``sanet report``: the report of what was trained before."""

from pathlib import Path
from typing import Any

from ...checkpoints import CheckpointError, read_checkpoint
from ...errors import InputError
from ..compare.comparison import Comparison, read_comparison
from ..compare.findings import findings, write_findings
from ..console import console
from ..device import open_process
from ..network import recipe_of
from ..recipes.recipe import load_recipe
from ..report.comparison import write_comparison_report
from ..report.run import write_run_report
from ..tasks import task_of
from ..training.run_folder import RunFolder


def report_command(folder: str, overrides: dict[str, Any], *, runs: bool) -> int:
    """Runs ``sanet report`` and returns its exit code."""
    path = Path(folder)
    if (path / "comparison.yaml").exists():
        comparison = read_comparison(path)
        if runs:
            for run in comparison.runs:
                if run.finished:
                    _report_run(run.files, overrides)
        elif overrides:
            raise InputError(f"{', '.join(overrides)}: read for the reports of the runs alone, with --runs")
        console.print(f"wrote {_report_comparison(comparison)}")
        return 0
    files = RunFolder(path)
    if not files.summary.exists():
        raise InputError(
            f"{folder} holds no comparison and no finished run: there is no {path / 'comparison.yaml'} and no "
            f"{files.summary}; --resume finishes a run"
        )
    if runs:
        raise InputError(f"--runs is for comparisons, and {folder} holds a run")
    _report_run(files, overrides)
    return 0


def _report_comparison(comparison: Comparison) -> Path:
    if not comparison.seeds:
        raise InputError(f"{comparison.folder} has no run yet")
    found = findings(comparison, comparison.sizes())
    write_findings(comparison, found, {})  # the pictures that the report shows
    return write_comparison_report(comparison, found, {})


def _report_run(files: RunFolder, overrides: dict[str, Any]) -> None:
    if not files.config.exists():
        raise InputError(f"there is no {files.config}, which says what {files.best} was trained with")
    content = read_checkpoint(files.best)
    task = task_of(content)
    recipe = recipe_of(content, files.best, task.Recipe)[0].replaced(**{"device": "auto", **overrides})
    opened = task.open(recipe, check=False)
    if opened.classes != content.get("classes"):
        raise CheckpointError(
            f"{files.best} was trained on {content['num_classes']} classes that are not, in the same order, the "
            f"{opened.num_classes} of {recipe.data}; --data says where its images are"
        )
    # The last word of a run that was continued for longer; the best checkpoint may be from before that.
    trained_with = load_recipe(files.config, task.Recipe)
    with open_process(recipe.device) as place:
        console.print(f"wrote {write_run_report(opened, files, place, trained_with=trained_with)}")
