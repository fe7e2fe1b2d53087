"""Files of a run: metrics as CSV and curves, settings, summary."""

import csv
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...checkpoints import read_checkpoint, write_checkpoint
from ...errors import InputError
from ...files import atomic_write, remove_left_over, write_csv, write_json, write_text
from ..charts import new_figure, save
from ..environment import environment
from ..recipes.recipe import RunRecipe
from ..tasks.task import Metric, Task, panels

_Rows = list[dict[str, float]]
REPORT = "report.html"
# Fields of a summary that a run's metrics, and not only its speed, may depend on.
_RECORD = ("machine", "cpu", "threads", "shuffle_attention", "commit", "torch", "timm", "python")


class RunFolder:
    """Folder of a run with the paths of its files.

    Attributes:
        last: Checkpoint that the run continues from.
        good: That of the end of the last epoch, or of the start of the run, while ``last`` is of mid-epoch.
        best: Weights of the best epoch.
        config: Settings.
        metrics: One row per epoch.
        curve: One row per evaluation within the epochs.
        gates: One row per epoch with the activity of each layer's gates; absent without gates.
        curves: Metrics over the epochs, drawn.
        summary: Best epoch, machine and versions; a run that has it is finished.
        report: Report of the finished run.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.last, self.good, self.best = folder / "last.pt", folder / "good.pt", folder / "best.pt"
        self.config, self.summary = folder / "config.yaml", folder / "summary.json"
        self.metrics, self.curve, self.curves = folder / "metrics.csv", folder / "curve.csv", folder / "curves.png"
        self.gates, self.report = folder / "gates.csv", folder / REPORT

    @property
    def trained(self) -> bool:
        """Whether a run has saved anything here that it learnt; one that failed before that may begin again."""
        if self.best.exists() or self.summary.exists() or not self.last.exists():
            return self.best.exists() or self.summary.exists()
        content = read_checkpoint(self.last)
        return bool(content.get("epoch") or content.get("step"))

    def kept_epochs(self) -> dict[int, Path]:
        """Return the checkpoints of single epochs, by epoch, in their order."""
        named = ((re.fullmatch(r"epoch-(\d+)\.pt", path.name), path) for path in self.folder.glob("epoch-*.pt"))
        return dict(sorted((int(match[1]), path) for match, path in named if match))

    def keep_epoch(self, content: Mapping[str, Any], epoch: int, most: int) -> None:
        """Write the weights of an epoch, and remove those of epochs that are not among the last ``most``."""
        write_checkpoint(content, self.folder / f"epoch-{epoch}.pt")
        for kept, path in self.kept_epochs().items():
            if kept <= epoch - most:
                path.unlink()

    def keep_good(self) -> None:
        """Keep the last checkpoint under another name."""
        try:
            os.link(self.last, self.good)
        except OSError:  # a file system without hard links
            with atomic_write(self.good) as file, open(self.last, "rb") as last:
                shutil.copyfileobj(last, file)

    def begin(self, recipe: RunRecipe, history: _Rows, gates: _Rows, *, resumed: bool = False) -> None:
        """Create the folder, write the settings, and remove what is from after the point to continue from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_left_over(self.folder)
        undone = [path for epoch, path in self.kept_epochs().items() if epoch > len(history)]
        for path in (self.report, *undone, *(() if resumed else (self.last, self.good))):
            path.unlink(missing_ok=True)
        write_text(self.config, recipe.to_yaml(f"# Settings of this run, for {recipe.command} --recipe"))
        self.write_rows(history, gates)

    def write_rows(self, history: _Rows, gates: _Rows) -> None:
        """Write the metrics of all epochs, and the activity of each layer's gates if there are any."""
        for path, rows in ((self.metrics, history), (self.gates, gates)):
            columns = dict.fromkeys((column for row in reversed(rows) for column in row), math.nan)
            if rows or path == self.metrics:  # a run of an earlier version that is continued lacks columns
                write_csv(path, [columns | row for row in rows])

    def finish(self, task: Task, best: dict[str, float], history: list[dict[str, float]]) -> None:
        """Draw the curves and write the summary; no metrics are added after that."""
        recipe = task.recipe
        figure = curves_figure(history, panels(task.metrics))
        figure.suptitle(f"{recipe.title} on {Path(recipe.data).name}")
        save(figure, self.curves)
        summary = {"model": recipe.title, "data": recipe.data, "best": best, "checkpoint": str(self.best)}
        write_json(self.summary, summary | environment())

    def read_summary(self) -> dict[str, Any]:
        """Return the summary of a finished run.

        Raises:
            InputError: If it cannot be read.
        """
        try:
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.summary} cannot be read: {error}") from error
        if not isinstance(summary, dict):
            raise InputError(f"{self.summary} holds no summary of a run")
        return summary

    def record(self) -> dict[str, Any]:
        """Return machine, software and source from the summary of a finished run."""
        summary = self.read_summary()
        return {name: summary[name] for name in _RECORD if summary.get(name)}

    def write_curve(self, rows: list[dict[str, float]]) -> None:
        """Write the metrics of the evaluations within the epochs."""
        write_csv(self.curve, rows)


def read_rows(path: Path) -> list[dict[str, float]]:
    """Return the metrics in a CSV file of a run, one dict per row.

    Raises:
        InputError: If the file cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file, strict=True)]
    except (OSError, ValueError, TypeError, csv.Error) as error:  # TypeError: a line with too few columns
        raise InputError(
            f"{path} cannot be read ({error}); delete {path.parent}, and the command that trained it trains it again"
        ) from error


def curves_figure(history: Sequence[Mapping[str, float]], shown: Mapping[str, Sequence[Metric]]) -> Any:
    """Return a figure of metrics over the epochs, one panel beside the other, by title."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(5 * len(shown), 4)
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) < 30 else None
    for axes, (title, metrics) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        for metric in metrics:
            axes.plot(epochs, [row[metric.name] for row in history], label=metric.label, marker=marker, ms=3)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
