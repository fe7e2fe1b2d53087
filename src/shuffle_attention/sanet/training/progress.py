"""What a person sees while a network trains."""

import time

from rich import progress

from ..console import console, duration
from ..device import Process
from ..tasks.task import Task


class Progress:
    """A bar with speed, loss, accuracy and the time left, and a line for each epoch; silent but on the first process.

    Args:
        task: What is trained.
        steps: Optimiser steps of one epoch.
        process: Where it trains.
        done: Steps done before, by the run that is continued.

    Attributes:
        images_per_second: Training speed of the last epoch, loading included.
    """

    def __init__(self, task: Task, steps: int, process: Process, done: int = 0):
        self.task, self.recipe, self.steps = task, task.recipe, steps
        self.images_per_second = 0.0
        self._first = self._done = done
        self._began = self._epoch_began = time.perf_counter()
        self._epoch_first = 0
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
            disable=process.rank != 0,
        )
        self._quiet = process.rank != 0

    def __enter__(self) -> "Progress":
        self._bar.start()
        self._task = self._bar.add_task("", total=self.steps, figures="")
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def start_epoch(self, epoch: int, step: int) -> None:
        self._epoch, self._epoch_first = epoch, step
        self._epoch_began = time.perf_counter()
        self._bar.reset(self._task, total=self.steps, completed=step, description=f"epoch {epoch + 1}", figures="")

    def step(self, step: int, sums: list[float]) -> None:
        """Shows where the epoch stands, given the sums of what it has seen."""
        now = time.perf_counter()
        self._done = self._epoch * self.steps + step
        self.images_per_second = (step - self._epoch_first) * self.recipe.batch_size / (now - self._epoch_began)
        rest = (self.recipe.epochs * self.steps - self._done) * (now - self._began) / max(1, self._done - self._first)
        figures = f"{self.task.running(sums)}  {_speed(self.images_per_second)}  {duration(rest)} left"
        self._bar.update(self._task, completed=step, figures=figures)

    def start_evaluation(self, images: int) -> None:
        self._bar.reset(self._task, total=images, description="evaluating", figures="")

    def advance(self, images: int) -> None:
        """Counts images that have been evaluated."""
        self._bar.advance(self._task, images)

    def finish_epoch(self, row: dict[str, float], improved: bool) -> None:
        if self._quiet:
            return
        left = self.recipe.epochs * self.steps - self._done
        rest = left * (time.perf_counter() - self._began) / max(1, self._done - self._first)
        console.print(
            f"epoch {row['epoch']:>3.0f}/{self.recipe.epochs}  {self.task.line(row)}  "
            f"lr {row['lr']:.2g}  {_speed(row['images_per_second'])}  {duration(rest)} left"
            + ("  best" if improved else "")
        )


def _speed(images_per_second: float) -> str:
    return f"{images_per_second:,.{0 if images_per_second >= 10 else 1}f} images/s"
