"""The command ``sanet eval``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import DataError, InputError
from ...files import require_folder_of, write_json
from ..recipes.recipe import Recipe
from ..recipes.settings import option
from . import Command


@dataclass(kw_only=True)
class Evaluate(Command):
    """Evaluate a classifier on its validation data, or on other images."""

    name = "eval"
    summary = "evaluate a classifier"
    recipe_type = Recipe
    recipe_fields = (
        "data data_dir val_split workers check_images skip_bad_images img_size mean std interpolation crop_pct "
        "model model_args in_chans small_stem device precision channels_last"
    )

    checkpoint: str = option(..., "checkpoint of sanet train, a published one, or bare weights", positional=True)
    batch_size: int = option(128, "images at a time", minimum=1)
    ema: bool | None = option(None, "averaged weights; used by default if there are any")
    json: str | None = option(None, "write the metrics to FILE", metavar="FILE")

    def run(self) -> int:
        """Evaluate the checkpoint, and print and write its metrics."""
        from ..data.datasets import open_split
        from ..data.loading import evaluation_batches
        from ..device import open_process
        from ..environment import environment
        from ..tasks.classification.evaluation import evaluate
        from ..tasks.classification.predictor import restore_network

        checkpoint, overrides, batch_size = self.checkpoint, self.overrides, self.batch_size
        require_folder_of("--json", self.json)
        special = {
            name: overrides[name] for name in ("model", "model_args", "in_chans", "small_stem") if name in overrides
        }
        restored = restore_network(checkpoint, ema=self.ema, settings=special)
        recipe = restored.recipe.replaced(**{"device": "auto", "workers": 2, **overrides})
        if restored.classes is not None and len(restored.classes) == 1000 and "data" not in overrides:
            raise InputError(f"{checkpoint} tells ImageNet's classes apart; --data DIR has to say where its images are")
        with open_process(recipe.device) as process:
            data = open_split(recipe, "val", _classes_for(recipe, restored.classes))
            known = getattr(data, "classes", None)
            if known is not None and len(known) != restored.num_classes:
                raise DataError(
                    f"{checkpoint} tells {restored.num_classes} classes apart and {recipe.data} has {len(known)}, "
                    "and the file does not name its classes"
                )
            scores = evaluate(
                process.to_device(restored.model, channels_last=recipe.channels_last),
                evaluation_batches(data, recipe, process, batch_size),
                process,
                precision=recipe.precision,
                channels_last=recipe.channels_last,
            )
            if process.rank != 0:
                return 0
            scores = replace(scores, unreadable=scores.unreadable + getattr(data, "left_out", 0))
        figures = {
            "checkpoint": str(checkpoint),
            "weights": restored.weights,
            "model": recipe.model,
            "data": recipe.data,
            "classes": restored.num_classes,
            "img_size": recipe.img_size,
            "crop_pct": recipe.crop_pct,
            **scores.to_dict(),
            "batch_size": batch_size,
            "device": str(process.device),
            **environment(),
        }
        _print_scores(figures)
        if self.json is not None:
            write_json(self.json, figures)
        return 0


def _classes_for(recipe: Recipe, classes: list[str] | None) -> list[str] | None:
    """Return the class names to look up in the data; None for a folder of 1000 classes that are not ImageNet's."""
    if classes is None or recipe.data.startswith("digits") or not Path(recipe.data).is_dir():
        return classes
    from ..data.datasets import scan_tree

    if len(classes) == 1000 and not set(scan_tree(recipe.data, "val").classes) & set(classes):
        return None
    return classes


def _print_scores(figures: dict[str, Any]) -> None:
    from ..console import console, table

    columns = ("top-1 %", "top-5 %", "loss", "images", "images/s", "size", "classes", "weights")
    scores = table(columns, title=f"{figures['model']} from {figures['checkpoint']}")
    scores.add_row(
        f"{figures['top1']:.3f}",
        f"{figures['top5']:.3f}",
        f"{figures['loss']:.4f}",
        f"{figures['images']:,}",
        f"{figures['images_per_second']:,.0f}",
        str(figures["img_size"]),
        str(figures["classes"]),
        figures["weights"] or "state dict",
    )
    console.print(scores)
    if figures["unreadable"]:
        console.print(f"{figures['unreadable']} images could not be read and are not counted")
