"""The report of a training run."""

from pathlib import Path
from typing import Any

from ...checkpoints import load_checkpoint
from ...errors import InputError
from ..device import Process
from ..recipes.recipe import RunRecipe
from ..recipes.settings import GROUPS
from ..tasks.task import Task
from ..training.run_folder import RunFolder, curves_figure, read_rows
from .html import write_page
from .images import embedded_figure

__all__ = ["changed_fields", "fields_by_group", "write_run_report"]


def write_run_report(task: Task, files: RunFolder, process: Process, *, trained_with: RunRecipe | None = None) -> Path:
    """Writes ``report.html`` of a finished run and returns its path.

    The network of the best checkpoint looks at the validation data once more, on this process alone.

    Args:
        task: What was trained, with its data.
        files: Where the results lie.
        process: Where to compute.
        trained_with: The recipe of the run, where that of ``task`` finds its data elsewhere by now.

    Raises:
        InputError: If the results or the images cannot be read.
    """
    recipe = task.recipe
    model = task.create_network(restored=True)
    load_checkpoint(model, files.best)
    model = process.to_device(model, channels_last=recipe.channels_last).eval()
    shown = trained_with or task.recipe
    history = read_rows(files.metrics)
    if not history or task.metric not in history[0]:
        raise InputError(f"{files.metrics} has no {task.metric} of any epoch")
    best = max(history, key=lambda row: row[task.metric])
    values = {
        "title": f"{shown.title} on {Path(shown.data).name}",
        "kind": f"{recipe.kind}, trained by {recipe.command}",
        "figures": task.best_figures(best),
        "epoch": int(best["epoch"]),
        "epochs": len(history),
        "changed": changed_fields(shown),
        "settings": fields_by_group(shown),
        "machines": [files.record()],
        "charts": [(panel.title, embedded_figure(curves_figure(history, [panel]))) for panel in task.panels(history)],
        "columns": list(history[0]),
        "history": [[f"{value:.5g}" for value in row.values()] for row in history],
        "sections": task.report_sections(model, best, process),
    }
    write_page("run.html", values, files.report)
    return files.report


def changed_fields(recipe: RunRecipe) -> list[tuple[str, str, str]]:
    """Name, value and default of the fields that differ from what a recipe has by itself."""
    defaults = type(recipe)().to_dict()
    return [(k, _text(v), _text(defaults[k])) for k, v in recipe.to_dict().items() if v != defaults[k]]


def fields_by_group(recipe: RunRecipe) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Name, value and meaning of all fields, by group."""
    groups: dict[str, list[tuple[str, str, str]]] = {group: [] for group in GROUPS}
    for name, field in recipe.__dataclass_fields__.items():
        if "group" in field.metadata:
            groups[field.metadata["group"]].append((name, _text(getattr(recipe, name)), field.metadata["help"]))
    return list(groups.items())


def _text(value: Any) -> str:
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value)
