"""The report of a training run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...checkpoints import load_checkpoint
from ...errors import InputError
from ..device import Process
from ..recipes.recipe import RunRecipe
from ..recipes.settings import GROUPS, Settings, choices_text
from ..tasks.task import Section, Task, outcome, panels
from ..training.gate_activity import METRICS, by_layer, gates_figure, verdict
from ..training.run_folder import RunFolder, curves_figure, read_rows
from .html import embedded_figure, write_page


def write_run_report(task: Task, files: RunFolder, process: Process, *, trained_with: RunRecipe | None = None) -> Path:
    """Write ``report.html`` of a finished run and return its path.

    The best checkpoint is evaluated on the validation data once more, in this process alone. ``trained_with`` is the
    recipe of the run, if that of the task names other data.

    Raises:
        InputError: If the results or the images cannot be read.
    """
    recipe = task.recipe
    model = task.create_model(restored=True)
    load_checkpoint(model, files.best)
    model = process.to_device(model, channels_last=recipe.channels_last).eval()
    shown = trained_with or task.recipe
    history = read_rows(files.metrics)
    if not history or task.metric not in history[0]:
        raise InputError(f"{files.metrics} has no {task.metric} of any epoch")
    best = task.best_of(history)
    gates = [_gates_section(read_rows(files.gates))] if files.gates.exists() else []
    values = {
        "title": f"{shown.title} on {Path(shown.data).name}",
        "kind": f"{recipe.kind}, trained by {recipe.command}",
        "metrics": outcome(task.metrics, best),
        "epoch": int(best["epoch"]),
        "epochs": len(history),
        "changed": changed_fields(shown),
        "settings": fields_by_group(shown),
        "machines": [files.record()],
        "charts": [
            (title, embedded_figure(curves_figure(history, {title: metrics})))
            for title, metrics in panels(task.metrics).items()
        ],
        "columns": list(history[0]),
        "history": [[f"{value:.5g}" for value in row.values()] for row in history],
        "sections": [*gates, *task.sections(model, best, process)],
    }
    write_page("run.html", values, files.report)
    return files.report


def _gates_section(rows: Sequence[Mapping[str, float]]) -> Section:
    """Return the section of a report on the rows of all epochs, the last one in figures."""
    layers = [(name, [f"{values[m.name]:.4f}" for m in METRICS]) for name, values in by_layer(rows[-1]).items()]
    values = {
        "verdict": verdict(rows[-1]),
        "figure": embedded_figure(gates_figure(rows)),
        "columns": [metric.label for metric in METRICS],
        "layers": layers,
        "epoch": int(rows[-1]["epoch"]),
    }
    return Section("Gates", "gates/activity", values)


def changed_fields(recipe: Settings) -> list[tuple[str, str, str]]:
    """Return name, value and default of the fields that differ from their defaults."""
    defaults = recipe.defaults()
    return [(k, _text(v), _text(defaults[k])) for k, v in recipe.to_dict().items() if v != defaults[k]]


def fields_by_group(recipe: Settings) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return name, value and help of all fields, by group."""
    groups: dict[str, list[tuple[str, str, str]]] = {group: [] for group in GROUPS}
    for name, (option, hint) in recipe.options().items():
        groups[option.group].append((name, _text(getattr(recipe, name)), option.help + choices_text(hint)))
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
