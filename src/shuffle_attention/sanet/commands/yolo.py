"""The command ``sanet yolo``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import InputError, require_extra
from ..recipes.settings import option
from . import Command


@dataclass(kw_only=True)
class Yolo(Command):
    """Run ultralytics' command yolo, whose model files may then have rows ShuffleAttention.

    Example: sanet yolo detect train model=sa.yaml data=coco8.yaml epochs=3
    """

    name = "yolo"
    summary = "run ultralytics' yolo with ShuffleAttention in its model files"

    arguments: list[str] = option([], "arguments of yolo, such as train model=sa.yaml", positional=True, metavar="ARG")

    def run(self) -> int:
        """Run the command of ultralytics."""
        require_extra("ultralytics", extra="yolo")
        from ultralytics import cfg

        from ...models import yolo  # noqa: F401 - registers the rows

        cfg.ARGV = ["yolo", *self.arguments]
        try:
            cfg.entrypoint()
        except SyntaxError as error:  # raised for arguments that it does not know
            raise InputError(str(error)) from error
        return 0


@dataclass(kw_only=True)
class YoloCompare(Command):
    """Train a YOLO plain and with attention attached, with several seeds, and compare the mAP50-95 of the last epoch.

    Settings of ultralytics are given as for yolo train. The same command continues where it was stopped.
    Example: sanet yolo compare model=yolo11n.pt data=coco8.yaml epochs=30 --attention none,shuffle --output runs/yolo
    """

    name = "yolo compare"
    summary = "train YOLOs with and without attention alike and compare them"

    settings: list[str] = option(
        [],
        "settings of yolo train: model=yolo11n.pt data=coco8.yaml epochs=100 ...",
        positional=True,
        metavar="NAME=VALUE",
    )
    attention: list[str] = option([], "attention layers; the first is the baseline", metavar="A,B", separator=",")
    models: list[str] = option([], "models instead of attention layers", metavar="A,B", separator=",")
    output: str = option(..., "folder of the comparison", metavar="DIR")
    seeds: int | None = option(None, "number of seeds (3)", minimum=1)
    seed: int | None = option(None, "first seed (0)", minimum=0)
    where: str | None = option(None, "residual, stage, last or a glob (residual)", metavar="WHERE")
    preserve: Literal["both", "yes", "no"] | None = option(
        None, "attach so that the model computes what it did before (yes)"
    )
    report_only: bool = option(False, "report the runs in the folder, and train nothing")
    report: bool = option(True, "write report.html")

    def run(self) -> int:
        """Train and compare; the exit code is 1 if a run failed and the others were trained."""
        require_extra("ultralytics", extra="yolo")
        from ..compare.variants import attached_variants, variants_of
        from ..compare.yolo import Yolo, YoloComparison, recipe_from
        from .compare import report_runs, run_comparison

        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise InputError("ultralytics starts its processes itself: give device=0,1 instead of using torchrun")
        folder = Path(self.output)
        if self.report_only:
            self._refuse(["seeds", "seed", "where", "preserve"], self.settings, "--report-only, which trains nothing")
            return report_runs(folder, [*self.attention, *self.models], {"report": self.report})
        given = self.settings
        if self.models:
            self._refuse(["where", "preserve"], [word for word in given if word.startswith("model=")], "--models")
            given = [f"model={self.models[0]}", *given]
        recipe = recipe_from(given).replaced(seed=self.seed or 0, report=self.report)
        if self.models or not self.attention:
            variants = variants_of(self.attention, 0, self.models)
        else:
            variants = attached_variants(self.attention, recipe, self.where or "residual", self.preserve or "yes")
        seeds = [recipe.seed + n for n in range(self.seeds or 3)]
        return run_comparison(YoloComparison(variants, recipe, seeds, folder, Yolo.count_classes(recipe)), "cpu")

    def _refuse(self, options: list[str], words: list[str], other: str) -> None:
        """Raise an InputError if options or words are given that another option leaves without effect."""
        given = [*(f"--{name}" for name in options if getattr(self, name) is not None), *words]
        if given:
            raise InputError(f"{', '.join(given)} would have no effect with {other}")
