"""The files of a run: figures as CSV, TensorBoard and a picture, settings and summary."""

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ...errors import InputError
from ...files import remove_left_over, write_csv, write_json, write_text
from ..charts import save
from ..environment import environment
from ..recipes.recipe import RunRecipe
from ..tasks.task import Panel, Task

REPORT = "report.html"
# Of what a run was made with: what its figures, and not only its speed, may depend on.
_RECORD = ("machine", "cpu", "threads", "shuffle_attention", "commit", "torch", "timm", "python")


@dataclass(frozen=True)
class RunFolder:
    """Names of the files in a run's folder."""

    folder: Path

    @property
    def last(self) -> Path:
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        return self.folder / "best.pt"

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.csv"

    @property
    def curve(self) -> Path:
        return self.folder / "curve.csv"

    @property
    def curves(self) -> Path:
        return self.folder / "curves.png"

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"

    @property
    def report(self) -> Path:
        return self.folder / REPORT

    @cached_property
    def _board(self) -> Any:
        """TensorBoard's writer where it is installed."""
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(self.folder))

    def begin(self, recipe: RunRecipe, history: list[dict[str, float]]) -> None:
        """Makes the folder and writes the settings; figures beyond the point continued from are dropped.

        So is the report of a run that goes on for longer.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_left_over(self.folder)
        self.report.unlink(missing_ok=True)
        write_text(self.config, yaml.safe_dump(recipe.to_dict(), sort_keys=False))
        self._write_metrics(history)

    def add_row(self, row: dict[str, float], history: list[dict[str, float]]) -> None:
        """Adds the figures of an epoch."""
        self._write_metrics(history)
        if self._board is None:
            return
        for name, value in row.items():
            if name != "epoch":
                self._board.add_scalar(name, value, int(row["epoch"]))
        self._board.flush()

    def finish(self, task: Task, best: dict[str, float], history: list[dict[str, float]]) -> None:
        """Draws the curves and writes the summary; nothing is added to the figures after that."""
        recipe = task.recipe
        draw_curves(history, task.panels(history), f"{recipe.title} on {Path(recipe.data).name}", self.curves)
        summary = {"model": recipe.title, "data": recipe.data, "best": best, "checkpoint": str(self.best)}
        write_json(self.summary, summary | environment())
        if self._board is not None:
            self._board.close()

    def record(self) -> dict[str, Any]:
        """Returns what the summary of a finished run says of the machine, the software and the source.

        Raises:
            InputError: If the summary cannot be read.
        """
        try:
            said = json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.summary} cannot be read: {error}") from error
        if not isinstance(said, dict):
            raise InputError(f"{self.summary} holds no summary of a run")
        return {name: said[name] for name in _RECORD if said.get(name)}

    def write_curve(self, rows: list[dict[str, float]]) -> None:
        """Writes the figures of the evaluations within the epochs."""
        write_csv(self.curve, rows)

    def _write_metrics(self, history: list[dict[str, float]]) -> None:
        write_csv(self.metrics, history)


def read_rows(path: Path) -> list[dict[str, float]]:
    """Returns the figures in a CSV file of a run.

    Raises:
        InputError: If they cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file, strict=True)]
    except (OSError, ValueError, TypeError, csv.Error) as error:  # TypeError: a line without all of the columns
        raise InputError(
            f"{path} cannot be read ({error}); delete {path.parent}, and the command that trained it trains it anew"
        ) from error


def draw_curves(history: list[dict[str, float]], panels: list[Panel], title: str, path: Path) -> None:
    """Draws figures over the epochs into a PNG, panels side by side."""
    figure = curves_figure(history, panels)
    figure.suptitle(title)
    save(figure, path)


def curves_figure(history: list[dict[str, float]], panels: list[Panel]) -> Any:
    """Returns figures over the epochs as a drawing, panels side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) < 30 else None
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, label in panel.curves.items():
            axes.plot(epochs, [row[name] for row in history], label=label, marker=marker, ms=3)
        axes.set_title(panel.title, fontsize=9)
        axes.set_xlabel("epoch")
        axes.set_ylabel(panel.unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
