"""The command ``sanet eval``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import DataError, InputError
from ...files import require_folder_of, write_json
from ..console import console, table
from ..data.datasets import open_split
from ..data.loading import evaluation_batches
from ..device import open_process
from ..environment import environment
from ..network import restore_network
from ..recipes.recipe import Recipe
from ..tasks.classification.evaluation import evaluate


def evaluate_command(
    checkpoint: str, overrides: dict[str, Any], batch_size: int, *, ema: bool | None, json_file: str | None
) -> int:
    """Runs ``sanet eval`` and returns its exit code."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    require_folder_of("--json", json_file)
    special = {name: overrides[name] for name in ("model", "model_args", "in_chans", "small_stem") if name in overrides}
    restored = restore_network(checkpoint, ema=ema, settings=special)
    recipe = restored.recipe.replaced(**{"device": "auto", "workers": 2, **overrides})
    if restored.classes is not None and len(restored.classes) == 1000 and "data" not in overrides:
        raise InputError(f"{checkpoint} tells ImageNet's classes apart; --data DIR has to say where its images are")
    with open_process(recipe.device) as process:
        data = open_split(recipe, "val", _classes_for(recipe, restored.classes))
        known = getattr(data, "classes", None)
        if known is not None and len(known) != restored.num_classes:
            raise DataError(
                f"{checkpoint} tells {restored.num_classes} classes apart and {recipe.data} has {len(known)}, and the "
                f"file does not say what its classes are called"
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
    if json_file is not None:
        write_json(json_file, figures)
    return 0


def _classes_for(recipe: Recipe, classes: list[str] | None) -> list[str] | None:
    """ImageNet's class names serve a folder that is named by them; any other folder of 1000 is taken in its order."""
    if classes is None or recipe.data.startswith("digits") or not Path(recipe.data).is_dir():
        return classes
    from ..data.folders import scan_tree

    if len(classes) == 1000 and not set(scan_tree(recipe.data, "val").classes) & set(classes):
        return None
    return classes


def _print_scores(figures: dict[str, Any]) -> None:
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
