"""Progress bar, or lines where there is no terminal, and one line per epoch."""

import time

from rich import progress

from ...errors import counted
from ..console import console, duration
from ..device import Process
from ..tasks.task import Task, progress_text

# Seconds of silence without a terminal, and the share of the run's time that they grow to in a long run.
_SILENCE, _SHARE = 30.0, 0.05


class Progress:
    """A bar with metrics, speed and time left, and a line per epoch; only the first process prints.

    Without a terminal there are lines within an epoch in place of the bar, of which even a long run has few. ``done``
    steps were done before the run was continued.

    Attributes:
        images_per_second: Training speed of the last epoch, loading included.
    """

    def __init__(self, task: Task, steps: int, process: Process, done: int = 0):
        self.task, self.recipe, self.steps = task, task.recipe, steps
        self.images_per_second = 0.0
        self._first = self._done = done
        self._began = self._epoch_began = self._printed = time.perf_counter()
        self._epoch_first = 0
        self._quiet = process.rank != 0
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[metrics]}"),
            console=console,
            transient=True,
            disable=self._quiet,
        )

    def __enter__(self) -> "Progress":
        self._bar.start()
        self._row = self._bar.add_task("", total=self.steps, metrics="")
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def start_epoch(self, epoch: int, step: int) -> None:
        """Start the bar of an epoch at a step."""
        self._epoch, self._epoch_first = epoch, step
        self._label = f"epoch {epoch + 1:>3}/{self.recipe.epochs}"
        self._epoch_began = time.perf_counter()
        self._bar.reset(self._row, total=self.steps, completed=step, description=f"epoch {epoch + 1}", metrics="")

    def step(self, step: int, sums: list[float]) -> None:
        """Show the step that the epoch has reached, and the means of its sums so far."""
        self._done = self._epoch * self.steps + step
        seconds = time.perf_counter() - self._epoch_began
        self.images_per_second = (step - self._epoch_first) * self.recipe.batch_size / seconds
        metrics = f"{progress_text(self.task.metrics, self.task.means(sums))}  {self._pace()}"
        self._bar.update(self._row, completed=step, metrics=metrics)
        self._print_seldom(f"{self._label}  step {step}/{self.steps}  {metrics}")

    def start_evaluation(self, images: int) -> None:
        """Start the bar of an evaluation of so many images."""
        self._seen, self._images = 0, images
        self._bar.reset(self._row, total=images, description="evaluating", metrics="")

    def advance(self, images: int) -> None:
        """Count evaluated images."""
        self._seen += images
        self._bar.advance(self._row, images)
        self._print_seldom(f"{self._label}  evaluated {self._seen:,} of {counted(self._images, 'image')}")

    def finish_epoch(self, row: dict[str, float], improved: bool) -> None:
        """Print the line of an epoch."""
        if not self._quiet:
            metrics = f"{progress_text(self.task.metrics, row)}  lr {row['lr']:.2g}  {self._pace()}"
            console.print(f"{self._label}  {metrics}{'  best' if improved else ''}")
            self._printed = time.perf_counter()

    def _print_seldom(self, line: str) -> None:
        now = time.perf_counter()
        due = now - self._printed > max(_SILENCE, _SHARE * (now - self._began))
        if due and not self._quiet and not console.is_terminal:
            console.print(line)
            self._printed = now

    def _pace(self) -> str:
        """Return speed and time left, by the steps that this process has seen."""
        left = self.recipe.epochs * self.steps - self._done
        rest = left * (time.perf_counter() - self._began) / max(1, self._done - self._first)
        speed = f"{self.images_per_second:,.{0 if self.images_per_second >= 10 else 1}f} images/s"
        return f"{speed}  {duration(rest)} left"
